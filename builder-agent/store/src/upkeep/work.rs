//! The work behind the users of a store: everything that nobody waits for, done in passes.
//!
//! A pass makes durable what was committed (where state survives a reboot), gives new objects their names, and removes
//! what lost its last name. A commit leaves a new object below `new/`, and a deletion only drops rows, so both do the
//! same work whether or not another member has the same contents; what depends on that happens here, later.
//!
//! The order of one pass: note what is to do and the number of the last row; flush; write the marker; then, and only then,
//! rename and remove. So an object that an older marker vouches for is replaced and removed by durable things only.
//! Not here: what a start does with what a pass did not get to (`recovery`).

use std::collections::HashSet;
use std::mem;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::marker::{Marker, MarkerFile};
use crate::config::Durability;
use crate::error::RegisterError;
use crate::index::Index;
use crate::index::change::Change;
use crate::objects::pins::{Doomed, Pins};
use crate::objects::temporary::Temporary;
use crate::objects::trees::{Tree, Trees};
use crate::objects::{Kept, Objects};

/// A flush comes earlier when there is so much to write. After an unclean start all of it is hashed, at about 0.7 GB/s.
const FLUSH_BYTES: u64 = 256 << 20;

/// What the next pass has to do.
#[derive(Default)]
struct Work {
    /// Objects with rows that are not in their final places, in the order of their commits.
    settle: Vec<Kept>,
    /// Objects that lost a row, and trees made for it.
    gone: Vec<Doomed>,
    /// Bytes of new objects.
    bytes: u64,
    stop: bool,
}

#[derive(Default)]
struct Passing {
    /// A flush failed. The kernel reports that once, so no later success means anything.
    failed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object that a commit gives a row: its file, its NAR hash, and the size of the file.
pub(crate) type NewObject = (Temporary, [u8; 32], u64);

/// What the housekeeper looks after, and the list of what there is to do.
pub(crate) struct Upkeep {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) trees: Arc<Trees>,
    pub(crate) index: Arc<Index>,
    pub(crate) durability: Durability,
    marker: MarkerFile,
    /// As the marker says.
    through: AtomicI64,
    pins: Pins,
    work: Mutex<Work>,
    changed: Condvar,
    /// Held during a pass: there is one at a time.
    passing: Mutex<Passing>,
}

impl Upkeep {
    /// All rows up to `through` are durable, and `marker` says so.
    pub(crate) fn new(
        (objects, trees, index): (Arc<dyn Objects>, Arc<Trees>, Arc<Index>),
        durability: Durability,
        marker: MarkerFile,
        through: i64,
    ) -> Self {
        Self {
            objects,
            trees,
            index,
            durability,
            marker,
            through: AtomicI64::new(through),
            pins: Pins::default(),
            work: Mutex::default(),
            changed: Condvar::new(),
            passing: Mutex::default(),
        }
    }

    /// Takes over objects that rows name now. Called during the commit, so that a pass sees all of it or nothing.
    pub(crate) fn keep(&self, new: Vec<NewObject>) {
        let bytes = new.iter().map(|(.., size)| size).sum();
        // Even if there is such an object already: what an upload does must not tell.
        let kept = new.into_iter().filter_map(|(file, hash, _)| self.objects.keep(file, hash));
        let kept: Vec<Kept> = kept.collect();
        let mut work = lock(&self.work);
        work.settle.extend(kept);
        let before = work.bytes;
        work.bytes = before.saturating_add(bytes);
        if before < FLUSH_BYTES && work.bytes >= FLUSH_BYTES {
            self.changed.notify_all();
        }
    }

    /// Looks at objects that lost a path, some time soon: those that no path has any more go, and so do trees that were
    /// made for paths that are gone. What is in use follows when it is not. Takes the same time whatever others have.
    pub(crate) fn look_at(&self, gone: impl IntoIterator<Item = Doomed>) {
        lock(&self.work).gone.extend(gone);
    }

