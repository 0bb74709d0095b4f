//! Deleting what a member does not need any more: their own claims, and nothing else.
//!
//! Verified paths stay, since anybody may have built on them. Another member's claims stay, since they are not this
//! member's. Whatever a member builds on is their own (`copies`), so no one else's closure breaks.
//! Not here: temporary roots (`index::holds`).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use super::annotation::Notes;
use super::seen::{Seen, Viewer, Whose};
use crate::error::{CollectError, MissingPath};
use crate::index::change::Change;
use crate::index::commit::{About, Plan, commit_repeatable};
use crate::index::memory::Memory;
use crate::index::rows::Annotation;
use crate::objects::trees::Tree;
use crate::types::{Member, Provenance};
use crate::upkeep::base::Base;

/// What to do (Nix: `GCOptions::GCAction` in `src/libstore/include/nix/store/gc-store.hh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectAction {
    /// Tell which of the member's claims are needed.
    ReturnLive,
    /// Tell which are not.
    ReturnDead,
    /// Delete those that are not.
    DeleteDead,
    /// Delete `paths`, all or none.
    DeleteSpecific,
}

/// A wish to collect garbage.
#[derive(Debug, Clone)]
pub struct Collect {
    /// What to do.
    pub action: CollectAction,
    /// What [`CollectAction::DeleteSpecific`] deletes. For the others: look at these only; empty means all.
    pub paths: BTreeSet<StorePath>,
    /// Stop after more than so many bytes; 0 deletes one path at least, as in Nix.
    pub max_freed: u64,
}

impl Collect {
    fn asks_for(&self, path: &StorePath) -> bool {
        self.paths.is_empty() || self.paths.contains(path)
    }
}

/// What was found or deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The paths.
    pub paths: BTreeSet<StorePath>,
    /// Bytes of their NARs, if they were deleted. Not of the disk: how much that gains depends on what others have.
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
            // The planner runs in whichever thread leads the commit; a refusal is a value that changes nothing.
            let outcome = commit_repeatable(&base.index, about, move |index| {
                // Now, not before the queue: what is held meanwhile is held.
                let holds = holds.of(&planner.member);
                Ok(match plan(index, &planner, &wish, &holds) {
                    Ok((changes, collected, gone)) => {
                        let drops_of = Some(planner.member.clone());
                        (Plan { changes, drops_of, ..Plan::default() }, Ok((collected, gone)))
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

/// Roots, what is held, and all they refer to. A root whose path went away holds nothing.
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
    // A claim that a Verified path hides is of no use to anybody.
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
    // Referrers first, so that it can stop anywhere and leave nothing with a hole in its closure.
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
            // The path stays, and so does what was said of it.
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

/// Annotations of what goes, and of what is not the member's own and nothing of theirs needs.
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

/// Which of `paths` and the hidden claims may go; an error if one of `paths` may not.
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

/// Leaves out what claims that stay refer to, however indirectly. Each claim and each reference is looked at once: all
/// members wait for this.
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

/// `dead`, each path before those it refers to.
fn in_order(seen: &Seen<'_>, dead: &HashSet<StorePath>) -> Vec<StorePath> {
    let others = |path: &StorePath| {
        let own = seen.own_referrers(path);
        own.filter(|referrer| *referrer != path && dead.contains(*referrer)).count()
    };
    let mut left: HashMap<&StorePath, usize> = dead.iter().map(|path| (path, others(path))).collect();
    // In the order of names, so that the same wish has the same outcome.
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
    // Claims may refer to each other in a circle, if their member made them up. They go together, at the end.
    let done: HashSet<&StorePath> = order.iter().collect();
    let circle: Vec<StorePath> = dead.iter().filter(|path| !done.contains(path)).cloned().collect();
    order.extend(circle);
    order
}

/// What named the paths that go. Results that name their objects go with these, later (`upkeep`): whether they
/// do depends on what others have.
fn forget(seen: &Seen<'_>, member: &Member, dead: &HashSet<StorePath>) -> Vec<Change> {
    let gone = |path: &StorePath| dead.contains(path) && !seen.is_verified(path);
    // As with paths: a claim that a Verified one hides is of no use to anybody.
    let hidden = |id| matches!(seen.realisation(id), Some((_, Whose::Everybodys)));
    let mut changes: Vec<Change> = Vec::new();
    for (id, realisation) in seen.own_realisations() {
        if gone(&realisation.path) || hidden(id) {
            changes.push(Change::DropRealisation { id: id.clone(), member: Some(member.clone()) });
        }
    }
    changes
}
