//! Making objects visible: checks, durability, one transaction, then the maps in memory; in this order, so that
//! whoever sees a path can rely on its contents after any crash.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix_derivation::{StorePath, nixbase32};

use crate::error::{FileError, RegisterError};
use crate::index::Index;
use crate::ingest::{Ingested, Staged};
use crate::store::Inner;
use crate::types::{Member, PathInfo, Provenance};

/// Most references of one path; the largest in nixpkgs have a few thousand.
const MAX_REFERENCES: usize = 100_000;
/// Most signatures of one path, and bytes of one signature; an Ed25519 signature with its key name is about 120.
const MAX_SIGNATURES: usize = 64;
const MAX_SIGNATURE_BYTES: usize = 1024;
/// Longest `ca` field; the longest real one, SHA-512, has about 120 bytes.
const MAX_CA_BYTES: usize = 256;

/// From this many new objects on, one `syncfs` is cheaper than an fsync of each, although it also waits for what
/// others are writing.
const SYNC_ALL_FROM: usize = 8;

/// Whether `info` may be registered for `ingested` at all.
pub(crate) fn check(
    member: &Member,
    ingested: &Ingested,
    info: &PathInfo,
    provenance: &Provenance,
) -> Result<(), RegisterError> {
    if let Provenance::Claimed(claimed) = provenance
        && claimed != member
    {
        return Err(RegisterError::ForeignMember { claimed: claimed.clone(), view: member.clone() });
    }
    if info.nar_hash != ingested.nar_hash || info.nar_size != ingested.nar_size {
        return Err(RegisterError::HashMismatch {
            path: info.path.clone(),
            announced: nixbase32::encode(&info.nar_hash),
            announced_size: info.nar_size,
            got: nixbase32::encode(&ingested.nar_hash),
            got_size: ingested.nar_size,
        });
    }
    let counts = [
        ("references", info.references.len(), MAX_REFERENCES),
        ("signatures", info.signatures.len(), MAX_SIGNATURES),
        (
            "bytes in a signature",
            info.signatures.iter().map(String::len).max().unwrap_or(0),
            MAX_SIGNATURE_BYTES,
        ),
        ("bytes of content address", info.ca.as_ref().map_or(0, String::len), MAX_CA_BYTES),
    ];
    for (what, count, limit) in counts {
        if count > limit {
            return Err(RegisterError::TooMany { path: info.path.clone(), what, count, limit });
        }
    }
    if let Some(bad) = info.signatures.iter().find(|s| !s.contains(':') || s.contains(char::is_whitespace)) {
        return Err(RegisterError::BadSignature { path: info.path.clone(), signature: bad.clone() });
    }
    Ok(())
}

/// What becomes of one member of a batch.
struct Outcome {
    staged: Staged,
    /// Valid already: this info counts, and the new object goes.
    existing: Option<Arc<PathInfo>>,
}

pub(crate) fn register(
    store: &Inner,
    member: &Member,
    mut batch: Vec<Staged>,
) -> Result<Vec<Arc<PathInfo>>, RegisterError> {
    {
        let index = store.index();
        check_references(&index, member, &batch)?;
        settle_provenance(&index, member, &mut batch);
    }
    let mut outcomes: Vec<Outcome> =
        batch.into_iter().map(|staged| Outcome { staged, existing: None }).collect();
    find_existing(&store.index(), member, &mut outcomes);

    // Nobody holds a lock while the disk works.
    let new = || outcomes.iter().filter(|o| o.existing.is_none());
    if new().count() >= SYNC_ALL_FROM {
        store.sync_file_system()?;
    } else {
        for outcome in new() {
            let ingested = &outcome.staged.ingested;
            ingested
                .file
                .sync_data()
                .map_err(|e| FileError::new("sync object", ingested.temporary.path(), e))?;
        }
    }

    let mut db = store.db();
    // Somebody may have been faster; only the one who holds `db` adds to the index.
    find_existing(&store.index(), member, &mut outcomes);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
    let mut rows = Vec::new();
    let mut infos = Vec::with_capacity(outcomes.len());
    let mut first: HashMap<StorePath, Arc<PathInfo>> = HashMap::new();
    for Outcome { staged: Staged { ingested, mut info, provenance }, existing } in outcomes {
        // The same path twice in one batch: the first one counts.
        if let Some(existing) = existing.or_else(|| first.get(&info.path).cloned()) {
            infos.push(existing);
            continue;
        }
        let object_size = ingested
            .file
            .metadata()
            .map_err(|e| FileError::new("examine object", ingested.temporary.path(), e))?
            .len();
        store.keep(ingested.temporary, &info.nar_hash)?;
        if info.registration_time == 0 {
            info.registration_time = now;
        }
        let info = Arc::new(info);
        first.insert(info.path.clone(), Arc::clone(&info));
        infos.push(Arc::clone(&info));
        rows.push((info, provenance, object_size));
    }
    if !rows.is_empty() {
        // The names must be durable before a row mentions them.
        store.sync_objects()?;
        db.insert(rows.iter().map(|(info, provenance, size)| (&**info, provenance, *size)))?;
        store.publish(rows.into_iter().map(|(info, provenance, _)| (info, provenance)).collect());
    }
    Ok(infos)
}

fn check_references(index: &Index, member: &Member, batch: &[Staged]) -> Result<(), RegisterError> {
    let seen = index.seen_by(member);
    let ours: HashSet<&StorePath> = batch.iter().map(|s| &s.info.path).collect();
    for Staged { info, .. } in batch {
        if let Some(reference) = info.references.iter().find(|r| !ours.contains(r) && seen.info(r).is_none())
        {
            let (path, reference) = (info.path.clone(), reference.clone());
            return Err(RegisterError::MissingReference { path, reference });
        }
    }
    Ok(())
}

/// A path stays Verified only if all it refers to is. Otherwise others would see a path whose references they
/// do not have, or, worse, combine it with their own idea of those references.
fn settle_provenance(index: &Index, member: &Member, batch: &mut [Staged]) {
    loop {
        let verified: HashSet<StorePath> = batch
            .iter()
            .filter(|s| s.provenance == Provenance::Verified)
            .map(|s| s.info.path.clone())
            .collect();
        let mut changed = false;
        for staged in batch.iter_mut().filter(|s| s.provenance == Provenance::Verified) {
            if !staged.info.references.iter().all(|r| verified.contains(r) || index.is_verified(r)) {
                staged.provenance = Provenance::Claimed(member.clone());
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

fn find_existing(index: &Index, member: &Member, outcomes: &mut [Outcome]) {
    let seen = index.seen_by(member);
    for outcome in outcomes {
        let path = &outcome.staged.info.path;
        outcome.existing = match &outcome.staged.provenance {
            _ if seen.is_verified(path) => seen.info(path).cloned(),
            Provenance::Verified => None,
            Provenance::Claimed(_) => seen.own_claim(path).cloned(),
        };
    }
}
