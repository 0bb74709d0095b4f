//! Unpacked copies of objects, for the namespace backend, which binds directories instead of mounting images.
//!
//! ```text
//! <root>/trees/boot                        boot in which the copies were made
//! <root>/trees/verified-<NAR hash>         copy of a Verified path
//! <root>/trees/claimed-<who>-<NAR hash>    copy for one member; if it were shared, its speed would reveal it
//! <root>/trees/new-<number>                being made
//! <root>/trees/old-<number>                being removed, also objects
//! ```
//!
//! A cache: nothing here is synced, so after a power loss all of it is removed. Everything is created
//! relative to open descriptors, in folders that only the agent can write, and never through a symlink.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::PathInfo;
use nix_derivation::nixbase32;
use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, fchmod, futimens, mkdirat, openat, symlinkat, utimensat,
};
use sha2::{Digest, Sha256};

use super::directory::object_name;
use super::removal::Removal;
use super::{ObjectFailure, Objects};
use crate::error::{FileError, TreeError};
use crate::format::object::{Kind, Object, ObjectError, WalkGuard};
use crate::types::{Member, Provenance};

const MTIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

/// Removes unfinished copies, and all copies that a power loss may have damaged.
pub(crate) fn recover(trees: &Path) -> Result<(), FileError> {
    let failed = |e| FileError::new("clean up", trees, e);
    let marker = trees.join("boot");
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let same = !boot.is_empty() && fs::read(&marker).is_ok_and(|b| b == boot);
    for entry in fs::read_dir(trees).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let half = [&b"new-"[..], b"old-"].iter().any(|start| name.as_bytes().starts_with(start));
        if entry.path() != marker && (!same || half) {
            remove(&entry.path()).map_err(|e| FileError::new("remove", entry.path(), e))?;
        }
    }
    fs::write(&marker, boot).map_err(|e| FileError::new("write", marker, e))
}

/// The name of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Tree {
    nar_hash: [u8; 32],
    /// `None`: the copy of a Verified path.
    member: Option<Member>,
}

impl Tree {
    /// The copy of a path with these contents.
    pub(crate) fn of(nar_hash: [u8; 32], provenance: &Provenance) -> Self {
        let member = match provenance {
            Provenance::Verified => None,
            Provenance::Claimed(member) => Some(member.clone()),
        };
        Self { nar_hash, member }
    }

    fn file_name(&self) -> String {
        let hash = object_name(&self.nar_hash);
        match &self.member {
            None => format!("verified-{hash}"),
            Some(member) => {
                // A member's name may have any characters; its hash is a valid file name.
                let who = Sha256::digest(member.name());
                format!("claimed-{}-{hash}", nixbase32::encode(&who[..20]))
            }
        }
    }
}

/// The unpacked copies of one store. They are on this machine, wherever the objects are.
pub(crate) struct Trees {
    /// `<root>/trees`
    place: PathBuf,
    next: AtomicU64,
    removal: Arc<Removal>,
}

impl Trees {
    pub(crate) fn new(place: PathBuf, removal: &Arc<Removal>) -> Self {
        Self { place, next: AtomicU64::new(0), removal: Arc::clone(removal) }
    }

    /// Whether there is such a copy.
    pub(crate) fn has(&self, tree: &Tree) -> bool {
        fs::symlink_metadata(self.place.join(tree.file_name())).is_ok()
    }

    /// The place of the copy. Unpacks the object in `objects` if there is no copy yet.
    pub(crate) fn unpacked(
        &self,
        objects: &dyn Objects,
        info: &PathInfo,
        provenance: &Provenance,
    ) -> Result<PathBuf, TreeError> {
        let place = self.place.join(Tree::of(info.nar_hash, provenance).file_name());
        if fs::symlink_metadata(&place).is_ok() {
            return Ok(place);
        }
        let damaged = |why| TreeError::Damaged { path: info.path.clone(), why };
        let object = objects.open(&info.nar_hash).map_err(|e| match e {
            ObjectFailure::File(e) => TreeError::File(e),
            ObjectFailure::Damaged(why) => damaged(why),
        })?;
        match self.unpack(&object, &place) {
            Ok(()) => Ok(place),
            Err(ObjectError::Io(e)) => Err(FileError::new("unpack to", place, e).into()),
            Err(ObjectError::Damaged(why)) => Err(damaged(why)),
        }
    }

