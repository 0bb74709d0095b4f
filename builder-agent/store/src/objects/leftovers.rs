//! Repairs the object files that an interrupted process left, at the start.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix_derivation::nixbase32;
use sha2::{Digest, Sha256};

use super::directory::object_name;
use super::trees;
use crate::error::FileError;
use crate::format::object::{Object, ObjectError};

/// Removes the files in `dir` whose names are `unwanted`; returns their number.
pub(crate) fn clear(dir: &Path, unwanted: impl Fn(&[u8]) -> bool) -> Result<usize, FileError> {
    let failed = |e| FileError::new("clean up", dir, e);
    let mut count = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if unwanted(entry.file_name().as_bytes()) {
            trees::remove(&entry.path()).map_err(failed)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Removes unfinished objects; returns their number.
pub(crate) fn clear_unfinished(root: &Path) -> Result<usize, FileError> {
    clear(&root.join("tmp"), |_| true)
}

/// Removes all objects.
pub(crate) fn forget(root: &Path) -> Result<(), FileError> {
    for dir in ["objects", "new", "tmp"] {
        clear(&root.join(dir), |_| true)?;
    }
    Ok(())
}

/// The outcome for the files below `new/`.
#[derive(Default)]
pub(crate) struct Settled {
    /// Hashed and found whole.
    pub(crate) whole: HashSet<[u8; 32]>,
    /// Hashed and removed, because their contents were wrong.
    pub(crate) damaged: usize,
    /// Removed, because no row names them.
    pub(crate) unneeded: usize,
}

/// Moves the files below `new/` that a row needs to their final names, and removes the others (`used`: the
/// sizes of the needed files). With `doubt` they are hashed first.
///
/// The header of a file says which object it is. It is written last, and the row only after it, so a file
/// that a row needs is complete, unless the machine was booted in between.
pub(crate) fn settle_all(
    root: &Path,
    used: &HashMap<[u8; 32], u64>,
    doubt: bool,
) -> Result<Settled, FileError> {
    let dir = root.join("new");
    let failed = |e| FileError::new("clean up", &dir, e);
    if fs::read_dir(&dir).map_err(failed)?.next().is_some() {
        // A file that the marker covers is replaced only by a durable one.
        let opened = File::open(&dir).map_err(failed)?;
        rustix::fs::syncfs(&opened).map_err(|e| FileError::new("sync", root, e))?;
    }
    let mut settled = Settled::default();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let place = entry.map_err(failed)?.path();
        let header = read(&place)?;
        let needed = header.filter(|(hash, size)| used.get(hash) == Some(size)).map(|(hash, _)| hash);
        match needed {
            Some(hash) if doubt && !is_whole(&place, &hash)? => settled.damaged += 1,
            Some(hash) => {
                let to = root.join("objects").join(object_name(&hash));
                fs::rename(&place, &to).map_err(|e| FileError::new("move an object to", &to, e))?;
                if doubt {
                    settled.whole.insert(hash);
                }
                continue;
            }
            None => settled.unneeded += 1,
        }
        trees::remove(&place).map_err(failed)?;
    }
    Ok(settled)
}

/// Whether the object's file contains the NAR that it is named after. False also if it cannot be read.
pub(crate) fn object_is_whole(root: &Path, nar_hash: &[u8; 32]) -> Result<bool, FileError> {
    is_whole(&root.join("objects").join(object_name(nar_hash)), nar_hash)
}

/// The object that a file claims to be, and its size.
fn read(place: &Path) -> Result<Option<([u8; 32], u64)>, FileError> {
    let failed = |e: io::Error| FileError::new("read", place, e);
    let file = File::open(place).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    match Object::open(Arc::new(file)) {
        Ok(object) => Ok(Some((*object.nar_hash(), size))),
        Err(ObjectError::Damaged(_)) => Ok(None),
        // A file that is too short is not an error of the disk.
        Err(ObjectError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(ObjectError::Io(e)) => Err(failed(e)),
    }
}

/// Whether the file is an object whose NAR has this hash. False also if it cannot be read.
fn is_whole(place: &Path, nar_hash: &[u8; 32]) -> Result<bool, FileError> {
    let file = File::open(place).map_err(|e| FileError::new("read", place, e))?;
    let Ok(object) = Object::open(Arc::new(file)) else { return Ok(false) };
    if object.nar_hash() != nar_hash {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    let read = io::copy(&mut object.into_nar(), &mut hash);
    Ok(read.is_ok() && <[u8; 32]>::from(hash.finalize()) == *nar_hash)
}

/// Sizes of all objects on disk. Files with other names are left alone.
pub(crate) fn object_sizes(root: &Path) -> Result<HashMap<[u8; 32], u64>, FileError> {
    let dir = root.join("objects");
    let failed = |e| FileError::new("list", &dir, e);
    let mut sizes = HashMap::new();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hash = entry.file_name().to_str().and_then(|n| nixbase32::decode(n.as_bytes()).ok());
        match hash.and_then(|h| <[u8; 32]>::try_from(h).ok()) {
            Some(hash) => {
                sizes.insert(hash, entry.metadata().map_err(failed)?.len());
            }
            None => tracing::warn!(file = %entry.path().display(), "not an object, left alone"),
        }
    }
    Ok(sizes)
}
