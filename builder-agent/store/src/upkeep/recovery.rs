//! Repairs the store at its start, however the previous process ended: afterwards no view shows anything
//! incomplete.
//!
//! As long as the machine has not been booted again, all written data is in the page cache, and a killed
//! process only left files to be moved to their places or removed. After a boot, data newer than the marker
//! (`marker`) may be cut off, full of zeros, or gone, in any combination: every such object is hashed, and an
//! object with a wrong hash, with all paths that refer to it, is no longer valid. A store that never was
//! flushed is emptied.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use nix_derivation::StorePath;

use super::marker::Marker;
use crate::config::Durability;
use crate::error::{DatabaseError, FileError, OpenError};
use crate::index::change::Change;
use crate::index::database::{Database, Loaded, Record};
use crate::index::memory::Memory;
use crate::index::sqlite::{OpenFailure, SCHEMA, Sqlite};
use crate::objects::leftovers as files;
use crate::types::Provenance;

/// The repairs at the opening of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The machine was booted after a process that flushes nothing: the store was emptied.
    pub forgotten: bool,
    /// The index could not be read: it was moved aside as `index.damaged`, and the store was emptied.
    pub damaged_index: bool,
    /// Rows of the index that could not be understood, removed.
    pub unreadable_rows: usize,
    /// Objects newer than the last flush, hashed because of a boot since then.
    pub checked_objects: usize,
    /// The checked objects whose contents were wrong, removed.
    pub damaged_objects: usize,
    /// Temporary files of interrupted writes, removed.
    pub temporary_files: usize,
    /// Objects without a row, removed.
    pub unregistered_objects: usize,
    /// Rows without an object, or with a reference that was lost, removed.
    pub lost_paths: usize,
    /// Realisations, roots and annotations of lost paths, removed.
    pub lost_records: usize,
    /// Results without outputs, removed: their objects were lost, or a deletion had not removed the results
    /// yet.
    pub stale_results: usize,
}

/// Removes everything that a boot should forget.
pub(crate) fn forget(root: &Path) -> Result<(), FileError> {
    files::forget(root)?;
    files::clear(root, |name| name.starts_with(b"index.sqlite")).map(|_| ())
}

