//! Decides which paths become Verified, and which claims become Verified as a consequence.
//!
//! There are three ways to become Verified: the caller says so, the contents have the path's content address,
//! or a trusted key signed the path. Each counts only if all references of the path are Verified.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use super::annotation::Notes;
use super::register::New;
use super::seen::Viewer;
use crate::config::StoreConfig;
use crate::error::RegisterError;
use crate::index::account::Account;
use crate::index::change::Change;
use crate::index::memory::Memory;
use crate::index::rows::{Annotation, Origins};
use crate::signing;
use crate::types::Provenance;

/// The signatures of `info` that are valid and by trusted keys.
pub(crate) fn trusted_signatures(config: &StoreConfig, info: &PathInfo) -> Vec<String> {
    if config.trusted.is_empty() || info.signatures.is_empty() {
        return Vec::new();
    }
    let fingerprint = signing::fingerprint(info);
    config.trusted.good(fingerprint.as_bytes(), &info.signatures).into_iter().cloned().collect()
}

/// Removes the unchecked fields from the info of a path that proves itself, before all members see it. `good`
/// are the [`trusted_signatures`] of `info`.
pub(crate) fn only_checked(info: &mut PathInfo, good: Vec<String>) {
    info.signatures = good;
    info.deriver = None;
    info.ultimate = false;
}

/// The box's signature of `info`, if the store has a key. Called for Verified paths only.
///
/// Content-addressed paths get none: they prove themselves to every client, so Nix requires no signature of
/// them (`ValidPathInfo::checkSignatures` in `src/libstore/path-info.cc`), and making one is most of the work
/// for a small path.
pub(super) fn signature(config: &StoreConfig, info: &PathInfo) -> Option<String> {
    let signer = config.signer.as_ref().filter(|_| info.ca.is_none())?;
    Some(signer.sign(signing::fingerprint(info).as_bytes()))
}

pub(super) fn add_signature(info: &mut PathInfo, signature: Option<String>) {
    // Ed25519 signatures are deterministic, so a signature by the same key that is there already is equal.
    info.signatures.extend(signature.filter(|s| !info.signatures.contains(s)));
}

/// Checks that all references are valid, and lets a path be Verified only if all its references are.
/// Otherwise other members would see a path whose references they do not have, or, worse, combine it with
/// different contents of these references. Each reference is looked at once, because all members wait for
/// this.
pub(super) fn settle(index: &Memory, viewer: &Viewer, items: &mut [New]) -> Result<(), RegisterError> {
    let seen = viewer.sees(index);
    // Of two items with the same path the first counts, so other items may rely only on that one.
    let mut ours: HashMap<StorePath, usize> = HashMap::with_capacity(items.len());
    for (i, New { info, .. }) in items.iter().enumerate() {
        ours.entry(info.path.clone()).or_insert(i);
    }
    for New { info, .. } in items.iter() {
        if let Some(reference) =
            info.references.iter().find(|r| !ours.contains_key(r) && seen.info(r).is_none())
        {
            let (path, reference) = (info.path.clone(), reference.clone());
            return Err(RegisterError::MissingReference { path, reference });
        }
    }
    let verified = |new: &New| new.provenance == Provenance::Verified;
    // By place in the batch: the items that are Verified only as long as the item at that place is.
    let mut leaning: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut bad = Vec::new();
    for (i, new) in items.iter().enumerate().filter(|(_, new)| verified(new)) {
        for reference in new.info.references.iter().filter(|r| !index.is_verified(r)) {
            match ours.get(reference) {
                Some(&at) if verified(&items[at]) => leaning.entry(at).or_default().push(i),
                _ => bad.push(i),
            }
        }
    }
    while let Some(i) = bad.pop() {
        if verified(&items[i]) {
            items[i].provenance = Provenance::Claimed(viewer.member.clone());
            bad.extend(leaning.remove(&ours[&items[i].info.path]).into_iter().flatten());
        }
    }
    Ok(())
}

/// Makes claims Verified after `verified` have become so: the member's own claims that prove themselves and
/// only waited for their references. Also drops the member's claims that Verified paths with the same
/// contents replace; their deriver and signatures go to `notes`.
///
/// Other members' claims wait for the next registration of those members: the duration of this must not show
/// what they have.
pub(crate) fn follow(
    index: &Memory,
    config: &StoreConfig,
    viewer: &Viewer,
    verified: Vec<Arc<PathInfo>>,
    notes: &mut Notes,
) -> Vec<Change> {
    let seen = viewer.sees(index);
    // Paths that are Verified by now, or about to be.
    let mut queued: HashSet<StorePath> = verified.iter().map(|info| info.path.clone()).collect();
    let mut done: HashSet<StorePath> = HashSet::new();
    // Number of references that a claim still waits for. Each reference is counted once, however many become
    // Verified here.
    let mut missing: HashMap<StorePath, usize> = HashMap::new();
    let mut changes = Vec::new();
    let mut todo = verified;
    while let Some(new) = todo.pop() {
        if let Some(claim) = seen.own_claim(&new.path).filter(|entry| entry.info.nar_hash == new.nar_hash) {
            notes.add(&new, Annotation::of(&claim.info));
            changes.push(Change::DropClaim { member: viewer.member.clone(), path: new.path.clone() });
        }
        let was_missing = !index.is_verified(&new.path) && done.insert(new.path.clone());
        for referrer in seen.own_referrers(&new.path) {
            let Some(entry) = seen.own_claim(referrer).filter(|entry| entry.proven) else { continue };
            if queued.contains(referrer) || index.is_verified(referrer) {
                continue;
            }
            let left = match missing.get_mut(referrer) {
                Some(left) => {
                    *left = left.saturating_sub(usize::from(was_missing));
                    *left
                }
                None => {
                    let sound = |p: &StorePath| p == referrer || done.contains(p) || index.is_verified(p);
                    let left = entry.info.references.iter().filter(|r| !sound(r)).count();
                    missing.insert(referrer.clone(), left);
                    left
                }
            };
            if left > 0 {
                continue;
            }
            let good = trusted_signatures(config, &entry.info);
            let Some(upgrade) = upgrade(index, config, viewer, PathInfo::clone(&entry.info), good) else {
                continue;
            };
            if let Change::AddPath { info, .. } = &upgrade {
                queued.insert(info.path.clone());
                todo.push(Arc::clone(info));
            }
            changes.push(upgrade);
        }
    }
    changes
}

/// Makes a claim that proves itself Verified. `good` are its [`trusted_signatures`].
pub(crate) fn upgrade(
    index: &Memory,
    config: &StoreConfig,
    viewer: &Viewer,
    mut info: PathInfo,
    good: Vec<String>,
) -> Option<Change> {
    let object_size = index.object_size(&info.nar_hash)?;
    only_checked(&mut info, good);
    let made = signature(config, &info);
    add_signature(&mut info, made);
    let (info, provenance) = (Arc::new(info), Provenance::Verified);
    let (origins, account) = (Origins::default(), Account::opened_by(viewer.payer.member.clone()));
    Some(Change::AddPath { info, provenance, proven: true, object_size, origins, account })
}
