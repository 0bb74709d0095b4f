//! The background work of a store, for which no user waits, done in passes.
//!
//! A pass makes commits durable (where the store survives a reboot), gives new objects their names, and
//! removes objects that no row names any more. A commit leaves a new object below `new/`, and a deletion only
//! drops rows, so both do the same work whether or not another member has the same contents; the work that
//! depends on that happens here, later.
//!
//! The order of one pass: note the work and the number of the last row; flush; write the marker; only then
//! rename and remove. So an object that an older marker covers is replaced and removed only when the newer
//! state is durable.
//! Not here: the start after a pass that did not finish (`recovery`).

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

/// Bytes of new objects that cause an early flush. After an unclean start all of them are hashed, at about
/// 0.7 GB/s.
const FLUSH_BYTES: u64 = 256 << 20;

/// Most last uses that are written in one transaction.
const USES_AT_ONCE: usize = 1000;

/// The work of the next pass.
#[derive(Default)]
struct Work {
    /// Objects with rows that are not in their final places, in the order of their commits.
    settle: Vec<Kept>,
    /// Objects that lost a row, and trees made for it.
    gone: Vec<Doomed>,
    /// Total size of the new objects in bytes.
    bytes: u64,
    stop: bool,
}

#[derive(Default)]
struct Passing {
    /// A flush failed. The kernel reports such a failure only once, so a later success means nothing.
    failed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object that a commit gives a row: its file, its NAR hash, and the size of the file.
pub(crate) type NewObject = (Temporary, [u8; 32], u64);

/// The parts of the store that the housekeeper looks after, and the list of its work.
pub(crate) struct Upkeep {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) trees: Arc<Trees>,
    pub(crate) index: Arc<Index>,
    pub(crate) durability: Durability,
    marker: MarkerFile,
    /// The number in the marker.
    through: AtomicI64,
    pins: Pins,
    work: Mutex<Work>,
    changed: Condvar,
    /// Held during a pass, so that there is only one at a time.
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

    /// Takes over objects that rows name now. Called during the commit, so that a pass sees either all or
    /// none of them.
    pub(crate) fn keep(&self, new: Vec<NewObject>) {
        let bytes = new.iter().map(|(.., size)| size).sum();
        // Even if there is such an object already: the work of an upload must not show that.
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

    /// Schedules a check of objects that lost a path: an object without any path is removed, and so are trees
    /// made for removed paths. Objects in use are removed when they have no user any more. Takes the same
    /// time whatever other members have.
    pub(crate) fn look_at(&self, gone: impl IntoIterator<Item = Doomed>) {
        lock(&self.work).gone.extend(gone);
    }

    /// Does the scheduled work. The error of a flush is returned once; then no marker is written and nothing
    /// is renamed or removed until the next start, which checks by hash everything newer than the marker.
    pub(crate) fn pass(&self) -> Result<(), RegisterError> {
        self.note_uses();
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
            // The object stays below `new/`, where readers find it. The next start tries again.
            self.objects.settle(&kept).unwrap_or_else(|e| tracing::warn!("{e}"));
        }
        self.remove(work.gone);
        Ok(())
    }

    /// Whether a flush has failed, so that nothing is removed any more until the next start.
    pub(crate) fn is_stuck(&self) -> bool {
        lock(&self.passing).failed
    }

    /// Makes everything durable that was committed up to row `through`, and writes that number to the marker.
    fn flush(&self, through: i64) -> Result<(), RegisterError> {
        self.objects.sync()?;
        // After the flush: the write-ahead log is on the disk already, so commits wait only a short time.
        self.index.lock().checkpoint()?;
        match self.marker.write(&Marker::now(Durability::Flush, through)) {
            Ok(()) => self.through.store(through, Ordering::Relaxed),
            // The older marker is still true.
            Err(e) => tracing::warn!("{e}; after a power loss the start checks more than necessary"),
        }
        Ok(())
    }

    /// Removes objects that no row names and nobody uses. Commits can happen between two objects.
    fn remove(&self, gone: Vec<Doomed>) {
        for (object, trees) in gone {
            // Under this lock no registration can give an object a row, and no one can start to use it: that
            // requires a row.
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
            // A result is removed with its objects. Until now it was hidden because they have no path
            // (`Store::result`); if its row cannot be deleted now, the next start finds it without outputs.
            if !results.is_empty() {
                match index.write(&results) {
                    Ok(()) => index.show(results),
                    Err(e) => tracing::warn!("cannot forget results without outputs: {e}"),
                }
            }
            index.memory_mut().forget_object(&object);
        }
    }

    /// Removes the unpacked trees that nobody uses; returns their number. They are made again when they are needed.
    pub(super) fn discard_trees(&self) -> usize {
        let mut count = 0;
        for (object, place) in self.trees.list() {
            self.pins.remove_unless_used((object, HashSet::new()), |_| {
                self.trees.discard_at(&place);
                count += 1;
            });
        }
        count
    }

    /// Writes the last uses of paths that the database does not know yet. A failure loses only times.
    fn note_uses(&self) {
        let uses = self.index.read().take_touched();
        // Commits wait for each part only.
        for part in uses.chunks(USES_AT_ONCE) {
            if let Err(e) = self.index.lock().write(part) {
                tracing::warn!("cannot note when paths were used: {e}");
            }
        }
    }

    /// Waits for the next pass, at most for `longest`. False: the store closes, so there is none.
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

/// Keeps files of objects from being removed while it lives.
pub(crate) struct Pinned {
    upkeep: Arc<Upkeep>,
    objects: Vec<[u8; 32]>,
}

impl Pinned {
    /// The caller must still hold the lock on the index in which it saw these objects.
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
