//! Who may log in, read from `roster.json` and kept current while the agent runs.
//!
//! The file is written by `access-manager`, which already judged every entry. It is still parsed with bounds, since a
//! disk or a hand edit may hold anything. A file that does not load changes nothing: the roster before it stays.
//! Not here: where the file comes from, and what a session may do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use russh::keys::PublicKey;
use russh::keys::ssh_key::public::KeyData;
use serde::Deserialize;
use tokio::sync::watch;

/// The format we understand; another number means another meaning, so it is refused.
const SCHEMA: u64 = 1;
/// Ten thousand members with three RSA keys each fit in a tenth of this.
const MAX_FILE: u64 = 64 * 1024 * 1024;
const MAX_MEMBERS: usize = 100_000;
const MAX_KEYS_PER_MEMBER: usize = 100;
/// Every question to the store looks at each of them.
const MAX_SHARES_PER_MEMBER: usize = 100;
/// How often the file is looked at. Removal must bite within a minute; a stat per second costs nothing.
const POLL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Member,
    Maintainer,
}

/// A member's own ceilings. `None` leaves the box's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MemberLimits {
    pub max_jobs: Option<u32>,
    pub max_memory_mib: Option<u32>,
    pub max_cpus: Option<u8>,
    pub max_build_seconds: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    pub name: Arc<str>,
    pub role: Role,
    pub limits: MemberLimits,
    /// Whose paths this member is willing to see and to show.
    pub share_with: BTreeSet<Arc<str>>,
}

/// One accepted roster, members past their date already left out.
#[derive(Debug, Default)]
pub struct Roster {
    pub source: String,
    pub commit: Option<String>,
    by_key: HashMap<KeyData, Arc<Member>>,
    by_name: BTreeMap<Arc<str>, Arc<Member>>,
}