    /// Does what is to do. The error of a flush is told once; then nothing is promised, renamed or removed until the next
    /// start, which checks by hash what is newer than the marker.
    pub(crate) fn pass(&self) -> Result<(), RegisterError> {
        let mut passing = lock(&self.passing);
        if passing.failed {
            lock(&self.work).bytes = 0;
            return Ok(());
        }
        let (work, committed, through) = {
            let index = self.index.lock();
            let mut work = lock(&self.work);
            let stop = work.stop;
            let work = mem::replace(&mut *work, Work { stop, ..Work::default() });
            (work, index.take_committed(), index.last_row())
        };
        if self.durability == Durability::Flush
            && committed
            && let Err(e) = self.flush(through)
        {
            passing.failed = true;
            let doubt = Marker::now(Durability::Flush, self.through.load(Ordering::Relaxed)).doubtful();
            let told = self.marker.write(&doubt);
            told.unwrap_or_else(|e| tracing::error!("{e}; the next boot checks everything newer"));
            return Err(e);
        }
        for kept in work.settle {
            // It stays where it is, and readers know where. The next start tries again.
            self.objects.settle(&kept).unwrap_or_else(|e| tracing::warn!("{e}"));
        }
        self.remove(work.gone);
        Ok(())
    }

    /// Makes everything durable that was committed up to row `through`, and says so in the marker.
    fn flush(&self, through: i64) -> Result<(), RegisterError> {
        self.objects.sync()?;
        // After the flush, so that the write-ahead log is on the disk already and commits wait for little.
        self.index.lock().checkpoint()?;
        match self.marker.write(&Marker::now(Durability::Flush, through)) {
            Ok(()) => self.through.store(through, Ordering::Relaxed),
            // An old promise is a true one.
            Err(e) => tracing::warn!("{e}; after a power loss the start checks more than necessary"),
        }
        Ok(())
    }

    /// Removes what no row names and nobody uses. Commits go on between two objects.
    fn remove(&self, gone: Vec<Doomed>) {
        for (object, trees) in gone {
            // No registration can give an object a row meanwhile, and no one can start to use it: that takes a row.
            let mut index = self.index.lock();
            let (named, results) = {
                let memory = self.index.read();
                let drops = memory.results_with(&object).map(|key| Change::DropResult { key: *key });
                (memory.paths_with(&object) > 0, drops.collect::<Vec<_>>())
            };
            let mut removed = false;
            self.pins.remove_unless_used((object, trees), |trees: HashSet<Tree>| {
                trees.iter().for_each(|tree| self.trees.discard(tree));
                if !named {
                    self.objects.remove(&object);
                    removed = true;
                }
            });
            if !removed {
                continue;
            }
            // A result goes with its objects. Until now it was hidden by their having no path (`Store::result`), and a row
            // that cannot be deleted now is found to lead nowhere at the next start.
            if !results.is_empty() {
                match index.write(&results) {
                    Ok(()) => index.show(results),
                    Err(e) => tracing::warn!("cannot forget results without outputs: {e}"),
                }
            }
            index.memory_mut().forget_object(&object);
        }
    }

    /// Waits for the next pass, at most for `longest`. False: there is none, because the store closes.
    pub(super) fn wait(&self, longest: Duration) -> bool {
        let begun = Instant::now();
        let mut work = lock(&self.work);
        loop {
            if work.stop {
                return false;
            }
            let left = longest.saturating_sub(begun.elapsed());
            if left.is_zero() || work.bytes >= FLUSH_BYTES {
                return true;
            }
            work = self.changed.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the wait: the store closes.
    pub(super) fn stop(&self) {
        lock(&self.work).stop = true;
        self.changed.notify_all();
    }
}

/// Keeps files of objects where they are while it lives.
pub(crate) struct Pinned {
    upkeep: Arc<Upkeep>,
    objects: Vec<[u8; 32]>,
}

impl Pinned {
    /// The caller still holds the lock on the index in which it saw these objects.
    pub(crate) fn new(upkeep: &Arc<Upkeep>, objects: Vec<[u8; 32]>) -> Self {
        upkeep.pins.pin(&objects);
        Self { upkeep: Arc::clone(upkeep), objects }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let released = self.upkeep.pins.release(&self.objects);
        self.upkeep.look_at(released);
    }
}
