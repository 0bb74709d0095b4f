//! Garbage collection: deletes a member's own claims that the member does not need any more, and nothing
//! else.
//!
//! Verified paths stay, since other members may have built on them. Other members' claims stay, since they
//! belong to those members. A path that a member builds on becomes the member's own (`copies`), so no other
//! member's closure breaks.
//! Not here: temporary roots (`index::holds`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use super::annotation::Notes;
use super::seen::{Seen, Viewer, Whose};
use crate::error::{CollectError, MissingPath};
use crate::index::change::Change;
use crate::index::commit::{About, Drops, Plan, commit_repeatable};
use crate::index::memory::Memory;
use crate::index::rows::Annotation;
use crate::objects::trees::Tree;
use crate::types::{Member, Provenance};
use crate::upkeep::base::Base;

/// The action (Nix: `GCOptions::GCAction` in `src/libstore/include/nix/store/gc-store.hh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectAction {
    /// Return the member's claims that are needed.
    ReturnLive,
    /// Return the member's claims that are not needed.
    ReturnDead,
    /// Delete the member's claims that are not needed.
    DeleteDead,
    /// Delete `paths`, all or none.
    DeleteSpecific,
}

/// A request to collect garbage.
#[derive(Debug, Clone)]
pub struct Collect {
    /// The action.
    pub action: CollectAction,
    /// The paths that [`CollectAction::DeleteSpecific`] deletes. Other actions look at these paths only;
    /// empty means all.
    pub paths: BTreeSet<StorePath>,
    /// Stop after more than this many bytes; 0 deletes at least one path, as in Nix.
    pub max_freed: u64,
}

impl Collect {
    fn asks_for(&self, path: &StorePath) -> bool {
        self.paths.is_empty() || self.paths.contains(path)
    }
}

/// The paths that were found or deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The paths.
    pub paths: BTreeSet<StorePath>,
    /// Bytes of their NARs, if they were deleted. The disk may gain less, depending on what other members
    /// have.
    pub bytes_freed: u64,
}

pub(crate) fn collect(base: &Arc<Base>, viewer: &Viewer, wish: &Collect) -> Result<Collected, CollectError> {
    match wish.action {
        CollectAction::ReturnLive | CollectAction::ReturnDead => {
            let index = base.index.read();
            let seen = viewer.sees(&index);
            let live = live(&seen, &base.index.holds().of(&viewer.member));
            let wanted = wish.action == CollectAction::ReturnLive;
            let visible = |info: &&Arc<PathInfo>| !seen.is_verified(&info.path);
            let own = seen.own_claims().filter(visible).map(|info| &info.path);
            let own = own.filter(|path| wish.asks_for(path));
            let paths = own.filter(|path| live.contains(*path) == wanted).cloned().collect();
            Ok(Collected { paths, bytes_freed: 0 })
        }
        CollectAction::DeleteDead | CollectAction::DeleteSpecific => {
            let (wish, planner, holds) = (wish.clone(), viewer.clone(), Arc::clone(base.index.holds()));
            let about = About { everything: true, ..About::default() };
            // The planner runs in the thread that leads the commit; a refusal is a value that changes
            // nothing.
            let outcome = commit_repeatable(&base.index, about, move |index| {
                // Read here and not before the queue, so that paths held meanwhile are included.
                let holds = holds.of(&planner.member);
                Ok(match plan(index, &planner, &wish, &holds) {
                    Ok((changes, collected, gone)) => {
                        let drops = Some(Drops::Of(planner.member.clone()));
                        (Plan { changes, drops, ..Plan::default() }, Ok((collected, gone)))
                    }
                    Err(refused) => (Plan::default(), Err(refused)),
                })
            })?;
            let (collected, gone) = outcome?;
            let provenance = Provenance::Claimed(viewer.member.clone());
            let trees = |hash| [Tree::of(hash, &provenance)].into();
            base.upkeep.look_at(gone.into_iter().map(|hash| (hash, trees(hash))));
            Ok(collected)
        }
    }
}