    fn unpack(&self, object: &Object, place: &Path) -> Result<(), ObjectError> {
        let name = format!("new-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let new = self.place.join(&name);
        let made = File::open(&self.place).map_err(ObjectError::Io).and_then(|dir| {
            let mut unpack = Unpack { object, guard: object.walk_guard() };
            unpack.node(dir.as_fd(), name.as_bytes(), object.root(), 0)
        });
        let moved = made.and_then(|()| match fs::rename(&new, place) {
            // Another thread was faster and made the same copy.
            Err(_) if fs::symlink_metadata(place).is_ok() => Ok(()),
            other => other.map_err(ObjectError::Io),
        });
        if fs::symlink_metadata(&new).is_ok()
            && let Err(e) = remove(&new)
        {
            tracing::warn!(tree = %new.display(), "cannot remove half-made tree: {e}");
        }
        moved
    }

    /// The copies that are there, each with the contents that it has. Unfinished ones are left out.
    pub(crate) fn list(&self) -> Vec<([u8; 32], PathBuf)> {
        let entries = fs::read_dir(&self.place).into_iter().flatten().flatten();
        let copy = |name: &str| {
            let hash = name
                .strip_prefix("verified-")
                .or_else(|| Some(name.strip_prefix("claimed-")?.split_once('-')?.1))?;
            nixbase32::decode(hash.as_bytes()).ok()?.try_into().ok()
        };
        entries.filter_map(|entry| Some((copy(entry.file_name().to_str()?)?, entry.path()))).collect()
    }

    /// Removes the copy at this place, one of [`Trees::list`].
    pub(crate) fn discard_at(&self, place: &Path) {
        self.removal.discard(place);
    }

    /// See [`Removal::wait`].
    pub(crate) fn wait_for_removal(&self, longest: Duration) {
        self.removal.wait(longest);
    }

    /// Removes a copy, if there is one.
    pub(crate) fn discard(&self, tree: &Tree) {
        self.removal.discard(&self.place.join(tree.file_name()));
    }
}

struct Unpack<'a> {
    object: &'a Object,
    guard: WalkGuard,
}

impl Unpack<'_> {
    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        nid: u64,
        depth: usize,
    ) -> Result<(), ObjectError> {
        self.guard.enter(depth)?;
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.object.inode(nid)? {
            Kind::File { executable, at, size } => {
                let fd = openat(parent, name, create, Mode::from_raw_mode(0o600)).map_err(io::Error::from)?;
                let file = File::from(fd);
                let mut written = 0;
                self.object.pieces(at, size, |piece| {
                    file.write_all_at(piece, written)?;
                    written += piece.len() as u64;
                    Ok(())
                })?;
                let mode = if executable { 0o555 } else { 0o444 };
                finish(file.into(), mode)?;
            }
            Kind::Symlink { target } => {
                symlinkat(&target[..], parent, name).map_err(io::Error::from)?;
                utimensat(parent, name, &MTIME, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?;
            }
            Kind::Directory(mut dir) => {
                mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(io::Error::from)?;
                let open = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(parent, name, open, Mode::empty()).map_err(io::Error::from)?;
                while let Some(entry) = self.object.next_entry(&mut dir)? {
                    let object = self.object;
                    self.node(fd.as_fd(), object.name(&entry), entry.nid, depth + 1)?;
                }
                finish(fd, 0o555)?;
            }
        }
        Ok(())
    }
}

fn finish(fd: OwnedFd, mode: u32) -> io::Result<()> {
    fchmod(&fd, Mode::from_raw_mode(mode))?;
    futimens(&fd, &MTIME)?;
    Ok(())
}

/// Removes a copy. Its directories are read-only; root can delete in them, other users have to change their
/// modes first.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn make_writable(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_writable(&entry.path())?;
        }
    }
    Ok(())
}
