//! Logs of builds that ended, kept so that they can be read later and shown with a reused result.
//!
//! ```text
//! results/<name>          the log of one run, by the name that its record has in the store
//! everybody/<drv>         logs of builds whose outputs everybody sees
//! members/<member>/<drv>  logs of builds that only this member knows of, and logs that this member uploaded
//! ```
//!
//! The names of one log are hard links: a log takes its space once, and exists as long as one of its names. Each folder
//! has the same budget; when it is used up, the oldest logs are removed, so one member's logs never displace another's.
//! A crash can lose a log; nothing depends on it.

use std::collections::{BTreeMap, HashMap};
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
    next: AtomicU64,
}

/// The contents of a folder.
#[derive(Debug, Default)]
struct Shelf {
    /// Name and size, oldest first.
    by_age: BTreeMap<u64, (String, u64)>,
    ages: HashMap<String, u64>,
    bytes: u64,
}

/// See [`KeptLogs::arriving`].
#[derive(Debug)]
pub struct Arriving {
    file: File,
    size: u64,
    max: u64,
}

impl Arriving {
    /// Takes the next bytes. A log larger than its limit is refused with `FileTooLarge`.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        if self.size > self.max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.write_all(bytes)
    }
}

impl KeptLogs {
    /// Logs below `folder`, which is created when it is first needed.
    #[must_use]
    pub fn new(folder: PathBuf, max_bytes: u64) -> Self {
        // Names start at the current time, so those of one process never repeat those of the process before.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
        Self { folder, max_bytes, shelves: Mutex::default(), next: AtomicU64::new(start) }
    }

    /// Keeps the complete log in `file`, which may have no name. Returns the name for [`KeptLogs::give`].
    pub fn keep(&self, file: &File) -> io::Result<String> {
        let name = format!("{:016x}", self.next.fetch_add(1, Ordering::Relaxed));
        let shelf = Path::new("results");
        let mut shelves = self.open_shelf(shelf)?;
        let to = self.folder.join(shelf).join(&name);
        self::name(file, &to)?;
        let size = file.metadata()?.len();
        self.place(&mut shelves, shelf, name.clone(), size);
        Ok(name)
    }

    /// Lets `reader` find the log `name` by its derivation. Replaces an older log.
    pub fn give(&self, name: &str, reader: Reader<'_>, drv: &StorePath) -> io::Result<()> {
        let shelf = reader.shelf();
        let mut shelves = self.open_shelf(&shelf)?;
        let from = self.folder.join("results").join(name);
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
        self.place(&mut shelves, &shelf, drv.to_basename(), new.len());
        Ok(())
    }

    /// A log that a client sends. While it arrives it has no name and no lock is held, since the client decides how
    /// long that takes.
    pub fn arriving(&self, max: u64) -> io::Result<Arriving> {
        fs::create_dir_all(&self.folder)?;
        Ok(Arriving { file: tempfile::tempfile_in(&self.folder)?, size: 0, max })
    }

    /// Keeps a log that a member uploaded, for that member alone. As in Nix, an existing log stays.
    pub fn add(&self, member: &str, drv: &StorePath, log: Arriving) -> io::Result<()> {
        let Arriving { file, size, .. } = log;
        let shelf = Reader::Member(member).shelf();
        let mut shelves = self.open_shelf(&shelf)?;
        let to = self.folder.join(&shelf).join(drv.to_basename());
        if to.exists() {
            return Ok(());
        }
        name(&file, &to)?;
        self.place(&mut shelves, &shelf, drv.to_basename(), size);
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
        File::open(self.folder.join("results").join(name))
    }

