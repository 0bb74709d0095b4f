//! What a start does about whatever ended the process before: nothing that is served afterwards is half there.
//!
//! As long as the machine has not been booted again, all that was written is in the page cache, and a killed process only
//! left files to be put in their places or removed. After a boot, what is newer than the marker (`marker`) may be
//! cut off, full of zeros, or gone, in any combination: every such object is hashed, and whatever does not hash, with all that
//! refers to it, is no longer valid. A store that never was flushed is emptied.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix_derivation::{StorePath, nixbase32};
use sha2::{Digest, Sha256};

use crate::error::{FileError, OpenError};
use crate::format::object::{Object, ObjectError};
use crate::index::change::Change;
use crate::index::database::{Db, Loaded, Record, SCHEMA};
use crate::index::memory::Index;
use crate::objects::trees;
use crate::store::object_name;
use crate::types::{Durability, Provenance};
use crate::upkeep::marker::Marker;

/// What opening had to clean up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// A boot came after a process that flushes nothing: the store was emptied.
    pub forgotten: bool,
    /// The index could not be read at all: it is beside the new one, as `index.damaged`, and the store was emptied.
    pub damaged_index: bool,
    /// Rows of the index that could not be understood, removed.
    pub unreadable_rows: usize,
    /// Objects newer than the last flush, hashed because of a boot since then.
    pub checked_objects: usize,
    /// Those of them that were not what they should be, removed.
    pub damaged_objects: usize,
    /// Temporary files of interrupted writes, removed.
    pub temporary_files: usize,
    /// Objects without a row, removed.
    pub unregistered_objects: usize,
    /// Rows without an object, or with a reference that was lost this way, removed.
    pub lost_paths: usize,
    /// Realisations, roots and annotations that named what was lost, removed.
    pub lost_records: usize,
    /// Results without outputs, removed: lost like those, or of a deletion that was not tidied up.
    pub stale_results: usize,
}

/// Removes all that a boot was to forget.
pub(crate) fn forget(root: &Path) -> Result<(), FileError> {
    for dir in ["objects", "new", "tmp"] {
        clear(&root.join(dir), |_| true)?;
    }
    clear(root, |name| name.starts_with(b"index.sqlite")).map(|_| ())
}

