//! The agent's files that every job sees, and the directory over which jobs mount: one directory for all jobs
//! of a process. Jobs see it through read-only mounts; no data of a job is ever written there.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

/// Beginning of the directory's name; two numbers follow, the process id and a counter.
const PREFIX: &str = "barnraiser-job-";

/// A directory that is removed when dropped. Its lock shows that a process still uses it.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    lock: OwnedFd,
}

impl Scratch {
    /// Creates a directory below `parent`.
    pub fn new(parent: &Path) -> io::Result<Scratch> {
        let scratch = unique_dir(parent)?;
        fs::set_permissions(&scratch.dir, Permissions::from_mode(0o711))?;
        fs::create_dir(scratch.dir.join("stage"))?;
        let etc = scratch.dir.join("etc");
        fs::create_dir(&etc)?;
        for (name, contents) in guest::etc::FILES {
            fs::write(etc.join(name), contents)?;
            fs::set_permissions(etc.join(name), Permissions::from_mode(0o444))?;
        }
        fs::set_permissions(&etc, Permissions::from_mode(0o555))?;
        Ok(scratch)
    }

    /// The directory of another program, which has passed the lock on.
    pub fn taken_over(dir: PathBuf, lock: OwnedFd) -> Scratch {
        Scratch { dir, lock }
    }

    /// For [`Scratch::taken_over`]: the directory, and the number of its lock.
    pub fn written_down(&self) -> (PathBuf, RawFd) {
        (self.dir.clone(), self.lock.as_raw_fd())
    }

    /// The files of /etc.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// An empty directory. Each job mounts what it needs over it, in a mount namespace of its own.
    pub fn stage(&self) -> PathBuf {
        self.dir.join("stage")
    }

    /// False if another program has removed a part of it, as cleaners of temporary directories do.
    pub fn is_whole(&self) -> bool {
        let files = guest::etc::FILES.iter().map(|(name, _)| self.etc().join(name));
        self.stage().is_dir() && files.into_iter().all(|file| file.exists())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// mkdir fails if the name exists, so an attacker who guesses the name can only cause another try.
fn unique_dir(parent: &Path) -> io::Result<Scratch> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match fs::create_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        // A sweep may have found the directory before it was locked; then the sweep removes it.
        if let Some(lock) = lock(&dir)
            && dir.exists()
        {
            return Ok(Scratch { dir, lock });
        }
    }
}

/// None if another process holds the lock, or if `dir` is no directory.
fn lock(dir: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).ok()?;
    flock(&fd, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(fd)
}

/// Removes the directories of killed processes. Other users may write in `parent`, so only our own
/// directories count.
pub fn sweep(parent: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|metadata| metadata.uid() == own);
        if ours && let Some(lock) = lock(&entry.path()) {
            drop(Scratch { dir: entry.path(), lock });
        }
    }
}