/// Keeps a damaged index for inspection, in place of an earlier one. Without the index the owners of objects
/// are not known, so all objects are removed.
fn set_aside(root: &Path) -> Result<(), FileError> {
    let failed = |e| FileError::new("set aside the index in", root, e);
    files::clear(root, |name| name.starts_with(b"index.damaged"))?;
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

/// The contents of the store, after the start has dropped all that is not in order.
pub(crate) struct Found {
    pub(crate) database: Sqlite,
    pub(crate) memory: Memory,
    pub(crate) recovery: Recovery,
    /// Objects that no row names. They are removed only when the absence of their rows is durable.
    pub(crate) unregistered: Vec<[u8; 32]>,
}

/// Repairs the store below `root`. `marker` is the previous process's marker.
pub(crate) fn recover(
    root: &Path,
    durability: Durability,
    marker: Option<&Marker>,
) -> Result<Found, OpenError> {
    let mut recovery = Recovery { temporary_files: files::clear_unfinished(root)?, ..Recovery::default() };
    let same_boot = marker.is_some_and(Marker::is_of_this_boot);
    if marker.is_some_and(|m| m.durability == Durability::None) && !same_boot {
        tracing::warn!(store = %root.display(), "this store does not survive a boot: starting with an empty one");
        forget(root)?;
        recovery.forgotten = true;
    }
    let (mut database, Loaded { paths, rest, unreadable }) = open_index(root, durability, &mut recovery)?;
    recovery.unreadable_rows = unreadable;
    let through = marker.map_or(0, |marker| marker.through);
    database.number_from(through);

    let sizes = find_objects(root, &paths, (!same_boot).then_some(through), &mut recovery)?;
    let (kept, lost) = split(paths, &sizes);
    let failed = |source| OpenError::Index { path: root.join(FILE), source };
    drop_lost(&mut database, &lost, &mut recovery).map_err(failed)?;
    let named: HashSet<[u8; 32]> = kept.iter().map(|r| r.info.nar_hash).collect();
    let unregistered: Vec<[u8; 32]> = sizes.into_keys().filter(|hash| !named.contains(hash)).collect();
    recovery.unregistered_objects = unregistered.len();
    let memory = fill(kept, rest, &mut database, &mut recovery).map_err(failed)?;
    if recovery != Recovery::default() {
        tracing::info!(?recovery, "cleaned up after an interrupted process");
    }
    Ok(Found { database, memory, recovery, unregistered })
}

/// The index's file below the root.
const FILE: &str = "index.sqlite";

/// Opens the index and reads it, or begins an empty one if it is damaged.
fn open_index(
    root: &Path,
    durability: Durability,
    recovery: &mut Recovery,
) -> Result<(Sqlite, Loaded), OpenError> {
    let path = root.join(FILE);
    let opened = match Sqlite::open(&path, durability) {
        Err(OpenFailure::Damaged(e)) => {
            tracing::error!(
                "the path index {} is damaged ({e}): it is moved aside, and the store starts empty",
                path.display()
            );
            set_aside(root)?;
            recovery.damaged_index = true;
            Sqlite::open(&path, durability)
        }
        opened => opened,
    };
    opened.map_err(|failure| match failure {
        OpenFailure::Newer(found) => OpenError::Schema { path, found, known: SCHEMA },
        OpenFailure::Damaged(source) | OpenFailure::Other(source) => OpenError::Index { path, source },
    })
}

/// Sizes of all objects whose files can be trusted. With `doubted_after`, objects that newer rows need are
/// hashed; a damaged object gets a size that no row has.
fn find_objects(
    root: &Path,
    rows: &[Record],
    doubted_after: Option<i64>,
    recovery: &mut Recovery,
) -> Result<HashMap<[u8; 32], u64>, FileError> {
    let used: HashMap<[u8; 32], u64> = rows.iter().map(|r| (r.info.nar_hash, r.object_size)).collect();
    let settled = files::settle_all(root, &used, doubted_after.is_some())?;
    recovery.temporary_files += settled.unneeded;
    recovery.checked_objects += settled.whole.len() + settled.damaged;
    recovery.damaged_objects += settled.damaged;
    let mut sizes = files::object_sizes(root)?;
    let Some(through) = doubted_after else { return Ok(sizes) };
    let newer = rows.iter().filter(|r| r.id > through).map(|r| r.info.nar_hash);
    for hash in newer.collect::<HashSet<_>>().difference(&settled.whole) {
        if !sizes.contains_key(hash) {
            continue;
        }
        recovery.checked_objects += 1;
        if !files::object_is_whole(root, hash)? {
            recovery.damaged_objects += 1;
            // Not valid from here on; its file is removed with those that no row names.
            sizes.insert(*hash, u64::MAX);
        }
    }
    Ok(sizes)
}

fn drop_lost(database: &mut Sqlite, lost: &[Record], recovery: &mut Recovery) -> Result<(), DatabaseError> {
    if lost.is_empty() {
        return Ok(());
    }
    tracing::error!(
        paths = lost.len(),
        "objects are missing, cut off or damaged; their paths are no longer valid"
    );
    let ids: Vec<i64> = lost.iter().map(|r| r.id).collect();
    recovery.lost_paths = lost.len();
    database.delete(&ids)
}

/// Builds the maps in memory. Changes that name something missing are dropped from the database, too.
fn fill(
    rows: Vec<Record>,
    rest: Vec<Change>,
    database: &mut Sqlite,
    recovery: &mut Recovery,
) -> Result<Memory, DatabaseError> {
    let mut memory = Memory::default();
    for Record { info, provenance, proven, object_size, origins, account, .. } in rows {
        let info = Arc::new(info);
        memory.apply(Change::AddPath { info, provenance, proven, object_size, origins, account });
    }
    let mut stale = Vec::new();
    for change in rest {
        match undo_if_stale(&memory, &change) {
            Some(undo) => stale.push(undo),
            None => memory.apply(change),
        }
    }
    if !stale.is_empty() {
        database.write(&mut stale.iter())?;
        recovery.stale_results = stale.iter().filter(|c| matches!(c, Change::DropResult { .. })).count();
        recovery.lost_records = stale.len() - recovery.stale_results;
    }
    Ok(memory)
}

/// The change that removes `change` from the database, if it names something that is missing.
fn undo_if_stale(index: &Memory, change: &Change) -> Option<Change> {
    match change {
        Change::PutResult { key, record } => record
            .objects()
            .any(|object| index.paths_with(object) == 0)
            .then_some(Change::DropResult { key: *key }),
        Change::PutRoot { member, name, path } => (!index.has(member, path))
            .then(|| Change::DropRoot { member: member.clone(), name: name.clone() }),
        Change::AddRealisation { id, provenance: Provenance::Claimed(member), realisation } => (!index
            .has(member, &realisation.path))
        .then(|| Change::DropRealisation { id: id.clone(), member: Some(member.clone()) }),
        Change::AddRealisation { id, provenance: Provenance::Verified, realisation } => (!index
            .is_verified(&realisation.path))
        .then(|| Change::DropRealisation { id: id.clone(), member: None }),
        Change::Annotate { member, path, annotation } => (index.paths_with(&annotation.nar_hash) == 0)
            .then(|| Change::DropAnnotation { member: member.clone(), path: path.clone() }),
        _ => None,
    }
}

/// Separates the rows that can be kept: their object is whole, and all their references are kept.
fn split(records: Vec<Record>, sizes: &HashMap<[u8; 32], u64>) -> (Vec<Record>, Vec<Record>) {
    let (mut kept, mut lost): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|r| sizes.get(&r.info.nar_hash) == Some(&r.object_size));
    // The loss of one path can take a reference from others; usually nothing is lost and this ends at once.
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
