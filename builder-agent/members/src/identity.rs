//! Which person a name of the roster means. A name is what people write; what owns claims, logs and results is an identity,
//! so that somebody who joins under the name of somebody who left inherits nothing.
//!
//! A name keeps its identity for as long as each roster has a key or certificate authority for it that the one before had,
//! and when it comes back with one that it had when it left. With none of them it is somebody else, whether it was away or
//! not: two changes of the roster, one that takes a person out and one that gives their name to another, arrive here as one
//! when they come close together. So whoever replaces all keys at once starts anew; who keeps an old one beside the new ones
//! for one version of the roster does not.
//!
//! An authority of several members tells nobody apart. Who has nothing else is known by their name, for which that
//! authority vouches, while the name stays in the roster.
//!
//! Kept in one small file that is replaced in one step, before the roster that needs it takes effect.
//! Not here: dropping what belonged to an identity that is gone for good (the agent, `departed`), and who logs in.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Stands between a name and the number that makes it an identity. No name has it (crate `roster`, `name`).
pub const MARK: char = '~';
/// Names remembered, those that left among them: twice the members of the largest roster. Who left longest ago is
/// forgotten first, and what they left behind goes with them.
const MAX_PEOPLE: usize = 2 * ::roster::MAX_MEMBERS;
/// The format of the file.
const SCHEMA: u64 = 1;

/// What one roster says of a name: its keys, or `None` if they could not be understood.
pub type Listed = BTreeMap<Arc<str>, Option<BTreeSet<String>>>;

/// The file, and what it says.
#[derive(Debug)]
pub struct Identities {
    path: PathBuf,
    states: Mutex<States>,
}

#[derive(Debug)]
struct States {
    now: State,
    /// As the file has it. Only this may let anybody in as somebody new.
    saved: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    schema: u64,
    /// The number of the next identity. Never used twice.
    next: u64,
    people: BTreeMap<String, Person>,
    /// Identities that nobody has any more and that still own something.
    gone: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    id: String,
    /// Fingerprints of keys and authorities that are this name's alone, from the last roster that had any.
    keys: BTreeSet<String>,
    /// Whether the name is in the roster; if not, `next` when it left, which orders those who are away.
    away_since: Option<u64>,
}

impl Identities {
    /// Reads the file. Without one, everybody in the first roster is who the store says they are. A damaged one is put
    /// aside, and everybody is somebody new: to guess could give one person's claims to another.
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
                    // Numbers of the damaged file were smaller: it counts, and time is ahead of any count.
                    empty(::roster::date::now().max(1))
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => empty(0),
            Err(error) => return Err(error),
        };
        Ok(Identities { path, states: Mutex::new(States { now: state.clone(), saved: state }) })
    }

    /// The identity of each name. A name whose identity is new has none until that is on disk: after a crash it would be
    /// somebody else's. Who leaves has left in any case.
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

    /// Whether something is still to be written.
    pub fn is_unsaved(&self) -> bool {
        let states = self.lock();
        states.now != states.saved
    }

    /// Identities whose belongings are to be dropped.
    pub fn gone(&self) -> Vec<String> {
        self.lock().saved.gone.iter().cloned().collect()
    }

    /// Nothing is left of this one.
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
        // Before there was this file, names were identities.
        let first = self.next == 0;
        self.next = self.next.max(1);
        let mut ids = BTreeMap::new();
        for (name, keys) in listed {
            let known = self.people.get(&**name);
            let same = known.is_some_and(|person| match keys {
                // Who it is will show once the entry can be read.
                None => person.away_since.is_none(),
                Some(keys) => {
                    let nothing_to_compare = keys.is_empty() || person.keys.is_empty();
                    !keys.is_disjoint(&person.keys) || person.away_since.is_none() && nothing_to_compare
                }
            });
            if !same {
                // Who it is will show once the entry can be read; nobody logs in by it until then.
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

/// Replaces the file in one step. On error the one before it is still there.
fn write(path: &Path, state: &State) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec_pretty(state)?)?;
    // Once in a while, and small: whoever is somebody else must be so after a power cut, too.
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
#[path = "identity_test.rs"]
mod identity_test;
