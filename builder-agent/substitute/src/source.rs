//! One substituter of any kind, of the box or of a member. Limits the questions to it, and asks nothing while it fails.

use std::sync::Arc;

use nix_derivation::StorePath;

use super::address::{Address, AddressKind};
use super::cache_info::CacheInfo;
use super::health::Health;
use super::http_cache::HttpCache;
use super::offer::Offer;
use super::slots::{Share, Slots};
use super::ssh_store::SshStore;
use crate::Terms;
use net::{HttpClient, HttpError};

/// Most questions to one source of the box at once. Each may need a connection.
const MAX_QUESTIONS: usize = 25;

/// The reason why a source gave no answer, in one line for people.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The source cannot be used with this configuration; asking again changes nothing.
    #[error("{0}")]
    Useless(String),
    /// The source's answer about this path cannot be used.
    #[error("{0}")]
    Refused(String),
    /// An error of the network or the server. A later attempt may succeed.
    #[error("{0}")]
    Trouble(String),
}

impl From<HttpError> for SourceError {
    fn from(error: HttpError) -> Self {
        match &error {
            error if error.is_passing() => Self::Trouble(error.to_string()),
            HttpError::Connect { .. } => Self::Useless(error.to_string()),
            // The error is about this one file: for example, it is too large, or a redirect leads to nothing.
            _ => Self::Refused(error.to_string()),
        }
    }
}

pub struct Source {
    pub name: String,
    pub kind: Kind,
    priority: Option<u32>,
    want_mass_query: Option<bool>,
    health: Health,
    questions: Share,
    /// Whether a member chose it, and not the box.
    pub of_member: bool,
}

pub enum Kind {
    Http(HttpCache),
    Ssh(SshStore),
}

impl Source {
    /// A source of the box.
    pub fn new(address: &Address, terms: &Terms, http: &Arc<HttpClient>) -> Self {
        // Of nobody: everybody's questions are in one queue.
        let questions = Slots::new(MAX_QUESTIONS, MAX_QUESTIONS).of(&Arc::from(""));
        Self::with(address, terms, http, questions, false)
    }

    /// A source that a member chose. All of that member's sources have the same share of `questions`.
    pub fn of_member(address: &Address, terms: &Terms, http: &Arc<HttpClient>, questions: &Share) -> Self {
        Self::with(address, terms, http, questions.clone(), true)
    }

    fn with(
        address: &Address,
        terms: &Terms,
        http: &Arc<HttpClient>,
        questions: Share,
        of_member: bool,
    ) -> Self {
        let name = address.name.clone();
        let kind = match &address.kind {
            AddressKind::Http(base) => Kind::Http(HttpCache::new(name.clone(), base.clone(), http.clone())),
            AddressKind::Ssh(ssh) => {
                let key = &terms.host_key;
                let (ssh, key, http) = (ssh.clone(), key.clone(), http.clone());
                Kind::Ssh(SshStore::new(name.clone(), ssh, key, http, terms.stall))
            }
        };
        Self {
            name,
            kind,
            priority: address.priority,
            want_mass_query: address.want_mass_query,
            health: Health::default(),
            questions,
            of_member,
        }
    }

    /// The source's description of itself, with the settings that replace it. An error if the source must not be asked
    /// now.
    pub async fn about(&self) -> Result<CacheInfo, SourceError> {
        self.not_paused()?;
        // Those of the box are few, and what they said is remembered; a member can always name another one.
        let _slot = if self.of_member { self.questions.take().await } else { None };
        self.not_paused()?;
        let about = match &self.kind {
            Kind::Http(cache) => cache.about().await,
            Kind::Ssh(_) => Ok(CacheInfo::default()),
        };
        if about.is_err() {
            // Success is not noted: the description may be a remembered one, which says nothing about the source's
            // present state.
            self.note(&about);
        }
        let about = about?;
        Ok(CacheInfo {
            priority: self.priority.or(about.priority),
            want_mass_query: self.want_mass_query.unwrap_or(about.want_mass_query),
        })
    }

    fn not_paused(&self) -> Result<(), SourceError> {
        self.health.pause(&self.name).map_or(Ok(()), |pause| Err(SourceError::Trouble(pause)))
    }

    /// The source's offer for `path`; called after [`Source::about`] has succeeded. `index` is the source's place in
    /// the list.
    pub async fn offer(&self, path: &StorePath, index: usize) -> Result<Option<Offer>, SourceError> {
        let _slot = self.questions.take().await;
        self.not_paused()?;
        let answer = match &self.kind {
            Kind::Http(cache) => cache.offer(path, index).await,
            Kind::Ssh(store) => store.offer(path, index).await,
        };
        self.note(&answer);
        answer
    }

    /// Records success or failure, for pauses.
    pub fn note<T>(&self, answer: &Result<T, SourceError>) {
        match answer {
            Err(SourceError::Trouble(why)) => {
                tracing::warn!(substituter = self.name, error = why, "a substituter failed");
                self.health.bad(why);
            }
            // Trouble of a member's own cache is nothing that an operator has to mend.
            Err(SourceError::Useless(why)) if self.of_member => {
                tracing::warn!(substituter = self.name, error = why, "a member's substituter cannot be used");
                self.health.bad(why);
            }
            Err(SourceError::Useless(why)) => {
                tracing::error!(substituter = self.name, error = why, "a substituter cannot be used");
                self.health.bad(why);
            }
            Err(SourceError::Refused(why)) => {
                tracing::warn!(
                    substituter = self.name,
                    error = why,
                    "an answer of a substituter was refused"
                );
            }
            Ok(_) => self.health.good(),
        }
    }
}
