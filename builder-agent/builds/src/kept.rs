//! Logs of builds that ended, kept so that they can be read later and shown with a reused result.
//!
//! ```text
//! results/<name>          the log of one run, by the name that its record has in the store
//! everybody/<drv>         logs of builds whose outputs everybody sees
//! members/<member>/<drv>  logs of builds that this member asked for, and logs that this member uploaded
//! ```
//!
//! The names of one log are hard links: a log takes its space once, and exists as long as one of its names. Each folder
//! has the same budget. When it is used up, the oldest log of whoever has the most in it is removed, so one member's logs
//! never displace those of others who have less. A crash can lose a log; nothing depends on it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix_derivation::StorePath;
use rustix::fs::{AtFlags, CWD, linkat};
use sha2::{Digest, Sha256};
use shares::budget::{Budgets, Charge, OverBudget};
use thiserror::Error;

/// The folder of the logs of runs.
const RESULTS: &str = "results";
/// Smallest size that a log counts for, even an empty one: an inode and a name.
const LEAST: u64 = 4096;
/// Longest member name that is used as a folder name unchanged.
const LONGEST_NAME: usize = 100;

/// The readers of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader<'a> {
    /// Everybody: the outputs are Verified, and so were all inputs.
    Everybody,
    Member(&'a str),
}

/// The folder of logs. One per box.
#[derive(Debug)]
pub struct KeptLogs {
    folder: PathBuf,
    /// Budget of each folder below.
    max_bytes: u64,
    /// The folders that have been read, by name; each is read when it is first used.
    shelves: Mutex<HashMap<PathBuf, Shelf>>,
    /// Bytes of the logs that clients are sending, by who pays for them.
    arriving: Budgets,
    next: AtomicU64,
}

/// Whose run wrote a log: a part of a hash of the member's identity. Two members with the same one share their part of a
/// folder, and nothing else.
type Owner = u64;

/// The owner of logs of which nobody knows whose they are, and of all logs in the folder of one member.
const NOBODY: Owner = 0;

/// The contents of a folder.
#[derive(Debug, Default)]
struct Shelf {
    /// By age, the oldest first.
    logs: BTreeMap<u64, Placed>,
    ages: HashMap<String, u64>,
    owners: HashMap<Owner, Owned>,
    bytes: u64,
}

/// A log in a folder.
#[derive(Debug)]
struct Placed {
    name: String,
    owner: Owner,
    size: u64,
}

/// What one owner has in a folder.
#[derive(Debug, Default)]
struct Owned {
    ages: BTreeSet<u64>,
    bytes: u64,
}

/// See [`KeptLogs::arriving`].
#[derive(Debug)]
pub struct Arriving {
    file: File,
    size: u64,
    max: u64,
    /// What the logs of its payer that arrive at this moment take together.
    together: Charge,
}

/// A log that a client sends cannot be kept.
#[derive(Debug, Error)]
pub enum ArrivalError {
    #[error("it is longer than {0} bytes (the box's `limits.max-log-mib`)")]
    TooLong(u64),
    #[error(
        "the logs that you are sending have more than {} MiB together (the box's `limits.max-kept-logs-mib`); send fewer at a time",
        .0 >> 20
    )]
    TooMuch(u64),
    #[error("{0}")]
    Box(#[from] io::Error),
}

impl Arriving {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ArrivalError> {
        let more = bytes.len() as u64;
        self.size += more;
        if self.size > self.max {
            return Err(ArrivalError::TooLong(self.max));
        }
        self.together.grow(more).map_err(|over| match over {
            OverBudget::Member { limit, .. } | OverBudget::Box { limit, .. } => ArrivalError::TooMuch(limit),
        })?;
        Ok(self.file.write_all(bytes)?)
    }
}

