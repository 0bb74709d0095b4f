//! Caches and keys that a member names for themselves (`substituters`, `trusted-public-keys`).
//!
//! The names are the member's text, and the servers behind them are the member's choice: they are few, reached only as the
//! box's policy for connections allows, never over ssh (the box would log in with its own key), and what they send is a
//! claim of the member unless a key of the box signed it. Each member's caches have questions, downloads, answers and
//! pauses of their own, so a broken one delays nobody else. The slots for questions and downloads belong to who pays, and
//! not to a session or its settings, which a member can have any number of.
//! Not here: who may set them (`roster::settings`), and the policy for connections (`net`).

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use store::Member;
use store::signing::{PublicKey, TrustedKeys};
use tokio::sync::Semaphore;

use super::address::{Address, AddressKind};
use super::lookup::Lookups;
use super::slots::Slots;
use super::source::Source;
use super::{Inner, Substituters, Terms, Whose};
use net::HttpClient;

/// Most caches of one member. More are not asked.
const MAX_CACHES: usize = 5;
/// Most keys of one member.
const MAX_KEYS: usize = 10;
/// Most questions to all caches of one member at once. Each may need a connection, and a thread for its name.
const MAX_QUESTIONS: usize = 8;
/// Most settings of one member whose caches are remembered: their answers and pauses. One more takes the place of the one
/// that was used longest ago.
const MAX_SETTINGS: usize = 4;
/// Bytes of the answers that are remembered for each of them.
const ANSWER_BYTES: u64 = 512 << 10;
/// Most members whose caches are remembered. One more takes the place of who asked longest ago.
const MAX_MEMBERS: usize = 64;

/// Which caches members may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfMembers {
    None,
    /// With TLS: what a member gets is not what somebody on the way sends.
    Https,
    Any,
}

/// The caches and keys that a member names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnCaches {
    pub urls: Vec<String>,
    pub keys: Vec<String>,
}

impl OwnCaches {
    /// Whether there is nothing to ask, or to trust, besides what the box has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.urls.is_empty() && self.keys.is_empty()
    }
}

/// Makes and remembers the substituters of members.
pub(super) struct Makers {
    allowed: OfMembers,
    terms: Terms,
    /// For members' caches alone.
    http: Arc<HttpClient>,
    /// Each payer has its own, whatever others ask.
    questions: Slots,
    known: Mutex<Known>,
}

/// By who pays.
#[derive(Default)]
struct Known {
    payers: HashMap<Arc<str>, Vec<Entry>>,
    /// Counts questions.
    clock: u64,
}

struct Entry {
    member: Member,
    own: OwnCaches,
    substituters: Substituters,
    used: u64,
}

impl Makers {
    pub fn new(allowed: OfMembers, terms: Terms, http: &HttpClient) -> Self {
        let questions = Slots::new(Semaphore::MAX_PERMITS, MAX_QUESTIONS);
        Self { allowed, terms, http: Arc::new(http.apart()), questions, known: Mutex::default() }
    }
}

impl Known {
    /// Makes room for one more entry of this payer.
    fn make_room(&mut self, payer: &Arc<str>) {
        let newest = |entries: &[Entry]| entries.iter().map(|entry| entry.used).max();
        if !self.payers.contains_key(payer) && self.payers.len() >= MAX_MEMBERS {
            let oldest = self.payers.iter().min_by_key(|(_, entries)| newest(entries));
            if let Some(oldest) = oldest.map(|(payer, _)| payer.clone()) {
                self.payers.remove(&oldest);
            }
        }
        let entries = self.payers.entry(payer.clone()).or_default();
        if entries.len() >= MAX_SETTINGS {
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
            entries.truncate(MAX_SETTINGS - 1);
        }
    }
}

impl Drop for Entry {
    /// Requests that still run with it remember nothing more: the memory of answers is that of the entries.
    fn drop(&mut self) {
        self.substituters.0.lookups.lock().unwrap_or_else(PoisonError::into_inner).close();
    }
}

impl Substituters {
    /// These and the caches that this member names, for whom `payer` pays. What comes from them goes into the member's own
    /// view.
    #[must_use]
    pub fn with_own(&self, payer: &Arc<str>, member: &Member, own: &OwnCaches) -> Self {
        let Whose::Box { makers, .. } = &self.0.whose else { return self.clone() };
        if own.is_empty() {
            return self.clone();
        }
        let mut known = makers.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clock += 1;
        let now = known.clock;
        let is_it = |entry: &&mut Entry| entry.member == *member && entry.own == *own;
        if let Some(entry) = known.payers.get_mut(payer).and_then(|all| all.iter_mut().find(is_it)) {
            entry.used = now;
            return entry.substituters.clone();
        }
        known.make_room(payer);
        let substituters = self.make(makers, payer, own);
        let entry =
            Entry { member: member.clone(), own: own.clone(), substituters: substituters.clone(), used: now };
        known.payers.entry(payer.clone()).or_default().push(entry);
        substituters
    }

