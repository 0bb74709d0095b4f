//! Identities: which person a name of the roster means. People write names, but claims, logs and results belong to an
//! identity, so that a person who joins under the name of one who left inherits nothing.
//!
//! A name keeps its identity as long as each roster shares at least one key or certificate authority of that name with
//! the roster before, and also when the name comes back with one that it had when it left. Without a shared one, the
//! name means another person, even if it was never away: if one change of the roster removes a person and the next
//! gives the name to another, and both come close together, the agent sees one change. So a member who replaces all
//! keys at once gets a new identity; a member who keeps an old key beside the new ones for one version of the roster
//! does not.
//!
//! An authority of several members identifies none of them. A member who has nothing else is identified by the name,
//! for which that authority vouches, while the name stays in the roster.
//!
//! Identities are kept in one small file that is replaced in one step, before the roster that needs it takes effect.
//! Not here: deleting what belonged to a former identity (the agent, `departed`), and who logs in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::roster::person;
use serde::{Deserialize, Serialize};

/// Separates a name from the number of an identity. No name contains it (crate `roster`, `name`).
pub const MARK: char = '~';
/// Limit on remembered names, including those that left: twice the members of the largest roster. The name that left
/// longest ago is forgotten first, and all that belongs to its identity is deleted.
const MAX_PEOPLE: usize = 2 * ::roster::MAX_MEMBERS;
/// The format of the file.
const SCHEMA: u64 = 1;

/// The keys of each name in one roster; `None` if they could not be understood.
pub type Listed = BTreeMap<Arc<str>, Option<BTreeSet<String>>>;

/// The file, and its contents.
#[derive(Debug)]
pub struct Identities {
    path: PathBuf,
    states: Mutex<States>,
}

#[derive(Debug)]
struct States {
    now: State,
    /// The state on disk. A new identity can log in only once it is in here.
    saved: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    schema: u64,
    /// The number of the next identity. No number is used twice.
    next: u64,
    people: BTreeMap<String, Person>,
    /// Identities that have no name any more and may still own data.
    gone: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    id: String,
    /// Fingerprints of keys and authorities that only this name has, from the last roster that listed any.
    keys: BTreeSet<String>,
    /// `None` if the name is in the roster; else the value of `next` when the name left, which orders the absent names.
    away_since: Option<u64>,
}

impl Identities {
    /// Reads the file. Without a file, identities are names, as in the store. A damaged file is put aside and every
    /// name gets a new identity, because a guess could give one person's claims to another.
    pub fn open(path: PathBuf) -> std::io::Result<Identities> {
        let empty = |next| State { schema: SCHEMA, next, people: BTreeMap::new(), gone: BTreeSet::new() };
        let state = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<State>(&bytes) {
                Ok(state) if state.schema == SCHEMA => state,
                other => {
                    let error = other.err().map_or("another schema".to_owned(), |error| error.to_string());
                    let aside = path.with_extension("damaged");
                    tracing::error!(path = %path.display(), error, aside = %aside.display(),
                        "the identities cannot be read; the file is moved aside, and earlier claims belong to nobody");
                    std::fs::rename(&path, &aside)?;
                    // Must be above all numbers of the damaged file: those are counts, and the time is larger than any
                    // count.
                    empty(::roster::date::now().max(1))
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => empty(0),
            Err(error) => return Err(error),
        };
        Ok(Identities { path, states: Mutex::new(States { now: state.clone(), saved: state }) })
    }

    /// The identity of each name. A name with a new identity is left out until that is on disk: otherwise, after a
    /// crash, its claims could belong to another identity. A name that left the roster is removed in any case.
    pub fn assign(&self, listed: &Listed) -> BTreeMap<Arc<str>, Arc<str>> {
        let mut states = self.lock();
        let mut ids = states.now.assign(listed);
        if let Err(error) = self.save(&mut states) {
            tracing::error!(path = %self.path.display(), %error, "cannot write the identities; new members cannot log in yet");
            let saved = &states.saved.people;
            ids.retain(|name, id| saved.get(&**name).is_some_and(|person| *person.id == **id));
        }
        ids
    }

    /// Whether a change still has to be written.
    pub fn is_unsaved(&self) -> bool {
        let states = self.lock();
        states.now != states.saved
    }

    /// Identities whose data must be deleted.
    pub fn gone(&self) -> Vec<String> {
        self.lock().saved.gone.iter().cloned().collect()
    }

    /// Reports that this identity owns nothing any more.
    pub fn dropped(&self, id: &str) -> std::io::Result<()> {
        let mut states = self.lock();
        states.now.gone.remove(id);
        self.save(&mut states)
    }

    fn save(&self, states: &mut States) -> std::io::Result<()> {
        if states.now != states.saved {
            write(&self.path, &states.now)?;
            states.saved = states.now.clone();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn assign(&mut self, listed: &Listed) -> BTreeMap<Arc<str>, Arc<str>> {
        // Before this file existed, names were identities.
        let first = self.next == 0;
        self.next = self.next.max(1);
        let mut ids = BTreeMap::new();
        for (name, keys) in listed {
            let known = self.people.get(&**name);
            let same = known.is_some_and(|person| match keys {
                // The identity can be decided only when the entry can be read.
                None => person.away_since.is_none(),
                Some(keys) if person.away_since.is_none() => person::is_same(&person.keys, keys),
                Some(keys) => !keys.is_disjoint(&person.keys),
            });
            if !same {
                // The identity can be decided only when the entry can be read; with an unreadable entry no login works.
                let Some(keys) = keys else { continue };
                let id = if first { name.to_string() } else { self.number(name) };
                let person = Person { id, keys: keys.clone(), away_since: None };
                if let Some(other) = self.people.insert(name.to_string(), person) {
                    tracing::warn!(member = %name, "the name is in the roster with other keys only: \
                        it is a new identity, without the earlier claims");
                    self.gone.insert(other.id);
                }
            }
            let Some(person) = self.people.get_mut(&**name) else { continue };
            person.away_since = None;
            if let Some(keys) = keys.as_ref().filter(|keys| !keys.is_empty()) {
                person.keys = keys.clone();
            }
            ids.insert(name.clone(), person.id.as_str().into());
        }
        let mut left = false;
        for (name, person) in &mut self.people {
            if !listed.contains_key(name.as_str()) && person.away_since.is_none() {
                person.away_since = Some(self.next);
                left = true;
            }
        }
        self.next += u64::from(left);
        self.forget_the_longest_gone();
        ids
    }

    fn number(&mut self, name: &str) -> String {
        self.next += 1;
        format!("{name}{MARK}{}", self.next)
    }

    fn forget_the_longest_gone(&mut self) {
        let excess = self.people.len().saturating_sub(MAX_PEOPLE);
        if excess == 0 {
            return;
        }
        let away = self.people.iter().filter_map(|(name, person)| Some((person.away_since?, name.clone())));
        let mut away: Vec<(u64, String)> = away.collect();
        away.sort();
        for (_, name) in away.into_iter().take(excess) {
            if let Some(person) = self.people.remove(&name) {
                self.gone.insert(person.id);
            }
        }
    }
}

/// Replaces the file in one step. On error the old file stays. A new identity must survive a power cut, so this waits for the
/// disk.
fn write(path: &Path, state: &State) -> std::io::Result<()> {
    atomic_file::write(path, &serde_json::to_vec_pretty(state)?, 0o600)
}

#[cfg(test)]
#[path = "identity_test.rs"]
mod identity_test;
