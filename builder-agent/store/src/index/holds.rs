//! Temporary roots: the paths that a session or a running build needs for as long as it exists.
//!
//! A hold has paths that neither its member nor the box may remove, and leases ([`super::leases`]), which only the box
//! respects. In memory only: when the process ends, no session needs them any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix_derivation::StorePath;

use super::leases::Leases;
use crate::error::RegisterError;
use crate::types::Member;

/// Most paths of one hold that were not Verified when they were held: no client sends this many in one session (large
/// closures have some ten thousand), and they take up to 60 MB.
const MAX_HELD: usize = 200_000;

/// All holds of one store.
#[derive(Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
    /// Number of the next lease.
    next_lease: AtomicU64,
}

#[derive(Default)]
struct State {
    next: u64,
    /// How many holds of each member have ended that held or leased something.
    ended: HashMap<Member, u64>,
    by_member: HashMap<Member, BTreeMap<u64, Held>>,
}

struct Held {
    paths: BTreeSet<StorePath>,
    /// Shared with the hold, so that a lease takes no lock that other sessions need.
    leases: Arc<Mutex<Leases>>,
}

/// A moment, for [`Holds::taken_since`].
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    hold: u64,
    lease: u64,
}

/// Everything that one member's sessions and builds need.
pub(crate) struct Needs {
    pub(crate) member: Member,
    pub(crate) held: Vec<StorePath>,
    /// Newest first.
    pub(crate) leased: Vec<StorePath>,
}