impl KeptLogs {
    /// Logs below `folder`, which is created when it is first needed.
    #[must_use]
    pub fn new(folder: PathBuf, max_bytes: u64) -> Self {
        // Names start at the current time, so those of one process never repeat those of the process before.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
        let next = AtomicU64::new(start);
        Self {
            folder,
            max_bytes,
            shelves: Mutex::default(),
            arriving: Budgets::new(u64::MAX, max_bytes),
            next,
        }
    }

    /// Keeps the complete log in `file`, which may have no name, of a run for which the member with this identity pays.
    /// Returns the name for [`KeptLogs::give`].
    pub fn keep(&self, file: &File, payer: &str) -> io::Result<String> {
        let owner = owner_of(payer);
        let name = format!("{:016x}-{owner:016x}", self.next.fetch_add(1, Ordering::Relaxed));
        let shelf = Path::new(RESULTS);
        let mut shelves = self.open_shelf(shelf)?;
        let to = self.folder.join(shelf).join(&name);
        self::name(file, &to)?;
        let size = file.metadata()?.len();
        self.place(&mut shelves, shelf, name.clone(), owner, size);
        Ok(name)
    }

    /// Lets `reader` find the log `name` by its derivation. Replaces an older log.
    pub fn give(&self, name: &str, reader: Reader<'_>, drv: &StorePath) -> io::Result<()> {
        let shelf = reader.shelf();
        let mut shelves = self.open_shelf(&shelf)?;
        let from = self.folder.join(RESULTS).join(name);
        let to = self.folder.join(&shelf).join(drv.to_basename());
        let (old, new) = (fs::metadata(&to), fs::metadata(&from)?);
        if old.is_ok_and(|old| old.ino() == new.ino()) {
            return Ok(());
        }
        // A hard link cannot replace a file; a rename can.
        let temporary = self.folder.join(&shelf).join(".new");
        let _ = fs::remove_file(&temporary);
        fs::hard_link(&from, &temporary)?;
        fs::rename(&temporary, &to)?;
        let owner = if reader == Reader::Everybody { owner_in(name) } else { NOBODY };
        self.place(&mut shelves, &shelf, drv.to_basename(), owner, new.len());
        Ok(())
    }

    /// A log that a client sends, for which the member with this identity pays. While it arrives it has no name and no lock is
    /// held, since the client decides how long that takes. For the same reason the logs that a member's clients send at one
    /// moment have no more room than the member's kept logs.
    pub fn arriving(&self, payer: &str, max: u64) -> io::Result<Arriving> {
        fs::create_dir_all(&self.folder)?;
        let file = tempfile::tempfile_in(&self.folder)?;
        let together = self.arriving.of(&payer.into()).charge(0, "a log").map_err(io::Error::other)?;
        Ok(Arriving { file, size: 0, max, together })
    }

    /// Keeps a log that a member uploaded, for that member alone. As in Nix, an existing log stays.
    pub fn add(&self, member: &str, drv: &StorePath, log: Arriving) -> io::Result<()> {
        let Arriving { file, size, .. } = &log;
        let shelf = Reader::Member(member).shelf();
        let mut shelves = self.open_shelf(&shelf)?;
        let to = self.folder.join(&shelf).join(drv.to_basename());
        if to.exists() {
            return Ok(());
        }
        name(file, &to)?;
        self.place(&mut shelves, &shelf, drv.to_basename(), NOBODY, *size);
        Ok(())
    }

    /// The log of a build of `drv`, if there is one that `member` may read.
    #[must_use]
    pub fn find(&self, member: &str, drv: &StorePath) -> Option<File> {
        let open =
            |reader: Reader<'_>| File::open(self.folder.join(reader.shelf()).join(drv.to_basename())).ok();
        open(Reader::Member(member)).or_else(|| open(Reader::Everybody))
    }

