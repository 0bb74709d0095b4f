//! Temporary roots: the paths that a session or a running build needs for as long as it exists.
//!
//! In memory only: when the process ends, no session needs them any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix_derivation::StorePath;

use crate::error::RegisterError;
use crate::types::Member;

/// Most paths of one hold that are not Verified: no client sends this many in one session (large closures
/// have some ten thousand), and they take up to 60 MB.
const MAX_HELD: usize = 200_000;

/// All holds of one store.
#[derive(Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    by_member: HashMap<Member, BTreeMap<u64, BTreeSet<StorePath>>>,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The paths that are held for `member`.
    pub(crate) fn of(&self, member: &Member) -> BTreeSet<StorePath> {
        let state = self.state();
        state.by_member.get(member).into_iter().flat_map(BTreeMap::values).flatten().cloned().collect()
    }

    /// Whether `path` is held for `member`.
    pub(crate) fn has(&self, member: &Member, path: &StorePath) -> bool {
        let state = self.state();
        state.by_member.get(member).is_some_and(|holds| holds.values().any(|held| held.contains(path)))
    }
}

/// Keeps paths of one member from being collected while it lives.
pub(crate) struct Hold {
    holds: Arc<Holds>,
    member: Member,
    id: u64,
}

impl Hold {
    pub(crate) fn new(holds: &Arc<Holds>, member: &Member, paths: BTreeSet<StorePath>) -> Self {
        let mut state = holds.state();
        let id = state.next;
        state.next += 1;
        state.by_member.entry(member.clone()).or_default().insert(id, paths);
        drop(state);
        Self { holds: Arc::clone(holds), member: member.clone(), id }
    }

    /// Number of paths that it holds.
    pub(crate) fn len(&self) -> usize {
        let state = self.holds.state();
        state.by_member.get(&self.member).and_then(|holds| holds.get(&self.id)).map_or(0, BTreeSet::len)
    }

    /// Also holds these paths; or none of them if they are too many.
    pub(crate) fn add<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<(), RegisterError> {
        let mut state = self.holds.state();
        let held = state.by_member.get_mut(&self.member).and_then(|holds| holds.get_mut(&self.id));
        held.map_or(Ok(()), |held| add(held, paths, MAX_HELD))
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
        if let Some(holds) = state.by_member.get_mut(&self.member) {
            holds.remove(&self.id);
            if holds.is_empty() {
                state.by_member.remove(&self.member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