/// Roots, held paths, and all that they refer to. A root whose path is gone holds nothing.
fn live(seen: &Seen<'_>, holds: &BTreeSet<StorePath>) -> HashSet<StorePath> {
    let mut live = HashSet::new();
    let mut todo: Vec<&StorePath> = seen.roots().values().chain(holds).collect();
    while let Some(path) = todo.pop() {
        if let Some(info) = seen.info(path)
            && live.insert(path.clone())
        {
            todo.extend(&info.references);
        }
    }
    live
}

type Planned = (Vec<Change>, Collected, HashSet<[u8; 32]>);

fn plan(
    index: &Memory,
    viewer: &Viewer,
    wish: &Collect,
    holds: &BTreeSet<StorePath>,
) -> Result<Planned, CollectError> {
    let seen = viewer.sees(index);
    let live = live(&seen, holds);
    // Nobody can use a claim that a Verified path hides.
    let hidden = |path: &StorePath| seen.is_verified(path);
    let mut dead: HashSet<StorePath> = match wish.action {
        CollectAction::DeleteSpecific => specific(&seen, &live, &wish.paths)?,
        _ => {
            let own = seen.own_claims().map(|info| &info.path);
            let dead = own.filter(|path| wish.asks_for(path) && (hidden(path) || !live.contains(*path)));
            let dead = dead.cloned().collect();
            without_holes(&seen, dead)
        }
    };
    let limit = match wish.action {
        CollectAction::DeleteSpecific => u64::MAX,
        _ => wish.max_freed,
    };
    let mut collected = Collected::default();
    let mut changes = Vec::new();
    let mut lost: HashMap<[u8; 32], usize> = HashMap::new();
    let mut notes = Notes::default();
    // Referrers first, so that the deletion can stop anywhere without a missing reference.
    for path in in_order(&seen, &dead) {
        if collected.bytes_freed > limit {
            dead.remove(&path);
            continue;
        }
        let Some(entry) = seen.own_claim(&path) else { continue };
        let info = &entry.info;
        if !hidden(&path) {
            collected.paths.insert(path.clone());
        } else if live.contains(&path)
            && let Some(shown) = seen.entry(&path)
        {
            // The path stays visible; deriver and signatures of the claim become the member's annotation.
            notes.add(&shown.0.info, Annotation::of(info));
        }
        if *lost.entry(info.nar_hash).and_modify(|n| *n += 1).or_insert(1) == 1 {
            collected.bytes_freed += info.nar_size;
        }
        changes.push(Change::DropClaim { member: viewer.member.clone(), path });
    }
    changes.extend(forget(&seen, &viewer.member, &dead));
    changes.extend(notes.changes(&seen, &viewer.member));
    let drops = unneeded(&seen, wish, &live, &dead).into_iter();
    changes.extend(drops.map(|path| Change::DropAnnotation { member: viewer.member.clone(), path }));
    Ok((changes, collected, lost.into_keys().collect()))
}

/// Annotations of the paths that go, and of paths that are not the member's own and that none of the member's
/// paths needs.
fn unneeded(
    seen: &Seen<'_>,
    wish: &Collect,
    live: &HashSet<StorePath>,
    dead: &HashSet<StorePath>,
) -> Vec<StorePath> {
    let all = wish.action == CollectAction::DeleteDead;
    let goes = |path: &StorePath| match seen.own_claim(path).filter(|_| !seen.is_verified(path)) {
        Some(_) => dead.contains(path),
        None => all && wish.asks_for(path) && !live.contains(path),
    };
    seen.annotations().into_iter().flat_map(|all| all.paths()).filter(|path| goes(path)).cloned().collect()
}

