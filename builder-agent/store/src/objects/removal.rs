//! Files that nobody needs any more, and those that somebody still does.
//!
//! Whether an object goes is found out by the housekeeper (`keeper`), and removing it, which takes time in proportion to
//! its size, is done by a thread of its own: no member can find out by the clock whether an object went or stays because
//! somebody else has it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::index::change::Change;
use crate::objects::trees;
use crate::store::{Inner, Shelf};

/// The thread that removes.
pub(crate) struct Remover {
    /// `None` once the store closes.
    queue: Option<Sender<PathBuf>>,
    thread: Option<JoinHandle<()>>,
}

impl Remover {
    pub(crate) fn start() -> Self {
        let (queue, paths) = channel::<PathBuf>();
        let work = move || {
            for path in paths {
                if let Err(e) = trees::remove(&path) {
                    // The next start tries again.
                    tracing::warn!(file = %path.display(), "cannot remove: {e}");
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-remover".into()).spawn(work);
        match thread {
            Ok(thread) => Self { queue: Some(queue), thread: Some(thread) },
            Err(e) => {
                tracing::warn!("no thread for removing files, they stay until the next start: {e}");
                Self { queue: None, thread: None }
            }
        }
    }

    /// Removes a file or a folder, some time soon; before the store is closed.
    pub(crate) fn remove(&self, path: Option<PathBuf>) {
        if let (Some(queue), Some(path)) = (&self.queue, path) {
            // Without the thread it stays until the next start.
            let _ = queue.send(path);
        }
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Objects and trees in use, by NAR hash. They lose their rows like others, but their files stay until the last user
/// is done.
#[derive(Default)]
pub(crate) struct Pins {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: HashMap<[u8; 32], usize>,
    /// To be looked at when the last user is done: the object, and these trees of it.
    doomed: HashMap<[u8; 32], HashSet<PathBuf>>,
}

impl Pins {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps files of objects where they are while it lives.
pub(crate) struct Pinned {
    store: Arc<Inner>,
    objects: Vec<[u8; 32]>,
}

impl Pinned {
    /// The caller still holds the lock on the index in which it saw these objects.
    pub(crate) fn new(store: &Arc<Inner>, objects: Vec<[u8; 32]>) -> Self {
        let mut state = store.pins.state();
        for object in &objects {
            *state.users.entry(*object).or_default() += 1;
        }
        drop(state);
        Self { store: Arc::clone(store), objects }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut doomed = Vec::new();
        let mut state = self.store.pins.state();
        for object in &self.objects {
            if let Some(users) = state.users.get_mut(object) {
                *users -= 1;
                if *users == 0 {
                    state.users.remove(object);
                    doomed.extend(state.doomed.remove(object).map(|trees| (*object, trees)));
                }
            }
        }
        drop(state);
        remove(&self.store, doomed);
    }
}

/// Looks at objects that lost a path, some time soon: those that no path has any more go, and so do trees that were made
/// for paths that are gone. What is in use follows when it is not. Takes the same time whatever others have.
pub(crate) fn remove(store: &Inner, gone: impl IntoIterator<Item = ([u8; 32], HashSet<PathBuf>)>) {
    store.work.gone(gone);
}

/// Does that. Commits go on between two objects.
pub(crate) fn removed(shelf: &Shelf, gone: Vec<([u8; 32], HashSet<PathBuf>)>) {
    for (object, trees) in gone {
        // No registration can give an object a row meanwhile, and no one can start to use it: that takes a row.
        let mut db = shelf.db();
        let (named, results) = {
            let index = shelf.index();
            let drops = index.results_with(&object).map(|key| Change::DropResult { key: *key });
            (index.paths_with(&object) > 0, drops.collect::<Vec<_>>())
        };
        let mut state = shelf.pins.state();
        if state.users.contains_key(&object) {
            state.doomed.entry(object).or_default().extend(trees);
            continue;
        }
        trees.iter().for_each(|tree| shelf.discard(tree));
        if named {
            continue;
        }
        shelf.discard(&shelf.object_path(&object));
        drop(state);
        // A result goes with its objects. Until now it was hidden by their having no path (`Store::result`), and a row
        // that cannot be deleted now is found to lead nowhere at the next start.
        if !results.is_empty() {
            match db.write(&results) {
                Ok(()) => shelf.apply(results.into_iter()),
                Err(e) => tracing::warn!("cannot forget results without outputs: {e}"),
            }
        }
        shelf.forget_object(&object);
    }
}
