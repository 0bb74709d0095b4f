//! Removes files in a thread of its own, since that takes time in proportion to their size: no member can
//! learn from the duration whether an object was removed or stays because another member has it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::trees;

/// Files and folders that were moved aside and wait for the thread.
pub(crate) struct Removal {
    /// On the same file system as what is removed.
    aside: PathBuf,
    next: AtomicU64,
    remover: Remover,
}

impl Removal {
    /// `aside` is a folder; a start removes everything in it that is called `old-*`.
    pub(crate) fn start(aside: PathBuf) -> Self {
        Self { aside, next: AtomicU64::new(0), remover: Remover::start() }
    }

    /// Waits, at most for `longest`, until everything that was moved aside before is removed, so that its space is free.
    pub(crate) fn wait(&self, longest: Duration) {
        let (tell, told) = channel();
        if let Some(queue) = &self.remover.queue {
            let _ = queue.send(Job::Tell(tell));
        }
        let _ = told.recv_timeout(longest);
    }

    /// Moves a file or folder aside, to be removed later.
    pub(crate) fn discard(&self, place: &Path) {
        let aside = self.aside.join(format!("old-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        match fs::rename(place, &aside) {
            Ok(()) => self.remover.remove(aside),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The next start removes an object that no row names; a tree is only a cache.
            Err(e) => tracing::warn!(file = %place.display(), "cannot remove: {e}"),
        }
    }
}

/// Work for the thread, in its order.
enum Job {
    Remove(PathBuf),
    /// Dropped when everything before it is removed.
    Tell(Sender<()>),
}

/// The handle of the removing thread.
struct Remover {
    /// `None` once the store closes.
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Remover {
    fn start() -> Self {
        let (queue, jobs) = channel::<Job>();
        let work = move || {
            for job in jobs {
                match job {
                    Job::Remove(path) => {
                        if let Err(e) = trees::remove(&path) {
                            // The next start tries again.
                            tracing::warn!(file = %path.display(), "cannot remove: {e}");
                        }
                    }
                    Job::Tell(done) => drop(done),
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

    /// Removes a file or a folder soon; at the latest before the store is closed.
    fn remove(&self, path: PathBuf) {
        if let Some(queue) = &self.queue {
            // If the thread is gone, the file stays until the next start.
            let _ = queue.send(Job::Remove(path));
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
