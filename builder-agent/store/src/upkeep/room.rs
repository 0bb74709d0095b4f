//! Makes room on the file system of the store: a thread looks how much is free, and evicts when it is too little; whoever
//! writes an object asks before, and waits for the next round if there is none.
//!
//! A round goes from what costs least to what costs most, until enough is free: unpacked trees, which are only copies;
//! what nobody needs, by its last use ([`evict`]); and then what is needed by members whose sessions, roots and builds need
//! more than their part, so that no member can keep everything by asking for it.
//! Not here: which rows go (`evict`), and which levels there are (`space`).

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::evict::{Evicted, Wish, evict};
use super::space::{Free, Levels, Space};
use super::work::Upkeep;
use crate::config::StoreConfig;
use crate::error::{FileError, RegisterError};
use crate::long_work::LongWork;
use crate::objects::room::{Room, Writer};

/// Time between two looks at the file system.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a round that freed nothing: a round looks at every path, so it is not made for every writer that asks.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Longest wait of a writer. A round takes as long as removing the files of its objects.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for the thread that removes files.
const REMOVAL: Duration = Duration::from_secs(20);

#[derive(Default)]
struct State {
    /// Number of rounds that have ended.
    rounds: u64,
    /// A writer waits for a round.
    wanted: bool,
    stop: bool,
}

/// What the thread and the writers share.
pub(crate) struct Rooms {
    /// A folder of the store, open.
    folder: File,
    /// `None`: nothing is ever evicted for room, and writers do not wait.
    levels: Option<Levels>,
    /// Called around a wait.
    long_work: LongWork,
    pressure: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
}

impl Rooms {
    pub(crate) fn open(root: &Path, config: &StoreConfig) -> Result<Self, FileError> {
        let failed = |e| FileError::new("look at", root, e);
        let folder = File::open(root).map_err(failed)?;
        let levels = Levels::new(config.min_free, &Space::around(&folder).map_err(failed)?);
        let (pressure, state, changed) = (AtomicU32::new(0), Mutex::default(), Condvar::new());
        Ok(Self { folder, levels, long_work: config.long_work, pressure, state, changed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The room at this moment.
    pub(crate) fn space(&self) -> io::Result<Space> {
        let space = Space::around(&self.folder)?;
        let pressure = self.levels.map_or(0, |levels| levels.pressure(&space));
        self.pressure.store(pressure, Ordering::Relaxed);
        Ok(space)
    }

    /// How scarce room was at the last look, from 0 to 1000.
    pub(crate) fn pressure(&self) -> u32 {
        self.pressure.load(Ordering::Relaxed)
    }

    /// Waits until a round is due, or for the next look. False: the store closes.
    fn wait(&self) -> bool {
        let state = self.state();
        let idle = |state: &mut State| !state.stop && !state.wanted;
        let waited = self.changed.wait_timeout_while(state, LOOK_EVERY, idle);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    fn end_round(&self) {
        let mut state = self.state();
        (state.rounds, state.wanted) = (state.rounds + 1, false);
        drop(state);
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }
}

impl Room for Rooms {
    fn wait_for(&self, bytes: u64, writer: Writer) -> io::Result<()> {
        let Some(levels) = self.levels else { return Ok(()) };
        let keep = match writer {
            Writer::Upload => levels.for_uploads,
            Writer::Build => levels.for_builds,
        };
        let keep =
            Free { bytes: keep.bytes.saturating_add(bytes), files: keep.files + u64::from(keep.files > 0) };
        match keep.missing(&self.space()?).is_nothing() {
            true => Ok(()),
            false => self.long_work.run(|| self.wait_until(keep, &levels)),
        }
    }
}

impl Rooms {
    /// Asks for rounds of eviction until so much is free.
    fn wait_until(&self, keep: Free, levels: &Levels) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut rounds = 0;
        loop {
            let space = self.space()?;
            if keep.missing(&space).is_nothing() {
                return Ok(());
            }
            // The first round may have begun before others took what it freed.
            let left = deadline.saturating_duration_since(Instant::now());
            if rounds >= 2 || left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::StorageFull, words(&space, levels)));
            }
            let mut state = self.state();
            if state.stop {
                return Err(io::ErrorKind::Interrupted.into());
            }
            state.wanted = true;
            self.changed.notify_all();
            let before = state.rounds;
            let same = |state: &mut State| state.rounds == before && !state.stop;
            drop(self.changed.wait_timeout_while(state, left, same));
            rounds += 1;
        }
    }
}