/// Removes those files in `dir` whose names are `unwanted`; returns how many.
fn clear(dir: &Path, unwanted: impl Fn(&[u8]) -> bool) -> Result<usize, FileError> {
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

/// Opens the index and reads it; the schema it has if that is a newer one.
fn load(path: &Path, durability: Durability) -> rusqlite::Result<Result<(Db, Loaded), i64>> {
    match Db::open(path, durability)? {
        Ok(mut db) => {
            let loaded = db.load()?;
            Ok(Ok((db, loaded)))
        }
        Err(found) => Ok(Err(found)),
    }
}

/// Whether the file itself is at fault. A disk that cannot be read or is full is for the operator, and may pass.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Keeps a damaged index for whoever wants to look, in place of an earlier one. Without it nothing says whose an object
/// is: all of them go.
fn set_aside(root: &Path) -> Result<(), FileError> {
    let failed = |e| FileError::new("set aside the index in", root, e);
    clear(root, |name| name.starts_with(b"index.damaged"))?;
    for ending in ["", "-wal"] {
        match fs::rename(
            root.join(format!("index.sqlite{ending}")),
            root.join(format!("index.damaged{ending}")),
        ) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    Ok(())
}

/// What a start found, once everything that is not in order is dropped.
pub(crate) struct Found {
    pub(crate) db: Db,
    pub(crate) index: Index,
    pub(crate) recovery: Recovery,
    /// Objects that no row names. Removed only when that is durable.
    pub(crate) unregistered: Vec<[u8; 32]>,
}

/// Repairs what is below `root`. `marker` is what the process before left.
pub(crate) fn recover(
    root: &Path,
    durability: Durability,
    marker: Option<&Marker>,
) -> Result<Found, OpenError> {
    let mut recovery =
        Recovery { temporary_files: clear(&root.join("tmp"), |_| true)?, ..Recovery::default() };
    let same_boot = marker.is_some_and(Marker::is_of_this_boot);
    if marker.is_some_and(|m| m.durability == Durability::None) && !same_boot {
        tracing::warn!(store = %root.display(), "this store does not survive a boot: starting with an empty one");
        forget(root)?;
        recovery.forgotten = true;
    }
    let db_path = root.join("index.sqlite");
    let failed = |source| OpenError::Index { path: db_path.clone(), source };
    let opened = match load(&db_path, durability) {
        Err(e) if is_damage(&e) => {
            tracing::error!(
                "the path index {} is damaged ({e}): it is moved aside, and the store starts empty",
                db_path.display()
            );
            set_aside(root)?;
            recovery.damaged_index = true;
            load(&db_path, durability)
        }
        opened => opened,
    };
    let (mut db, Loaded { paths: records, rest, unreadable, .. }) = match opened.map_err(failed)? {
        Ok(opened) => opened,
        Err(found) => return Err(OpenError::Schema { path: db_path.clone(), found, known: SCHEMA }),
    };
    recovery.unreadable_rows = unreadable;
    let through = marker.map_or(0, |marker| marker.through);
    db.number_from(through);

    let objects = root.join("objects");
    let doubt = Doubt { all: !same_boot };
    let used: HashMap<[u8; 32], u64> = records.iter().map(|r| (r.info.nar_hash, r.object_size)).collect();
    let settled = settle_all(root, &used, &doubt, &mut recovery)?;
    let mut sizes = object_sizes(&objects)?;
    if doubt.all {
        let newer = records.iter().filter(|r| r.id > through).map(|r| r.info.nar_hash);
        for hash in newer.collect::<HashSet<_>>().difference(&settled) {
            if !sizes.contains_key(hash) {
                continue;
            }
            recovery.checked_objects += 1;
            if !is_whole(&objects.join(object_name(hash)), hash)? {
                recovery.damaged_objects += 1;
                // Not valid from here on; its file goes with those that no row names.
                sizes.insert(*hash, u64::MAX);
            }
        }
    }
    let (kept, lost) = split(records, &sizes);
    if !lost.is_empty() {
        tracing::error!(
            paths = lost.len(),
            "objects are missing, cut off or damaged; their paths are no longer valid"
        );
        let ids: Vec<i64> = lost.iter().map(|r| r.id).collect();
        db.delete(&ids).map_err(failed)?;
        recovery.lost_paths = lost.len();
    }
    let named: HashSet<[u8; 32]> = kept.iter().map(|r| r.info.nar_hash).collect();
    let unregistered: Vec<[u8; 32]> = sizes.into_keys().filter(|hash| !named.contains(hash)).collect();
    recovery.unregistered_objects = unregistered.len();
    let mut index = Index::default();
    for Record { info, provenance, proven, object_size, origins, .. } in kept {
        let info = Arc::new(info);
        index.apply(Change::AddPath { info, provenance, proven, object_size, origins });
    }
    let mut stale = Vec::new();
    for change in rest {
        match undo_if_stale(&index, &change) {
            Some(undo) => stale.push(undo),
            None => index.apply(change),
        }
    }
    if !stale.is_empty() {
        db.write(&stale).map_err(failed)?;
        recovery.stale_results = stale.iter().filter(|c| matches!(c, Change::DropResult { .. })).count();
        recovery.lost_records = stale.len() - recovery.stale_results;
    }
    if recovery != Recovery::default() {
        tracing::info!(?recovery, "cleaned up after an interrupted process");
    }
    Ok(Found { db, index, recovery, unregistered })
}

/// Whether files can be believed that the marker does not vouch for.
struct Doubt {
    all: bool,
}

/// Gives the files below `new/` that a row needs their names, and removes the others. Returns what was hashed.
///
/// Which object a file is says its header. It is written last, and a row only after it, so that a file that a row needs is
/// complete, unless there was a boot in between.
fn settle_all(
    root: &Path,
    used: &HashMap<[u8; 32], u64>,
    doubt: &Doubt,
    recovery: &mut Recovery,
) -> Result<HashSet<[u8; 32]>, FileError> {
    let dir = root.join("new");
    let failed = |e| FileError::new("clean up", &dir, e);
    if fs::read_dir(&dir).map_err(failed)?.next().is_some() {
        // What the marker vouches for is replaced by durable things only.
        let opened = File::open(&dir).map_err(failed)?;
        rustix::fs::syncfs(&opened).map_err(|e| FileError::new("sync", root, e))?;
    }
    let mut hashed = HashSet::new();
    for entry in fs::read_dir(&dir).map_err(failed)? {
        let place = entry.map_err(failed)?.path();
        let header = read(&place)?;
        let needed = header.filter(|(hash, size)| used.get(hash) == Some(size)).map(|(hash, _)| hash);
        match needed {
            Some(hash) if doubt.all && !checked(&place, &hash, recovery)? => {}
            Some(hash) => {
                let to = root.join("objects").join(object_name(&hash));
                fs::rename(&place, &to).map_err(|e| FileError::new("move an object to", &to, e))?;
                if doubt.all {
                    hashed.insert(hash);
                }
                continue;
            }
            None => recovery.temporary_files += 1,
        }
        trees::remove(&place).map_err(failed)?;
    }
    Ok(hashed)
}

fn checked(place: &Path, hash: &[u8; 32], recovery: &mut Recovery) -> Result<bool, FileError> {
    recovery.checked_objects += 1;
    let whole = is_whole(place, hash)?;
    recovery.damaged_objects += usize::from(!whole);
    Ok(whole)
}

/// Which object a file says that it is, and its size.
fn read(place: &Path) -> Result<Option<([u8; 32], u64)>, FileError> {
    let failed = |e: io::Error| FileError::new("read", place, e);
    let file = File::open(place).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    match Object::open(Arc::new(file)) {
        Ok(object) => Ok(Some((*object.nar_hash(), size))),
        Err(ObjectError::Damaged(_)) => Ok(None),
        // A short file is not an error of the disk.
        Err(ObjectError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(ObjectError::Io(e)) => Err(failed(e)),
    }
}

/// Whether the file is an object whose NAR has this hash. What cannot be read is not.
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

/// How to remove from the disk what names something that is not there.
fn undo_if_stale(index: &Index, change: &Change) -> Option<Change> {
    match change {
        Change::PutResult { key, record } => record
            .objects()
            .any(|object| index.paths_with(object) == 0)
            .then_some(Change::DropResult { key: *key }),
        Change::PutRoot { member, name, path } => index
            .seen_by(member, &[])
            .info(path)
            .is_none()
            .then(|| Change::DropRoot { member: member.clone(), name: name.clone() }),
        Change::AddRealisation { id, provenance: Provenance::Claimed(member), realisation } => index
            .seen_by(member, &[])
            .info(&realisation.path)
            .is_none()
            .then(|| Change::DropRealisation { id: id.clone(), member: Some(member.clone()) }),
        Change::AddRealisation { id, provenance: Provenance::Verified, realisation } => (!index
            .is_verified(&realisation.path))
        .then(|| Change::DropRealisation { id: id.clone(), member: None }),
        Change::Annotate { member, path, annotation } => (index.paths_with(&annotation.nar_hash) == 0)
            .then(|| Change::DropAnnotation { member: member.clone(), path: path.clone() }),
        _ => None,
    }
}

/// Sizes of all objects on disk. Files that we did not name are left alone.
fn object_sizes(dir: &Path) -> Result<HashMap<[u8; 32], u64>, FileError> {
    let failed = |e| FileError::new("list", dir, e);
    let mut sizes = HashMap::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
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

/// Separates the rows that can be kept: their object is there, whole, and so are all their references.
fn split(records: Vec<Record>, sizes: &HashMap<[u8; 32], u64>) -> (Vec<Record>, Vec<Record>) {
    let (mut kept, mut lost): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|r| sizes.get(&r.info.nar_hash) == Some(&r.object_size));
    // Losing one path can take a reference from others; usually nothing is lost and this ends at once.
    while !lost.is_empty() {
        let there: HashSet<(StorePath, Provenance)> =
            kept.iter().map(|r| (r.info.path.clone(), r.provenance.clone())).collect();
        let whole = |r: &Record| {
            r.info.references.iter().all(|p| {
                there.contains(&(p.clone(), Provenance::Verified))
                    || there.contains(&(p.clone(), r.provenance.clone()))
            })
        };
        let before = lost.len();
        let (still, gone): (Vec<_>, Vec<_>) = kept.into_iter().partition(whole);
        kept = still;
        lost.extend(gone);
        if lost.len() == before {
            break;
        }
    }
    (kept, lost)
}
