//! Copies of other members' claims: a path that a member builds upon stays when its owner stops sharing or
//! deletes it.
//!
//! Copies are charged like other claims, and refused like them: the inputs of a build before the build starts.

use nix_derivation::StorePath;

use std::sync::Arc;

use super::limits::within_limits;
use super::origins::trace;
use super::quota;
use super::seen::{Viewer, Whose};
use crate::error::{MissingPath, RegisterError};
use crate::index::account::Account;
use crate::index::change::Change;
use crate::index::commit::{About, Plan, commit};
use crate::index::memory::Memory;
use crate::types::Provenance;
use crate::upkeep::base::Base;

/// Copies those of `paths` to the member's own layer that other members share.
pub(crate) fn own(base: &Arc<Base>, viewer: &Viewer, paths: Vec<StorePath>) -> Result<(), RegisterError> {
    make_room(base, viewer, paths.iter())?;
    let adds = paths.iter().map(|path| *path.digest()).collect();
    let viewer = viewer.clone();
    commit(&base.index, About { adds, ..About::default() }, move |index| {
        let changes = make_own(index, &viewer, &paths)?;
        quota::within(index, &viewer, &changes)?;
        Ok((Plan { changes, ..Plan::default() }, ()))
    })
}

/// Bytes of the copies that `paths` need.
pub(crate) fn bytes<'a>(
    index: &Memory,
    viewer: &Viewer,
    paths: impl Iterator<Item = &'a StorePath>,
) -> Result<u64, RegisterError> {
    if viewer.others.is_empty() || viewer.payer.quotas.is_empty() {
        return Ok(0);
    }
    let sizes = make_own(index, viewer, paths)?.into_iter().map(|copy| match copy {
        Change::AddPath { object_size, .. } => object_size,
        _ => 0,
    });
    Ok(sizes.sum())
}

/// Makes room within the payer's limits for the copies that `paths` need; fails if there is none.
pub(crate) fn make_room<'a>(
    base: &Arc<Base>,
    viewer: &Viewer,
    paths: impl Iterator<Item = &'a StorePath>,
) -> Result<(), RegisterError> {
    let bytes = bytes(&base.index.read(), viewer, paths)?;
    quota::make_room(base, viewer, bytes)
}

/// Copies the rows of other members' claims that `paths` and their closures need, so that they stay when the
/// owner stops sharing or deletes them.
pub(crate) fn make_own<'a>(
    index: &Memory,
    viewer: &Viewer,
    paths: impl IntoIterator<Item = &'a StorePath>,
) -> Result<Vec<Change>, RegisterError> {
    let seen = viewer.sees(index);
    let shared = |p: &&StorePath| matches!(seen.entry(p), Some((_, Whose::Shared(_))));
    let paths: Vec<&StorePath> = paths.into_iter().filter(shared).collect();
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let missing = |m: MissingPath| RegisterError::MissingReference { path: paths[0].clone(), reference: m.0 };
    let closure = seen.closure(paths.iter().copied()).map_err(missing)?;
    let theirs = closure.into_values().filter(|(_, whose)| matches!(whose, Whose::Shared(_)));
    let mut copies: Vec<Change> = theirs
        .filter_map(|(info, _)| {
            let (entry, whose) = seen.entry(&info.path)?;
            let (proven, object_size) = (entry.proven, index.object_size(&info.nar_hash)?);
            let provenance = Provenance::Claimed(viewer.member.clone());
            // The copy remembers its original owner.
            let origins = match whose {
                Whose::Shared(layer) => entry.origins.seen_from_outside(layer),
                Whose::Everybodys | Whose::Own(_) => return None,
            };
            let account = Account::opened_by(None);
            Some(Change::AddPath { info, provenance, proven, object_size, origins, account })
        })
        .collect();
    within_limits(&seen, viewer, &copies)?;
    trace(index, &viewer.member, &mut copies);
    Ok(copies)
}