/// The reason why there is no room, and what helps. How much is free is not said: an uploader could see whether others have
/// the same contents.
fn words(space: &Space, levels: &Levels) -> String {
    let (total, low) = (space.total >> 20, levels.low.bytes >> 20);
    let files = match levels.low.files {
        0 => String::new(),
        files => format!(" and {files} inodes (`store.min-free-inodes-percent`)"),
    };
    format!(
        "No space left on device: the box's store, of {total} MiB, has less free than the {low} MiB (`store.min-free-mib`){files} \
         from which on it evicts paths, and everything else in it is in use; try again later, end sessions and remove roots \
         that you do not need, or ask the operator for a larger store",
    )
}

/// The thread. Dropping it ends it.
pub(crate) struct RoomKeeper {
    rooms: Arc<Rooms>,
    thread: Option<JoinHandle<()>>,
}

impl RoomKeeper {
    /// Starts the thread, if anything is ever evicted.
    pub(crate) fn start(rooms: &Arc<Rooms>, upkeep: &Arc<Upkeep>) -> Self {
        let work = {
            let (rooms, upkeep) = (Arc::clone(rooms), Arc::clone(upkeep));
            move || attend(&rooms, &upkeep)
        };
        let start = || std::thread::Builder::new().name("store-room".into()).spawn(work);
        let thread = rooms.levels.map(|_| start()).transpose();
        let thread = thread.inspect_err(|e| tracing::error!("no thread for making room in the store: {e}"));
        Self { rooms: Arc::clone(rooms), thread: thread.ok().flatten() }
    }
}

impl Drop for RoomKeeper {
    fn drop(&mut self) {
        self.rooms.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn attend(rooms: &Rooms, upkeep: &Upkeep) {
    let mut idle_until = Instant::now();
    while rooms.wait() {
        let Some(levels) = rooms.levels else { return };
        let is_low = rooms.space().is_ok_and(|space| !levels.low.missing(&space).is_nothing());
        if is_low && Instant::now() >= idle_until {
            match make_room(rooms, upkeep, levels.enough, "the store is nearly full") {
                Ok(evicted) if evicted.paths > 0 => {}
                Ok(_) => idle_until = Instant::now() + AGAIN_AFTER,
                Err(error) => {
                    tracing::error!(%error, "the store cannot make room");
                    idle_until = Instant::now() + AGAIN_AFTER;
                }
            }
        }
        rooms.end_round();
    }
}

/// Evicts until so much is free, or as much as is possible, and removes the files.
fn make_room(rooms: &Rooms, upkeep: &Upkeep, enough: Free, why: &str) -> Result<Evicted, RegisterError> {
    let space = || rooms.space().map_err(|e| FileError::new("look at", "the store", e));
    let mut evicted = Evicted::default();
    let trees = upkeep.discard_trees();
    if trees > 0 {
        upkeep.trees.wait_for_removal(REMOVAL);
    }
    let part = |space: &Space| space.total / 2 / (upkeep.index.holds().members().max(1) as u64);
    for respects_all_needs in [true, false] {
        loop {
            let space = space()?;
            let missing = enough.missing(&space);
            if missing.is_nothing() {
                break;
            }
            let most_needed = (!respects_all_needs).then(|| part(&space));
            let wish = Wish { bytes: missing.bytes, objects: missing.files, most_needed };
            if !round(upkeep, wish, &mut evicted)? {
                break;
            }
        }
    }
    report(rooms, &evicted, trees, why);
    Ok(evicted)
}

/// Evicts so many bytes, or as many as is possible, of what nobody needs, and removes the files.
pub(crate) fn evict_bytes(
    rooms: &Rooms,
    upkeep: &Upkeep,
    bytes: u64,
    why: &str,
) -> Result<Evicted, RegisterError> {
    let mut evicted = Evicted::default();
    while evicted.bytes < bytes {
        let wish = Wish { bytes: bytes - evicted.bytes, ..Wish::default() };
        if !round(upkeep, wish, &mut evicted)? {
            break;
        }
    }
    report(rooms, &evicted, 0, why);
    Ok(evicted)
}

/// One eviction, with the files. False: there was nothing to evict.
fn round(upkeep: &Upkeep, wish: Wish, all: &mut Evicted) -> Result<bool, RegisterError> {
    let evicted = evict(upkeep, wish)?;
    if evicted.paths == 0 {
        return Ok(false);
    }
    all.add(evicted);
    // Objects go in a pass, where nothing is removed before its rows are durably gone.
    upkeep.pass()?;
    upkeep.trees.wait_for_removal(REMOVAL);
    Ok(true)
}

fn report(rooms: &Rooms, evicted: &Evicted, trees: usize, why: &str) {
    if evicted.paths > 0 || trees > 0 {
        let Evicted { paths, objects, bytes } = evicted;
        let free_mib = rooms.space().ok().map(|space| space.free >> 20);
        tracing::info!(paths, objects, bytes, trees, free_mib, why, "evicted");
    }
}