    /// Locks the folders and reads this one if needed. The lock is held while files come and go, so that the sizes stay
    /// right.
    fn open_shelf(&self, name: &Path) -> io::Result<MutexGuard<'_, HashMap<PathBuf, Shelf>>> {
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        if !shelves.contains_key(name) {
            let folder = self.folder.join(name);
            fs::create_dir_all(&folder)?;
            shelves.insert(name.to_owned(), Shelf::read(&folder)?);
        }
        Ok(shelves)
    }

    /// Accounts for a new file, and makes room for it.
    fn place(
        &self,
        shelves: &mut MutexGuard<'_, HashMap<PathBuf, Shelf>>,
        name: &Path,
        file: String,
        size: u64,
    ) {
        let Some(shelf) = shelves.get_mut(name) else { return };
        shelf.put(file, size.max(LEAST));
        // The newest log stays, even if it is larger than the budget.
        while shelf.bytes > self.max_bytes
            && shelf.by_age.len() > 1
            && let Some(oldest) = shelf.take_oldest()
        {
            if let Err(error) = fs::remove_file(self.folder.join(name).join(&oldest)) {
                tracing::warn!(%error, log = oldest, "cannot remove an old build log");
            }
        }
    }
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
    fn read(folder: &Path) -> io::Result<Self> {
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
        found.into_iter().for_each(|(_, name, size)| shelf.put(name, size));
        Ok(shelf)
    }

    /// Adds the newest file. Replaces an older one of the same name.
    fn put(&mut self, name: String, size: u64) {
        let age = self.by_age.last_key_value().map_or(0, |(last, _)| last + 1);
        if let Some(old) = self.ages.insert(name.clone(), age)
            && let Some((_, size)) = self.by_age.remove(&old)
        {
            self.bytes -= size;
        }
        self.by_age.insert(age, (name, size));
        self.bytes += size;
    }

    fn take_oldest(&mut self) -> Option<String> {
        let (_, (name, size)) = self.by_age.pop_first()?;
        self.ages.remove(&name);
        self.bytes -= size;
        Some(name)
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

    fn kept(logs: &KeptLogs, text: &str) -> String {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0).expect("room");
        logs.keep(&file).expect("kept")
    }

    fn text(logs: &KeptLogs, member: &str, drv: &StorePath) -> Option<String> {
        let mut text = String::new();
        logs.find(member, drv)?.read_to_string(&mut text).expect("readable");
        Some(text)
    }

    /// A log that a client has sent.
    fn sent(logs: &KeptLogs, text: &[u8]) -> Arriving {
        let mut log = logs.arriving(100).expect("a log");
        log.push(text).expect("short enough");
        log
    }

    #[test]
    fn a_log_is_found_by_those_it_was_given_to() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let logs = KeptLogs::new(dir.path().to_owned(), 1 << 20);
        let (private, public) = (kept(&logs, "private\n"), kept(&logs, "public\n"));
        logs.give(&private, Reader::Member("alice"), &drv("one")).expect("given");
        logs.give(&public, Reader::Everybody, &drv("two")).expect("given");
        assert_eq!(text(&logs, "alice", &drv("one")).as_deref(), Some("private\n"));
        assert_eq!(text(&logs, "bob", &drv("one")), None);
        assert_eq!(text(&logs, "bob", &drv("two")).as_deref(), Some("public\n"));
        // The next process finds them as well.
        let logs = KeptLogs::new(dir.path().to_owned(), 1 << 20);
        assert_eq!(text(&logs, "alice", &drv("one")).as_deref(), Some("private\n"));
        // The log of a later build takes the place of the earlier one; an uploaded one does not.
        let again = kept(&logs, "again\n");
        logs.give(&again, Reader::Member("alice"), &drv("one")).expect("given");
        logs.add("alice", &drv("one"), sent(&logs, b"uploaded\n")).expect("taken");
        assert_eq!(text(&logs, "alice", &drv("one")).as_deref(), Some("again\n"));
    }

    #[test]
    fn the_oldest_logs_of_the_same_member_make_room() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let logs = KeptLogs::new(dir.path().to_owned(), 3 * LEAST);
        logs.add("alice", &drv("hers"), sent(&logs, b"")).expect("taken");
        let mut long = logs.arriving(100).expect("a log");
        long.push(&[b'x'; 100]).expect("as much as allowed");
        let long = long.push(b"x").expect_err("too long");
        assert_eq!(long.kind(), io::ErrorKind::FileTooLarge);
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