    /// Whether anything can be fetched by a member with these caches.
    #[must_use]
    pub fn any_with(&self, own: &OwnCaches) -> bool {
        self.any() || (self.0.enabled && !own.urls.is_empty())
    }

    fn make(&self, makers: &Makers, payer: &Arc<str>, own: &OwnCaches) -> Self {
        let Makers { allowed, terms, http, questions, .. } = makers;
        let (addresses, keys, objections) = read(*allowed, own);
        let questions = questions.of(payer);
        let of_member = |address: &Address| Arc::new(Source::of_member(address, terms, http, &questions));
        let sources = self.0.sources.iter().cloned().chain(addresses.iter().map(of_member)).collect();
        Self(Arc::new(Inner {
            enabled: self.0.enabled,
            sources,
            trusted: self.0.trusted.clone(),
            max_nar_bytes: self.0.max_nar_bytes,
            lookups: Mutex::new(Lookups::of(ANSWER_BYTES)),
            downloads: self.0.downloads.beside(),
            whose: Whose::Member { keys, objections },
        }))
    }
}

/// The addresses and keys that are used, and the reasons why others are not.
fn read(allowed: OfMembers, own: &OwnCaches) -> (Vec<Address>, TrustedKeys, Vec<Arc<str>>) {
    let (mut addresses, mut keys, mut objections) = (Vec::new(), Vec::new(), Vec::new());
    for url in &own.urls {
        match address(allowed, url) {
            Ok(_) if addresses.len() >= MAX_CACHES => {
                let why = format!("'{url}' is not asked: you name more than {MAX_CACHES} `substituters`");
                objections.push(why.into());
            }
            Ok(address) => addresses.push(address),
            Err(why) => {
                objections.push(format!("'{url}', one of your `substituters`, is not asked: {why}").into())
            }
        }
    }
    for text in &own.keys {
        match PublicKey::from_str(text) {
            Ok(_) if keys.len() >= MAX_KEYS => {
                let why =
                    format!("'{text}' does not count: you name more than {MAX_KEYS} `trusted-public-keys`");
                objections.push(why.into());
            }
            Ok(key) => keys.push(key),
            Err(why) => {
                objections
                    .push(format!("'{text}', one of your `trusted-public-keys`, is no key: {why}").into());
            }
        }
    }
    (addresses, TrustedKeys::new(keys), objections)
}

fn address(allowed: OfMembers, url: &str) -> Result<Address, String> {
    let set = |value: &str| format!("`member-substituters` is \"{value}\" in the configuration of the box");
    if allowed == OfMembers::None {
        return Err(set("no"));
    }
    let address = Address::from_str(url).map_err(|error| error.to_string())?;
    let AddressKind::Http(base) = &address.kind else {
        return Err("only the operator of the box can name a store behind ssh".into());
    };
    if !base.username().is_empty() || base.password().is_some() {
        return Err(
            "it has a user name or a password, which others could read in the roster and in logs".into()
        );
    }
    if allowed == OfMembers::Https && base.scheme() != "https" {
        return Err(format!("it is not https://, and {}", set("https")));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_names_few_caches_with_tls_and_none_that_needs_a_key_of_the_box() {
        for (url, allowed, why) in [
            ("https://cache.example.org", OfMembers::None, "`member-substituters` is \"no\""),
            ("http://cache.example.org", OfMembers::Https, "it is not https://"),
            ("https://me:secret@cache.example.org", OfMembers::Any, "a user name or a password"),
            ("https://cache.example.org?trusted=1", OfMembers::Any, "`trusted`, which means nothing"),
            ("file:///etc", OfMembers::Any, "of a kind this box cannot fetch from"),
        ] {
            let refused = address(allowed, url).expect_err(url);
            assert!(refused.contains(why), "{refused}");
        }
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, line);
        let ssh = format!("ssh-ng://box?base64-ssh-public-host-key={key}&ssh-key=/etc/shadow");
        assert!(address(OfMembers::Any, &ssh).expect_err("ssh").contains("only the operator"));
        assert!(address(OfMembers::Https, "https://cache.example.org?priority=1").is_ok());
        assert!(address(OfMembers::Any, "http://cache.example.org").is_ok());
    }

    #[test]
    fn what_is_not_used_is_told_with_its_reason_and_the_rest_is_used() {
        let urls = (0..7).map(|n| format!("https://c{n}.example.org")).collect();
        let keys = vec!["no key".to_owned()];
        let (addresses, keys, objections) = read(OfMembers::Https, &OwnCaches { urls, keys });
        assert!(addresses.len() == MAX_CACHES && keys.is_empty());
        assert_eq!(objections.len(), 3);
        assert!(
            objections[0].contains("more than 5") && objections[2].contains("is no key"),
            "{objections:?}"
        );
    }
}