    /// Removes the logs that only this member may read.
    pub fn forget(&self, member: &str) -> io::Result<()> {
        let shelf = Reader::Member(member).shelf();
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        shelves.remove(&shelf);
        match fs::remove_dir_all(self.folder.join(shelf)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The log of this name.
    pub fn open(&self, name: &str) -> io::Result<File> {
        File::open(self.folder.join(RESULTS).join(name))
    }

    /// Locks the folders and reads this one if needed. The lock is held while files come and go, so that the sizes stay
    /// right.
    fn open_shelf(&self, name: &Path) -> io::Result<MutexGuard<'_, HashMap<PathBuf, Shelf>>> {
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        if !shelves.contains_key(name) {
            let folder = self.folder.join(name);
            fs::create_dir_all(&folder)?;
            // The other folders have names of derivations. So with a restart it is forgotten whose the logs for everybody are.
            let owner_in: fn(&str) -> Owner =
                if name == Path::new(RESULTS) { owner_in } else { |_: &str| NOBODY };
            shelves.insert(name.to_owned(), Shelf::read(&folder, owner_in)?);
        }
        Ok(shelves)
    }

    /// Accounts for a new file, and makes room for it.
    fn place(
        &self,
        shelves: &mut MutexGuard<'_, HashMap<PathBuf, Shelf>>,
        name: &Path,
        file: String,
        owner: Owner,
        size: u64,
    ) {
        let Some(shelf) = shelves.get_mut(name) else { return };
        shelf.put(file, owner, size.max(LEAST));
        // The newest log stays, even if it is larger than the budget. So a folder has its budget and one log at most.
        while shelf.bytes > self.max_bytes
            && let Some(oldest) = shelf.take_from_who_has_most(self.max_bytes)
        {
            if let Err(error) = fs::remove_file(self.folder.join(name).join(&oldest)) {
                tracing::warn!(%error, log = oldest, "cannot remove an old build log");
            }
        }
    }
}

fn owner_of(payer: &str) -> Owner {
    let hash = Sha256::digest(payer.as_bytes());
    hash.iter().take(8).fold(0, |number, byte| number << 8 | Owner::from(*byte))
}

/// The owner in a name of `results`. Those of older versions have none.
fn owner_in(name: &str) -> Owner {
    name.split_once('-').and_then(|(_, owner)| Owner::from_str_radix(owner, 16).ok()).unwrap_or(NOBODY)
}

/// Gives a name to a file that has none.
fn name(file: &File, to: &Path) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    if linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW).is_err() {
        // The file system does not support that, so the contents are copied.
        let mut copy = OpenOptions::new().write(true).create_new(true).open(to)?;
        io::copy(&mut File::open(&from)?, &mut copy)?;
    }
    Ok(())
}

impl Reader<'_> {
    fn shelf(self) -> PathBuf {
        let Self::Member(name) = self else { return "everybody".into() };
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if plain && !name.is_empty() && name.len() <= LONGEST_NAME {
            return Path::new("members").join(name);
        }
        // A name that is used unchanged contains no dot, so this one cannot equal it.
        let hash = nix_derivation::nixbase32::encode(&Sha256::digest(name.as_bytes()));
        Path::new("members").join(format!("sha256.{hash}"))
    }
}

