//! Temporary roots: what somebody needs for as long as they are there, like a session or a running build.
//!
//! Kept in memory only: a process that ends needs nothing any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix_derivation::StorePath;

use crate::store::Inner;
use crate::types::Member;

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

    /// What is held for `member`.
    pub(crate) fn of(&self, member: &Member) -> BTreeSet<StorePath> {
        let state = self.state();
        state.by_member.get(member).into_iter().flat_map(BTreeMap::values).flatten().cloned().collect()
    }
}

/// Keeps paths of one member from being collected while it lives.
pub(crate) struct Hold {
    store: Arc<Inner>,
    member: Member,
    id: u64,
}

impl Hold {
    pub(crate) fn new(store: &Arc<Inner>, member: &Member, paths: BTreeSet<StorePath>) -> Self {
        let mut state = store.holds.state();
        let id = state.next;
        state.next += 1;
        state.by_member.entry(member.clone()).or_default().insert(id, paths);
        drop(state);
        Self { store: Arc::clone(store), member: member.clone(), id }
    }

    /// Holds these, too.
    pub(crate) fn add<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) {
        let mut state = self.store.holds.state();
        if let Some(held) = state.by_member.get_mut(&self.member).and_then(|holds| holds.get_mut(&self.id)) {
            held.extend(paths.into_iter().cloned());
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.store.holds.state();
        if let Some(holds) = state.by_member.get_mut(&self.member) {
            holds.remove(&self.id);
            if holds.is_empty() {
                state.by_member.remove(&self.member);
            }
        }
    }
}
