//! Objects and trees in use. They can lose their rows like others, but their files stay until the last user
//! has finished.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::trees::Tree;

/// The numbers of users, by NAR hash.
#[derive(Default)]
pub(crate) struct Pins {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: HashMap<[u8; 32], usize>,
    /// Objects and trees to check when the last user has finished.
    doomed: HashMap<[u8; 32], HashSet<Tree>>,
}

/// An object that may have lost its last row, and trees of it that are removed in any case.
pub(crate) type Doomed = ([u8; 32], HashSet<Tree>);

impl Pins {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the files of `objects` until they are released as often as they were pinned.
    pub(crate) fn pin(&self, objects: &[[u8; 32]]) {
        let mut state = self.state();
        for object in objects {
            *state.users.entry(*object).or_default() += 1;
        }
    }

    /// Returns the removals that waited for these objects and can happen now.
    pub(crate) fn release(&self, objects: &[[u8; 32]]) -> Vec<Doomed> {
        let mut released = Vec::new();
        let mut state = self.state();
        for object in objects {
            if let Some(users) = state.users.get_mut(object) {
                *users -= 1;
                if *users == 0 {
                    state.users.remove(object);
                    released.extend(state.doomed.remove(object).map(|trees| (*object, trees)));
                }
            }
        }
        released
    }

    /// Calls `remove` if the object has no user, and prevents new users meanwhile; else remembers it for the
    /// last user.
    pub(crate) fn remove_unless_used(&self, (object, trees): Doomed, remove: impl FnOnce(HashSet<Tree>)) {
        let mut state = self.state();
        if state.users.contains_key(&object) {
            state.doomed.entry(object).or_default().extend(trees);
        } else {
            remove(trees);
        }
    }
}