impl Roster {
    pub fn by_key(&self, key: &PublicKey) -> Option<&Arc<Member>> {
        self.by_key.get(key.key_data())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The members who share with `name` and with whom `name` shares, in order. Somebody who is not in the roster, or
    /// no longer, shares nothing.
    pub fn sharing_with(&self, name: &str) -> Vec<Arc<str>> {
        let Some(member) = self.by_name.get(name) else { return Vec::new() };
        let mutual = |other: &&Arc<str>| {
            self.by_name.get(*other).is_some_and(|other| other.share_with.contains(&member.name))
        };
        member.share_with.iter().filter(mutual).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Whether this roster came with the image because the real one could not be fetched.
    pub fn is_baked_in(&self) -> bool {
        self.source == "baked-in"
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    #[error("cannot read the roster {}: {cause}", path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("the roster {} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("the roster {} is not what `access-manager sync` writes: {cause}", path.display())]
    Parse { path: PathBuf, cause: serde_json::Error },
    #[error(
        "the roster has schema {found}, this agent reads schema {SCHEMA}\nhint: update the agent and access-manager together"
    )]
    Schema { found: u64 },
    #[error("the roster has {what}: {found}, at most {limit} are accepted")]
    TooMany { what: &'static str, found: usize, limit: usize },
    #[error("the roster's member {member} has a key that is not an OpenSSH public key: {cause}")]
    Key { member: String, cause: russh::keys::ssh_key::Error },
    /// Guessing whose key it is would put one person's uploads into another's view.
    #[error("the roster gives the key {fingerprint} to both {first} and {second}")]
    SharedKey { fingerprint: String, first: String, second: String },
    #[error("the roster names the member {name} twice")]
    Twice { name: String },
    #[error("the roster's member {member} expires on {date:?}, which is not a date like 2027-01-31")]
    Date { member: String, date: String },
}

#[derive(Deserialize)]
struct RosterFile {
    schema: u64,
    #[serde(default)]
    commit: Option<String>,
    #[serde(default)]
    source: String,
    members: Vec<MemberEntry>,
}

#[derive(Deserialize)]
struct MemberEntry {
    name: String,
    keys: Vec<String>,
    role: Role,
    #[serde(default)]
    limits: Option<MemberLimits>,
    #[serde(default, rename = "share-with")]
    share_with: Vec<String>,
    #[serde(default)]
    expires: Option<String>,
}

/// Parses a roster as of `today` (days since 1970-01-01, UTC).
fn parse(bytes: &[u8], path: &Path, today: i64) -> Result<Roster, RosterError> {
    /// Looked at first, so that a newer format is named as such and not as a syntax error.
    #[derive(Deserialize)]
    struct Version {
        schema: u64,
    }
    let wrong = |cause| RosterError::Parse { path: path.to_owned(), cause };
    let version: Version = serde_json::from_slice(bytes).map_err(wrong)?;
    if version.schema != SCHEMA {
        return Err(RosterError::Schema { found: version.schema });
    }
    let file: RosterFile = serde_json::from_slice(bytes).map_err(wrong)?;
    debug_assert_eq!(file.schema, SCHEMA);
    if file.members.len() > MAX_MEMBERS {
        return Err(RosterError::TooMany { what: "members", found: file.members.len(), limit: MAX_MEMBERS });
    }
    let mut roster = Roster { source: file.source, commit: file.commit, ..Roster::default() };
    let mut seen = BTreeSet::new();
    for entry in file.members {
        if !seen.insert(entry.name.clone()) {
            return Err(RosterError::Twice { name: entry.name });
        }
        if entry.keys.len() > MAX_KEYS_PER_MEMBER {
            return Err(RosterError::TooMany {
                what: "keys for one member",
                found: entry.keys.len(),
                limit: MAX_KEYS_PER_MEMBER,
            });
        }
        if entry.share_with.len() > MAX_SHARES_PER_MEMBER {
            return Err(RosterError::TooMany {
                what: "names in one share-with",
                found: entry.share_with.len(),
                limit: MAX_SHARES_PER_MEMBER,
            });
        }
        if let Some(date) = &entry.expires {
            let day = days_since_1970(date)
                .ok_or_else(|| RosterError::Date { member: entry.name.clone(), date: date.clone() })?;
            // The day itself is the last one that works.
            if today > day {
                continue;
            }
        }
        let name: Arc<str> = entry.name.as_str().into();
        let member = Arc::new(Member {
            name: name.clone(),
            role: entry.role,
            limits: entry.limits.unwrap_or_default(),
            share_with: entry.share_with.iter().map(|other| other.as_str().into()).collect(),
        });
        for key in &entry.keys {
            let key = PublicKey::from_openssh(key.trim())
                .map_err(|cause| RosterError::Key { member: entry.name.clone(), cause })?;
            let fingerprint = key.fingerprint(Default::default()).to_string();
            if let Some(other) = roster.by_key.insert(key.key_data().clone(), member.clone())
                && other.name != name
            {
                return Err(RosterError::SharedKey {
                    fingerprint,
                    first: other.name.to_string(),
                    second: entry.name,
                });
            }
        }
        roster.by_name.insert(name, member);
    }
    Ok(roster)
}

/// `2027-01-31` as days since 1970-01-01 in the Gregorian calendar; `None` if it is no such date.
fn days_since_1970(date: &str) -> Option<i64> {
    let mut parts = date.splitn(3, '-');
    let mut number = |digits: usize| -> Option<i64> {
        let part = parts.next()?;
        (part.len() == digits && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let (year, month, day) = (number(4)?, number(2)?, number(2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let in_month = *length.get(usize::try_from(month - 1).ok()?)?;
    if !(1..=in_month).contains(&day) {
        return None;
    }
    // Leap days before this year, counted from year 0; 719_528 days lie between 0000-01-01 and 1970-01-01.
    let before = year - 1;
    let leap_days = if year == 0 { 0 } else { before / 4 - before / 100 + before / 400 + 1 };
    let in_year: i64 = length.iter().take((month - 1) as usize).sum();
    Some(year * 365 + leap_days + in_year + day - 1 - 719_528)
}

fn today() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs() / 86_400) as i64
}

/// What tells one version of the file from the next. Replacing by rename changes the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Expiry dates pass without the file changing.
    day: i64,
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    let modified = (meta.mtime(), meta.mtime_nsec());
    Some(Stamp { inode: meta.ino(), size: meta.len(), modified, day: today() })
}

/// Reads a roster file once.
pub fn load(path: &Path) -> Result<Roster, RosterError> {
    let read = |cause| RosterError::Read { path: path.to_owned(), cause };
    let file = std::fs::File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(RosterError::TooLarge { path: path.to_owned() });
    }
    parse(&bytes, path, today())
}

/// Loads the roster and keeps following the file. The receiver always holds the last good roster; before the first
/// good one it holds an empty roster, with which nobody can log in.
pub fn follow(path: PathBuf) -> watch::Receiver<Arc<Roster>> {
    let (sender, receiver) = watch::channel(Arc::new(Roster::default()));
    let mut last = stamp(&path);
    publish(&path, &sender);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = sender.closed() => return,
            }
            let now = stamp(&path);
            if now != last {
                last = now;
                publish(&path, &sender);
            }
        }
    });
    receiver
}

fn publish(path: &Path, sender: &watch::Sender<Arc<Roster>>) {
    match load(path) {
        Ok(roster) => {
            tracing::info!(
                members = roster.len(),
                keys = roster.by_key.len(),
                source = roster.source,
                commit = roster.commit,
                "roster loaded"
            );
            sender.send_replace(Arc::new(roster));
        }
        Err(error) => {
            let kept = sender.borrow().len();
            tracing::error!(%error, members_kept = kept, "roster not loaded; the one before it stays");
        }
    }
}

#[cfg(test)]
#[path = "roster_test.rs"]
mod roster_test;
