//! Substitution: fetching paths from caches and other stores instead of building them or having them uploaded.
//!
//! Sources are not trusted. Their claims about a path (its hash, its references) count only if a key that the *box*
//! trusts signed them, or if the path's name follows from its contents; the client cannot change this. So every path
//! that is fetched from the box's sources is Verified and everybody may see it, and members share downloads. References of
//! a path are fetched before it, and must be Verified too.
//!
//! A member may name more caches, and keys for them (`own`). They are asked for that member alone, after those of the box,
//! and share nothing with them: no questions, no connections, no downloads, no answers. What only such a key signed is the
//! member's claim. What is bounded (`slots`) belongs to who pays.
//! Not here: the choice between fetching and building (`builds::plan`), and HTTP itself (`net`).

use std::sync::{Arc, Mutex, PoisonError};

use nix_derivation::StorePath;
use store::signing::TrustedKeys;
use store::{Member, Payer, Store, View};

use net::HttpClient;
use shares::budget::Budget;
use shares::threads::{Threads, Workers};

pub mod address;
pub mod cache_info;
mod download;
mod health;
mod http_cache;
mod lookup;
pub mod narinfo;
mod offer;
mod own;
mod pattern;
mod slots;
mod source;
mod ssh_store;
mod tally;
mod unpack;
mod walk;

use std::path::PathBuf;
use std::time::Duration;

use address::Address;
pub use offer::Offer;
pub use own::{OfMembers, OwnCaches};
pub use walk::{Event, Fetched, Walk, warn};

/// The settings: whether the box fetches paths, and from where.
#[derive(Debug, Clone)]
pub struct Substitution {
    pub enabled: bool,
    pub substituters: Vec<Address>,
    /// Which caches members may name for themselves.
    pub of_members: OfMembers,
}

/// Settings for all requests to sources.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The key with which the box logs in to ssh stores: its host key.
    pub host_key: PathBuf,
    /// Longest silence of a source.
    pub stall: Duration,
    /// Largest path that is fetched, as a NAR.
    pub max_nar_bytes: u64,
}

use download::{Destination, Downloads, Waiting};
use lookup::Lookups;
pub use pattern::Patterns;
use source::{Source, SourceError};
pub use tally::{Account, ChargeBytes};

/// No member of a roster can have this name, so this view sees only Verified paths.
const NOBODY: &str = "";

/// For whom paths are looked up and fetched.
pub struct Asker<'a> {
    /// What is fetched belongs to this member, and stays while the view's session lasts. From the member's own caches it
    /// goes into this view.
    pub view: &'a View,
    /// Pays for lists that caches and requests determine.
    pub budget: &'a Budget,
    /// Threads of who pays.
    pub workers: &'a Workers,
    /// Names of paths that are not fetched, nor what needs them.
    pub never: &'a Patterns,
    /// Has the downloads that start for the asker.
    pub account: &'a Account,
}

/// The answer of the sources about a path.
#[derive(Debug, Clone)]
pub enum Answer {
    /// According to its description, the path can be fetched.
    Offer(Arc<Offer>),
    /// A source has the path, but the box may not use it, for this reason.
    Refused(Arc<str>),
    /// No source has the path. `trouble`: the reason why a source could not be asked.
    Nowhere { trouble: Option<Arc<str>> },
}

impl Answer {
    /// The text for a person, unless the answer is only that no source has the path.
    fn warning(&self) -> Option<Arc<str>> {
        match self {
            Self::Refused(why) | Self::Nowhere { trouble: Some(why) } => Some(why.clone()),
            Self::Offer(_) | Self::Nowhere { trouble: None } => None,
        }
    }

    /// The reason why there is no offer, in one line.
    fn reason(&self, path: &StorePath) -> Arc<str> {
        let path = path.to_absolute_path();
        match self {
            Self::Offer(_) => format!("path '{path}' can be fetched").into(),
            Self::Refused(why) => why.clone(),
            Self::Nowhere { trouble: None } => {
                format!("path '{path}' is in none of this box's substituters; upload it, or add a cache that has it to `substituters` of the box").into()
            }
            Self::Nowhere { trouble: Some(why) } => {
                format!("path '{path}' was not found, but not all substituters could be asked: {why}").into()
            }
        }
    }
}

/// All substituters of the box. Clones share them.
#[derive(Clone)]
pub struct Substituters(Arc<Inner>);

struct Inner {
    enabled: bool,
    sources: Vec<Arc<Source>>,
    trusted: Arc<TrustedKeys>,
    max_nar_bytes: u64,
    lookups: Mutex<Lookups>,
    downloads: Downloads,
    whose: Whose,
}

enum Whose {
    /// The sources are those of the box. It makes those of members.
    Box {
        /// The view of no member, which has only Verified paths.
        public: View,
        makers: Box<own::Makers>,
    },
    /// The sources are those of the box and of a member, who trusts these keys.
    Member {
        keys: TrustedKeys,
        /// Why some of the member's sources and keys are not used.
        objections: Vec<Arc<str>>,
    },
}