/// The paths of `paths`, and the hidden claims, that may be deleted; an error if one of `paths` may not.
fn specific(
    seen: &Seen<'_>,
    live: &HashSet<StorePath>,
    paths: &BTreeSet<StorePath>,
) -> Result<HashSet<StorePath>, CollectError> {
    for path in paths {
        match seen.entry(path) {
            None => return Err(MissingPath(path.clone()).into()),
            Some((_, Whose::Everybodys)) => return Err(CollectError::Verified { path: path.clone() }),
            Some((_, Whose::Shared(owner))) => {
                return Err(CollectError::Foreign { path: path.clone(), owner: owner.clone() });
            }
            Some((_, Whose::Own(_))) => {}
        }
        let kept = |p: &StorePath| p != path && !paths.contains(p) && !seen.is_verified(p);
        if live.contains(path) || seen.own_referrers(path).any(kept) {
            return Err(CollectError::Alive { path: path.clone() });
        }
    }
    Ok(paths.iter().cloned().collect())
}

/// Leaves out paths that remaining claims refer to, directly or not. Each claim and each reference is looked
/// at once, because all members wait for this.
fn without_holes(seen: &Seen<'_>, mut dead: HashSet<StorePath>) -> HashSet<StorePath> {
    let own = seen.own_claims().map(|info| &info.path);
    let mut stays: Vec<&StorePath> =
        own.filter(|path| !dead.contains(*path) && !seen.is_verified(path)).collect();
    while let Some(path) = stays.pop() {
        let references = seen.own_claim(path).map(|entry| &entry.info.references);
        for reference in references.into_iter().flatten().filter(|r| !seen.is_verified(r)) {
            if dead.remove(reference) {
                stays.push(reference);
            }
        }
    }
    dead
}

/// The paths of `dead`, each before those that it refers to.
fn in_order(seen: &Seen<'_>, dead: &HashSet<StorePath>) -> Vec<StorePath> {
    let others = |path: &StorePath| {
        let own = seen.own_referrers(path);
        own.filter(|referrer| *referrer != path && dead.contains(*referrer)).count()
    };
    let mut left: HashMap<&StorePath, usize> = dead.iter().map(|path| (path, others(path))).collect();
    // In the order of names, so that the same request has the same outcome.
    let mut ready: BTreeSet<&StorePath> =
        left.iter().filter(|(_, count)| **count == 0).map(|(path, _)| *path).collect();
    let mut order = Vec::with_capacity(dead.len());
    while let Some(path) = ready.pop_first() {
        order.push(path.clone());
        let references = seen.own_claim(path).map(|entry| &entry.info.references);
        for reference in references.into_iter().flatten().filter(|r| *r != path) {
            if let Some((reference, count)) = left.get_key_value(reference).map(|(k, c)| (*k, *c)) {
                left.insert(reference, count - 1);
                if count == 1 {
                    ready.insert(reference);
                }
            }
        }
    }
    // Claims that a member made up may refer to each other in a circle. They are deleted together, at the
    // end.
    let done: HashSet<&StorePath> = order.iter().collect();
    let circle: Vec<StorePath> = dead.iter().filter(|path| !done.contains(path)).cloned().collect();
    order.extend(circle);
    order
}

/// Drops what names the deleted paths. Results that name their objects are removed later (`upkeep`): whether
/// they are depends on what other members have.
fn forget(seen: &Seen<'_>, member: &Member, dead: &HashSet<StorePath>) -> Vec<Change> {
    let gone = |path: &StorePath| dead.contains(path) && !seen.is_verified(path);
    // As with paths: nobody can use a claim that a Verified realisation hides.
    let hidden = |id| matches!(seen.realisation(id), Some((_, Whose::Everybodys)));
    let mut changes: Vec<Change> = Vec::new();
    for (id, realisation) in seen.own_realisations() {
        if gone(&realisation.path) || hidden(id) {
            changes.push(Change::DropRealisation { id: id.clone(), member: Some(member.clone()) });
        }
    }
    changes
}