impl Shelf {
    fn read(folder: &Path, owner_in: fn(&str) -> Owner) -> io::Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                found.push(((meta.mtime(), meta.mtime_nsec()), name, meta.len().max(LEAST)));
            }
        }
        found.sort();
        let mut shelf = Self::default();
        for (_, name, size) in found {
            let owner = owner_in(&name);
            shelf.put(name, owner, size);
        }
        Ok(shelf)
    }

    /// Adds the newest file. Replaces an older one of the same name.
    fn put(&mut self, name: String, owner: Owner, size: u64) {
        let age = self.logs.last_key_value().map_or(0, |(last, _)| last + 1);
        if let Some(old) = self.ages.insert(name.clone(), age) {
            self.remove(old);
        }
        self.logs.insert(age, Placed { name, owner, size });
        let owned = self.owners.entry(owner).or_default();
        owned.ages.insert(age);
        owned.bytes += size;
        self.bytes += size;
    }

    /// Takes the oldest log of the owner who has the most. The newest of all is not taken; if it alone makes its owner the
    /// one who has the most, the others have no less than the budget.
    fn take_from_who_has_most(&mut self, budget: u64) -> Option<String> {
        let weight = |owned: &&Owned| (owned.bytes, Reverse(owned.ages.first().copied()));
        let (newest, placed) = self.logs.last_key_value()?;
        let mut most = self.owners.values().max_by_key(weight)?;
        if most.ages.first() == Some(newest) {
            if self.bytes - placed.size <= budget {
                return None;
            }
            let others = self.owners.iter().filter(|(owner, _)| **owner != placed.owner);
            most = others.map(|(_, owned)| owned).max_by_key(weight)?;
        }
        let oldest = *most.ages.first()?;
        let name = self.remove(oldest)?.name;
        self.ages.remove(&name);
        Some(name)
    }

    fn remove(&mut self, age: u64) -> Option<Placed> {
        let placed = self.logs.remove(&age)?;
        self.bytes -= placed.size;
        if let Some(owned) = self.owners.get_mut(&placed.owner) {
            owned.bytes -= placed.size;
            owned.ages.remove(&age);
            if owned.ages.is_empty() {
                self.owners.remove(&placed.owner);
            }
        }
        Some(placed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn drv(name: &str) -> StorePath {
        let mut digest = [1; 20];
        name.bytes().zip(&mut digest).for_each(|(from, to)| *to = from);
        StorePath::from_parts(digest, &format!("{name}.drv")).expect("a path")
    }

    fn kept(logs: &KeptLogs, payer: &str, text: &str) -> String {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0).expect("room");
        logs.keep(&file, payer).expect("kept")
    }

    fn text(logs: &KeptLogs, member: &str, drv: &StorePath) -> Option<String> {
        let mut text = String::new();
        logs.find(member, drv)?.read_to_string(&mut text).expect("readable");
        Some(text)
    }

    /// A log that a client has sent.
    fn sent(logs: &KeptLogs, text: &[u8]) -> Arriving {
        let mut log = logs.arriving("alice", 100).expect("a log");
        log.push(text).expect("short enough");
        log
    }

    #[test]
    fn a_log_is_found_by_those_it_was_given_to() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let logs = KeptLogs::new(dir.path().to_owned(), 1 << 20);
        let (private, public) = (kept(&logs, "alice", "private\n"), kept(&logs, "alice", "public\n"));
        logs.give(&private, Reader::Member("alice"), &drv("one")).expect("given");
        logs.give(&public, Reader::Everybody, &drv("two")).expect("given");
        assert_eq!(text(&logs, "alice", &drv("one")).as_deref(), Some("private\n"));
        assert_eq!(text(&logs, "bob", &drv("one")), None);
        assert_eq!(text(&logs, "bob", &drv("two")).as_deref(), Some("public\n"));
        // The next process finds them as well.
        let logs = KeptLogs::new(dir.path().to_owned(), 1 << 20);
        assert_eq!(text(&logs, "alice", &drv("one")).as_deref(), Some("private\n"));
        // The log of a later build takes the place of the earlier one; an uploaded one does not.
        let again = kept(&logs, "alice", "again\n");
        logs.give(&again, Reader::Member("alice"), &drv("one")).expect("given");
        logs.add("alice", &drv("one"), sent(&logs, b"uploaded\n")).expect("taken");
        assert_eq!(text(&logs, "alice", &drv("one")).as_deref(), Some("again\n"));
    }

    #[test]
    fn the_oldest_logs_of_the_same_member_make_room() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let logs = KeptLogs::new(dir.path().to_owned(), 3 * LEAST);
        logs.add("alice", &drv("hers"), sent(&logs, b"")).expect("taken");
        let mut long = logs.arriving("alice", 100).expect("a log");
        long.push(&[b'x'; 100]).expect("as much as allowed");
        assert!(matches!(long.push(b"x"), Err(ArrivalError::TooLong(100))));
        assert!(logs.find("alice", &drv("long")).is_none());
        for name in ["a", "b", "c", "d", "e"] {
            logs.add("bob", &drv(name), sent(&logs, b"")).expect("taken");
        }
        let there: Vec<bool> =
            ["a", "b", "c", "d", "e"].iter().map(|n| logs.find("bob", &drv(n)).is_some()).collect();
        assert_eq!(there, [false, false, true, true, true]);
        assert!(logs.find("alice", &drv("hers")).is_some());
    }

    #[test]
    fn the_logs_that_a_member_sends_at_one_moment_have_no_more_room_than_those_that_are_kept() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let logs = KeptLogs::new(dir.path().to_owned(), 100);
        let begin = |payer: &str| logs.arriving(payer, 100).expect("a log");
        let (mut one, mut two, mut bobs) = (begin("alice"), begin("alice"), begin("bob"));
        one.push(&[b'x'; 60]).expect("room");
        assert!(matches!(two.push(&[b'x'; 41]), Err(ArrivalError::TooMuch(100))));
        two.push(&[b'x'; 40]).expect("just as much");
        bobs.push(&[b'x'; 80]).expect("bob has room of his own");
        // Both a log that is kept and one that is given up make room.
        logs.add("alice", &drv("one"), one).expect("taken");
        drop(two);
        begin("alice").push(&[b'x'; 80]).expect("room again");
        drop(bobs);
        assert!(["alice", "bob"].iter().all(|payer| logs.arriving.of(&(*payer).into()).held() == 0));
    }

    #[test]
    fn in_a_folder_of_all_who_has_the_most_makes_room_also_after_a_restart() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let open = || KeptLogs::new(dir.path().to_owned(), 4 * LEAST);
        let mut logs = open();
        let bobs = kept(&logs, "bob", "bob's\n");
        logs.give(&bobs, Reader::Everybody, &drv("bobs")).expect("given");
        let mut alices = Vec::new();
        for n in 0..8 {
            alices.push(kept(&logs, "alice", "alice's\n"));
            logs.give(&alices[n], Reader::Everybody, &drv(&format!("alice{n}"))).expect("given");
            if n == 3 {
                logs = open();
            }
        }
        let there: Vec<bool> = alices.iter().map(|name| logs.open(name).is_ok()).collect();
        assert_eq!(there, [false, false, false, false, false, true, true, true]);
        assert!(logs.open(&bobs).is_ok(), "bob has less");
        // A log that is larger than all the room stays until the next one comes, and displaces nobody's.
        let large = kept(&logs, "carol", &"x".repeat(5 * LEAST as usize));
        assert!([&bobs, &large].into_iter().all(|name| logs.open(name).is_ok()));
        let larger = kept(&logs, "dora", &"x".repeat(6 * LEAST as usize));
        assert!(logs.open(&large).is_err());
        assert!([&bobs, &larger].into_iter().all(|name| logs.open(name).is_ok()));
        kept(&logs, "alice", "alice's\n");
        assert!(logs.open(&larger).is_err() && logs.open(&bobs).is_ok());
        // A log of an older version, whose name says nothing of an owner.
        std::fs::write(dir.path().join("results/0000000000000001"), "old\n").expect("written");
        assert!(open().open("0000000000000001").is_ok());
    }

    #[test]
    fn no_member_name_leads_out_of_its_folder() {
        for name in ["..", "a/b", "", ".", "\0", &"x".repeat(300)] {
            let shelf = Reader::Member(name).shelf();
            let mut parts = shelf.components();
            assert_eq!(parts.next(), Some(std::path::Component::Normal("members".as_ref())));
            assert!(
                matches!(parts.next(), Some(std::path::Component::Normal(part)) if part.len() < 100),
                "{name}"
            );
            assert_eq!(parts.next(), None);
        }
    }
}