impl Substituters {
    /// The substituters of the configuration.
    #[must_use]
    pub fn new(
        settings: &Substitution,
        terms: &Terms,
        store: &Store,
        trusted: Arc<TrustedKeys>,
        http: &Arc<HttpClient>,
        threads: Threads,
    ) -> Self {
        let public = store.view(&Member::new(NOBODY)).paid_by(Payer::default());
        let sources = settings.substituters.iter().map(|address| Arc::new(Source::new(address, terms, http)));
        let makers = Box::new(own::Makers::new(settings.of_members, terms.clone(), http));
        Self(Arc::new(Inner {
            enabled: settings.enabled,
            sources: sources.collect(),
            trusted,
            max_nar_bytes: terms.max_nar_bytes,
            downloads: Downloads::new(threads),
            lookups: Mutex::default(),
            whose: Whose::Box { public, makers },
        }))
    }

    /// Whether anything can be fetched at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.0.enabled && !self.0.sources.is_empty()
    }

    /// What is valid here need not be fetched for a member with this view.
    fn view<'a>(&'a self, of_asker: &'a View) -> &'a View {
        match &self.0.whose {
            Whose::Box { public, .. } => public,
            // All that the member sees, so what others share with them, too. The request keeps what it began with, as a
            // build keeps its inputs.
            Whose::Member { .. } => of_asker,
        }
    }

    /// Why some of a member's sources and keys are not used.
    fn objections(&self) -> &[Arc<str>] {
        match &self.0.whose {
            Whose::Box { .. } => &[],
            Whose::Member { objections, .. } => objections,
        }
    }

    /// Where that goes which is fetched for a member with this view, who pays for it.
    fn destination(&self, of_asker: &View) -> Destination {
        match &self.0.whose {
            // Downloads are shared, so a limit of one member must not end one.
            Whose::Box { public, .. } => {
                Destination { view: public.clone().paid_by(of_asker.payer().without_limit()), claims: false }
            }
            Whose::Member { .. } => Destination { view: of_asker.clone(), claims: true },
        }
    }

    fn source(&self, index: usize) -> &Arc<Source> {
        &self.0.sources[index]
    }

    /// `view` is the asker's, and `account` is charged for the bytes, unless somebody else's slot is free first.
    fn start(&self, offer: &Arc<Offer>, view: &View, account: &Account) -> Waiting {
        self.0.downloads.start(offer, self.source(offer.source), self.destination(view), account)
    }

    /// Checks, before anything is fetched, that so many bytes are within the limit of the member who asks. Downloads are
    /// shared, so a limit of one member must not end one.
    async fn make_room(&self, asker: &Asker<'_>, bytes: u64) -> Result<(), Arc<str>> {
        let view = asker.view.clone();
        match asker.workers.commit(move || view.make_room(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(format!("nothing is fetched: {why}").into()),
            Err(lost) => Err(format!("nothing is fetched, because of the box: {lost}").into()),
        }
    }

    fn forget(&self, path: &StorePath) {
        self.0.lookups.lock().unwrap_or_else(PoisonError::into_inner).forget(path);
    }

    /// Asks the sources about one path: those of the box first, and of each kind the one with the lowest priority. `mass`: only those with
    /// `WantMassQuery`.
    async fn ask(&self, member: &Member, path: &StorePath, mass: bool) -> Answer {
        if !self.any() {
            return Answer::Nowhere {
                trouble: Some("this box uses no substituters; set `substituters`".into()),
            };
        }
        let known = self.0.lookups.lock().unwrap_or_else(PoisonError::into_inner).get(member, path);
        if let Some(answer) = known {
            return answer;
        }
        let answer = self.ask_sources(path, mass).await;
        if mass {
            // Not remembered: a source that was left out may have the path too, and may come first.
            return answer;
        }
        self.0.lookups.lock().unwrap_or_else(PoisonError::into_inner).put(member, path, &answer);
        answer
    }

    async fn ask_sources(&self, path: &StorePath, mass: bool) -> Answer {
        let (mut refused, mut trouble) = (None, None);
        let mut order = Vec::with_capacity(self.0.sources.len());
        for (index, source) in self.0.sources.iter().enumerate() {
            match source.about().await {
                Ok(about) if mass && !about.want_mass_query => {}
                // As in Nix, the default is 0.
                Ok(about) => order.push((source.of_member, about.priority.unwrap_or(0), index)),
                Err(error) => trouble = trouble.or(Some(Arc::from(error.to_string()))),
            }
        }
        order.sort_unstable();
        let own = match &self.0.whose {
            Whose::Box { .. } => None,
            Whose::Member { keys, .. } => Some(keys),
        };
        for (_, _, index) in order {
            let source = self.source(index);
            match source.offer(path, index).await {
                Ok(None) => {}
                Ok(Some(offer)) => {
                    match offer.objection(&source.name, &self.0.trusted, own, self.0.max_nar_bytes) {
                        None => return Answer::Offer(Arc::new(offer)),
                        Some(why) => refused = refused.or(Some(Arc::from(why))),
                    }
                }
                Err(SourceError::Refused(why)) => refused = refused.or(Some(Arc::from(why))),
                Err(error) => trouble = trouble.or(Some(Arc::from(error.to_string()))),
            }
        }
        match refused {
            Some(why) => Answer::Refused(why),
            None => Answer::Nowhere { trouble },
        }
    }
}