impl Needs {
    /// Of a member without sessions and builds.
    pub(crate) fn none(member: &Member) -> Self {
        Self { member: member.clone(), held: Vec::new(), leased: Vec::new() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The paths that are held for `member`.
    pub(crate) fn of(&self, member: &Member) -> BTreeSet<StorePath> {
        let state = self.state();
        let holds = state.by_member.get(member).into_iter().flat_map(BTreeMap::values);
        holds.flat_map(|held| &held.paths).cloned().collect()
    }

    /// Whether `path` is held for `member`.
    pub(crate) fn has(&self, member: &Member, path: &StorePath) -> bool {
        let state = self.state();
        let holds = state.by_member.get(member);
        holds.is_some_and(|holds| holds.values().any(|held| held.paths.contains(path)))
    }

    /// The needs of `member`.
    pub(crate) fn needs_of(&self, member: &Member) -> Needs {
        let state = self.state();
        Self::needs(member, state.by_member.get(member))
    }

    /// The needs of all members.
    pub(crate) fn needs_of_all(&self) -> Vec<Needs> {
        let state = self.state();
        state.by_member.iter().map(|(member, holds)| Self::needs(member, Some(holds))).collect()
    }

    fn needs(member: &Member, holds: Option<&BTreeMap<u64, Held>>) -> Needs {
        let holds = || holds.into_iter().flat_map(BTreeMap::values);
        let held = holds().flat_map(|held| &held.paths).cloned().collect();
        let mut leased: Vec<(u64, StorePath)> = Vec::new();
        holds().for_each(|held| leased.extend(lock(&held.leases).since(0).cloned()));
        leased.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        Needs { member: member.clone(), held, leased: leased.into_iter().map(|(_, path)| path).collect() }
    }

    /// How many holds of `member` have ended that held or leased something. Views are made for single questions, too: the end
    /// of one that needed nothing changes nothing.
    pub(crate) fn ended(&self, member: &Member) -> u64 {
        self.state().ended.get(member).copied().unwrap_or_default()
    }

    /// This moment.
    pub(crate) fn mark(&self) -> Mark {
        Mark { hold: self.state().next, lease: self.next_lease.load(Ordering::Relaxed) }
    }

    /// Whether one of the paths for which `is_going` is true was leased, or has got into a new hold, since `mark`. Paths
    /// that were added to older holds: [`Holds::has`].
    pub(crate) fn taken_since(&self, mark: Mark, is_going: impl Fn(&Member, &StorePath) -> bool) -> bool {
        let state = self.state();
        let taken = |member: &Member, number: u64, held: &Held| {
            number >= mark.hold && held.paths.iter().any(|path| is_going(member, path))
                || lock(&held.leases).since(mark.lease).any(|(_, path)| is_going(member, path))
        };
        state.by_member.iter().any(|(member, holds)| holds.iter().any(|(n, held)| taken(member, *n, held)))
    }
}

/// Keeps paths of one member from being collected while it lives.
pub(crate) struct Hold {
    holds: Arc<Holds>,
    member: Member,
    id: u64,
    leases: Arc<Mutex<Leases>>,
}

impl Hold {
    pub(crate) fn new(holds: &Arc<Holds>, member: &Member, paths: BTreeSet<StorePath>) -> Self {
        let leases: Arc<Mutex<Leases>> = Arc::default();
        let mut state = holds.state();
        let id = state.next;
        state.next += 1;
        let held = Held { paths, leases: Arc::clone(&leases) };
        state.by_member.entry(member.clone()).or_default().insert(id, held);
        drop(state);
        Self { holds: Arc::clone(holds), member: member.clone(), id, leases }
    }

    /// Number of paths that it holds; of leases, which take half as much memory, the half.
    pub(crate) fn len(&self) -> usize {
        let state = self.holds.state();
        let held = state.by_member.get(&self.member).and_then(|holds| holds.get(&self.id));
        held.map_or(0, |held| held.paths.len()) + lock(&self.leases).len().div_ceil(2)
    }

    /// Also holds these paths; or none of them if they are too many.
    pub(crate) fn add<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<(), RegisterError> {
        let mut state = self.holds.state();
        let held = state.by_member.get_mut(&self.member).and_then(|holds| holds.get_mut(&self.id));
        held.map_or(Ok(()), |held| add(&mut held.paths, paths, MAX_HELD))
    }

    /// Keeps the box from evicting `path`, which is valid, while this lives. The caller still has the lock on the index
    /// in which it saw the path.
    pub(crate) fn lease(&self, path: &StorePath) {
        lock(&self.leases).add(path, || self.holds.next_lease.fetch_add(1, Ordering::Relaxed));
    }
}

fn add<'a>(
    held: &mut BTreeSet<StorePath>,
    paths: impl IntoIterator<Item = &'a StorePath>,
    limit: usize,
) -> Result<(), RegisterError> {
    let new: BTreeSet<&StorePath> = paths.into_iter().filter(|path| !held.contains(*path)).collect();
    if held.len() + new.len() > limit {
        return Err(RegisterError::HoldLimit { limit });
    }
    held.extend(new.into_iter().cloned());
    Ok(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.holds.state();
        let Some(holds) = state.by_member.get_mut(&self.member) else { return };
        let held = holds.remove(&self.id);
        if holds.is_empty() {
            state.by_member.remove(&self.member);
        }
        let needs = |held: Held| !held.paths.is_empty() || lock(&held.leases).len() > 0;
        if held.is_some_and(needs) {
            *state.ended.entry(self.member.clone()).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_hold_counts_if_it_held_or_leased_something() {
        let (holds, alice) = (Arc::new(Holds::default()), Member::new("alice"));
        let path = StorePath::from_parts([1; 20], "p").unwrap();
        let ended = |hold: Hold| {
            drop(hold);
            (holds.ended(&alice), holds.needs_of_all().len())
        };
        assert_eq!(ended(Hold::new(&holds, &alice, BTreeSet::new())), (0, 0));
        assert_eq!(ended(Hold::new(&holds, &alice, [path.clone()].into())), (1, 0));
        let added = Hold::new(&holds, &alice, BTreeSet::new());
        added.add([&path]).unwrap();
        assert_eq!(ended(added), (2, 0));
        let leased = Hold::new(&holds, &alice, BTreeSet::new());
        leased.lease(&path);
        assert_eq!(ended(leased), (3, 0));
    }

    #[test]
    fn what_is_held_already_counts_once_and_too_many_are_refused_as_a_whole() {
        let path = |i: u8| StorePath::from_parts([i; 20], "p").unwrap();
        let (one, two, three) = (path(1), path(2), path(3));
        let mut held = BTreeSet::new();
        add(&mut held, [&one, &two, &one], 2).unwrap();
        add(&mut held, [&two], 2).unwrap();
        let error = add(&mut held, [&one, &three], 2).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains("at most 2"), "{error}");
        assert_eq!(held, BTreeSet::from([one, two]));
    }
}
