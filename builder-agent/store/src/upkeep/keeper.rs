//! The store's housekeeper: everything that nobody waits for, done by one thread at a steady pace.
//!
//! A pass makes durable what was committed (where state survives a reboot), gives new objects their names, and removes
//! what lost its last name. A commit leaves a new object below `new/`, and a deletion only drops rows, so both do the
//! same work whether or not another member has the same contents; what depends on that happens here, later.
//!
//! The order of one pass: note what is to do and the number of the last row; flush; write the marker; then, and only then,
//! rename and remove. So an object that an older marker vouches for is replaced and removed by durable things only.
//! Not here: what a start does with what a pass did not get to (`recover`).

use std::collections::HashSet;
use std::mem;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::RegisterError;
use crate::objects::removal;
use crate::store::Shelf;
use crate::types::Durability;
use crate::upkeep::marker::Marker;

/// How long what was committed may wait for the disk: as long as the journal of ext4 makes changes wait by default.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// A flush comes earlier when there is so much to write. After an unclean start all of it is hashed, at about 0.7 GB/s.
const FLUSH_BYTES: u64 = 256 << 20;
/// Without a flush: how long objects wait for their names, and removed ones for their end.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// What the next pass has to do.
#[derive(Default)]
pub(crate) struct Work {
    /// Objects with rows that are still below `new/`, in the order of their commits.
    settle: Vec<([u8; 32], PathBuf)>,
    /// Objects that lost a row, and trees made for it.
    gone: Vec<([u8; 32], HashSet<PathBuf>)>,
    /// Bytes of new objects.
    bytes: u64,
    /// Something was committed.
    dirty: bool,
    stop: bool,
}

/// The list that commits leave for the thread.
#[derive(Default)]
pub(crate) struct WorkList {
    work: Mutex<Work>,
    changed: Condvar,
    /// Held during a pass: there is one at a time.
    passing: Mutex<Passing>,
}

#[derive(Default)]
struct Passing {
    /// A flush failed. The kernel reports that once, so no later success means anything.
    failed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkList {
    /// After a commit, while the database is locked: a pass sees all of it or nothing.
    pub(crate) fn committed(&self, settle: Vec<([u8; 32], PathBuf)>, bytes: u64) {
        let mut work = lock(&self.work);
        work.dirty = true;
        work.settle.extend(settle);
        let before = work.bytes;
        work.bytes = before.saturating_add(bytes);
        if before < FLUSH_BYTES && work.bytes >= FLUSH_BYTES {
            self.changed.notify_all();
        }
    }

    /// Objects to be looked at: those that nobody names any more go, with `trees` in any case.
    pub(crate) fn gone(&self, objects: impl IntoIterator<Item = ([u8; 32], HashSet<PathBuf>)>) {
        lock(&self.work).gone.extend(objects);
    }
}

/// The thread.
pub(crate) struct Keeper {
    shelf: Arc<Shelf>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts it. Without a thread the store works, and what it would have done is done when the store closes.
    pub(crate) fn start(shelf: &Arc<Shelf>) -> Self {
        let work = {
            let shelf = Arc::clone(shelf);
            move || attend(&shelf)
        };
        let thread = std::thread::Builder::new().name("store-keeper".into()).spawn(work);
        let thread =
            thread.inspect_err(|e| tracing::warn!("no thread for the store's housekeeping: {e}")).ok();
        Self { shelf: Arc::clone(shelf), thread }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        lock(&self.shelf.work.work).stop = true;
        self.shelf.work.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        report(pass(&self.shelf));
    }
}

fn attend(shelf: &Shelf) {
    let every = match shelf.config.durability {
        Durability::None => TIDY_EVERY,
        Durability::Flush => FLUSH_EVERY,
    };
    let list = &shelf.work;
    loop {
        let begun = Instant::now();
        let mut work = lock(&list.work);
        loop {
            if work.stop {
                return;
            }
            let left = every.saturating_sub(begun.elapsed());
            if left.is_zero() || work.bytes >= FLUSH_BYTES {
                break;
            }
            work = list.changed.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(work);
        report(pass(shelf));
    }
}

fn report(outcome: Result<(), RegisterError>) {
    if let Err(e) = outcome {
        tracing::error!(
            "the store cannot be flushed: {e}; restart the agent: it checks everything newer than the last flush"
        );
    }
}

/// Does what is to do. The error of a flush is told once; then nothing is promised, renamed or removed until the next
/// start, which checks by hash what is newer than the marker.
pub(crate) fn pass(shelf: &Shelf) -> Result<(), RegisterError> {
    let list = &shelf.work;
    let mut passing = lock(&list.passing);
    if passing.failed {
        lock(&list.work).bytes = 0;
        return Ok(());
    }
    let (work, through) = {
        let db = shelf.db();
        let mut work = lock(&list.work);
        let stop = work.stop;
        (mem::replace(&mut *work, Work { stop, ..Work::default() }), db.last_row())
    };
    if shelf.config.durability == Durability::Flush
        && work.dirty
        && let Err(e) = flush(shelf, through)
    {
        passing.failed = true;
        let doubt = Marker::now(Durability::Flush, shelf.through.load(Ordering::Relaxed)).doubtful();
        let told = shelf.marker.write(&doubt);
        told.unwrap_or_else(|e| tracing::error!("{e}; the next boot checks everything newer"));
        return Err(e);
    }
    for (object, place) in work.settle {
        // It stays where it is, and readers know where. The next start tries again.
        shelf.settle(&object, &place).unwrap_or_else(|e| tracing::warn!("{e}"));
    }
    removal::removed(shelf, work.gone);
    Ok(())
}

/// Makes everything durable that was committed up to row `through`, and says so in the marker.
fn flush(shelf: &Shelf, through: i64) -> Result<(), RegisterError> {
    shelf.sync_file_system()?;
    // After the flush, so that the write-ahead log is on the disk already and commits wait for little.
    shelf.db().checkpoint()?;
    match shelf.marker.write(&Marker::now(Durability::Flush, through)) {
        Ok(()) => shelf.through.store(through, Ordering::Relaxed),
        // An old promise is a true one.
        Err(e) => tracing::warn!("{e}; after a power loss the start checks more than necessary"),
    }
    Ok(())
}
