//! Makes room on the file system of the store: a thread looks how much is free, and evicts when it is too little; whoever
//! writes an object asks before, and waits for the next round if there is none. A build, and a download from a cache, wait
//! on their own threads, and look at no queue; an upload waits without a thread, and takes its turn ([`Asking`]).
//!
//! A round goes from what costs least to what costs most, until enough is free: unpacked trees, which are only copies;
//! what nobody needs, by its last use ([`evict`]); and then what is needed by members whose sessions, roots and builds need
//! more than their part, so that no member can keep everything by asking for it.
//! Not here: which rows go (`evict`), and which levels there are (`space`).

mod queue;

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::evict::{Evicted, Wish, evict};
use super::space::{Free, Levels, Space};
use super::work::Upkeep;
use crate::config::StoreConfig;
use crate::error::{FileError, ImportError, RegisterError};
use crate::long_work::LongWork;
use crate::objects::room::{AT_ONCE, Leave, Room, Writer};
use crate::types::Member;
use queue::{Answer, Queue};

/// Time between two looks at the file system.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same while uploads wait.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// After a round that freed nothing: a round looks at every path, so it is not made for every writer that asks.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Longest wait of a writer. A round takes as long as removing the files of its objects.
const PATIENCE: Duration = Duration::from_secs(60);
/// A writer gives up after so many rounds without any effect: the first one may have begun before others took what there was.
const IDLE_ROUNDS: u64 = 2;
/// Longest wait for the thread that removes files.
const REMOVAL: Duration = Duration::from_secs(20);
/// Room that one round makes for uploads that wait, beyond the usual level. The others wait for the next one.
const MOST_WANTED: u64 = 256 << 20;

#[derive(Default)]
struct State {
    /// Number of looks for those who wait, each with its answers.
    looks: u64,
    /// Number of rounds that had no effect.
    idle_rounds: u64,
    /// What has to be free for the writer who waits on a thread and wants most; nothing if there is none.
    wanted: Free,
    /// Uploads that wait.
    queue: Queue,
    /// Somebody has begun to wait since the last round began.
    is_urgent: bool,
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
        let longest = if state.queue.is_empty() { LOOK_EVERY } else { LOOK_SOON };
        let idle = |state: &mut State| !state.stop && !state.is_urgent;
        let waited = self.changed.wait_timeout_while(state, longest, idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.is_urgent = false;
        !state.stop
    }

    /// What has to be free for all who wait.
    fn wanted(&self, levels: &Levels) -> Free {
        let state = self.state();
        let (bytes, files) = state.queue.wanted();
        match files {
            0 => state.wanted,
            _ => state.wanted.max(levels.for_uploads.and(bytes.min(MOST_WANTED), files)),
        }
    }

    /// Ends a round.
    fn end_round(&self, levels: &Levels, had_effect: bool) {
        let mut state = self.state();
        state.idle_rounds += u64::from(!had_effect);
        state.wanted = Free::default();
        drop(state);
        self.serve(levels);
    }

    /// Ends the waits of those who have room now, or have waited long enough. A round can take longer than they wait, so it
    /// calls this after each eviction.
    fn serve(&self, levels: &Levels) {
        let space = self.space();
        let fits = |bytes, files| {
            space.as_ref().is_ok_and(|space| levels.for_uploads.and(bytes, files).missing(space).is_nothing())
        };
        let mut state = self.state();
        state.looks += 1;
        let idle_rounds = state.idle_rounds;
        let wake = state.queue.serve(Instant::now(), idle_rounds, fits);
        drop(state);
        self.changed.notify_all();
        wake.into_iter().for_each(std::task::Waker::wake);
    }

    fn stop(&self) {
        let mut state = self.state();
        state.stop = true;
        let wake = state.queue.serve(Instant::now(), u64::MAX, |_, _| false);
        drop(state);
        self.changed.notify_all();
        wake.into_iter().for_each(std::task::Waker::wake);
    }

    fn is_stopping(&self) -> bool {
        self.state().stop
    }
}

impl Room for Rooms {
    fn wait_for(&self, bytes: u64, writer: Writer) -> io::Result<()> {
        let Some(levels) = self.levels else { return Ok(()) };
        let keep = match writer {
            Writer::Upload => levels.for_uploads,
            Writer::Build => levels.for_builds,
        };
        let keep = keep.and(bytes, 1);
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
        let until_idle = self.state().idle_rounds + IDLE_ROUNDS;
        loop {
            let space = self.space()?;
            if keep.missing(&space).is_nothing() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut state = self.state();
            if state.stop {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if state.idle_rounds >= until_idle || left.is_zero() {
                return Err(full(&space, levels));
            }
            state.wanted = state.wanted.max(keep);
            state.is_urgent = true;
            self.changed.notify_all();
            let before = state.looks;
            let same = |state: &mut State| state.looks == before && !state.stop;
            drop(self.changed.wait_timeout_while(state, left, same));
        }
    }

    /// Room for so many bytes of an upload, in so many files, that `payer` pays for.
    pub(crate) fn ask(self: &Arc<Self>, payer: &Member, bytes: u64, files: u64) -> Asking {
        Asking { rooms: Arc::clone(self), payer: payer.clone(), bytes: bytes.max(AT_ONCE), files, id: None }
    }
}

/// A future of room for the next bytes of an upload. While it waits it has no thread. Dropping it ends the wait.
#[must_use]
pub struct Asking {
    rooms: Arc<Rooms>,
    payer: Member,
    bytes: u64,
    files: u64,
    /// In the queue.
    id: Option<u64>,
}

impl Future for Asking {
    type Output = Result<Leave, ImportError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(levels) = this.rooms.levels else { return Poll::Ready(Ok(Leave::new(this.bytes))) };
        let failed = |e| Err(ImportError::from(FileError::new("write", "an object", e)));
        if let Some(id) = this.id {
            let answer = this.rooms.state().queue.answer(id, context.waker());
            return match answer {
                None => Poll::Pending,
                Some(Answer::Room) => Poll::Ready(Ok(Leave::new(this.bytes))),
                Some(Answer::Full) if this.rooms.is_stopping() => {
                    Poll::Ready(failed(io::ErrorKind::Interrupted.into()))
                }
                Some(Answer::Full) => {
                    let full = this.rooms.space().map(|space| full(&space, &levels));
                    Poll::Ready(failed(full.unwrap_or_else(|e| e)))
                }
            };
        }
        let space = match this.rooms.space() {
            Ok(space) => space,
            Err(e) => return Poll::Ready(failed(e)),
        };
        let mut state = this.rooms.state();
        // No upload overtakes those that wait; builds and downloads do, on their threads.
        if state.queue.is_empty()
            && levels.for_uploads.and(this.bytes, this.files).missing(&space).is_nothing()
        {
            return Poll::Ready(Ok(Leave::new(this.bytes)));
        }
        if state.stop {
            return Poll::Ready(failed(io::ErrorKind::Interrupted.into()));
        }
        let until = (Instant::now() + PATIENCE, state.idle_rounds + IDLE_ROUNDS);
        this.id =
            Some(state.queue.add(&this.payer, (this.bytes, this.files), until, context.waker().clone()));
        state.is_urgent = true;
        drop(state);
        this.rooms.changed.notify_all();
        Poll::Pending
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.rooms.state().queue.remove(id);
        }
    }
}

fn full(space: &Space, levels: &Levels) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, words(space, levels))
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

/// Ends all waits when the thread ends, also by a panic: nobody else would.
struct EndsWaits(Arc<Rooms>);

impl Drop for EndsWaits {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The thread. Dropping it ends it.
pub(crate) struct RoomKeeper {
    rooms: Arc<Rooms>,
    thread: Option<JoinHandle<()>>,
}

impl RoomKeeper {
    /// Starts the thread, if anything is ever evicted.
    pub(crate) fn start(rooms: &Arc<Rooms>, upkeep: &Arc<Upkeep>) -> Self {
        let start = |levels: Levels| {
            let (rooms, upkeep) = (EndsWaits(Arc::clone(rooms)), Arc::clone(upkeep));
            let work = move || attend(&rooms, &levels, &upkeep);
            std::thread::Builder::new().name("store-room".into()).spawn(work)
        };
        let thread = rooms.levels.map(start).transpose();
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

fn attend(EndsWaits(rooms): &EndsWaits, levels: &Levels, upkeep: &Upkeep) {
    let (mut idle_until, mut is_told) = (Instant::now(), false);
    while rooms.wait() {
        let wanted = rooms.wanted(levels);
        let is_low = |free: Free| rooms.space().is_ok_and(|space| !free.missing(&space).is_nothing());
        if !is_low(levels.low.max(wanted)) {
            rooms.end_round(levels, true);
            continue;
        }
        let mut had_effect = false;
        if Instant::now() >= idle_until {
            match make_room(rooms, upkeep, levels.enough.max(wanted), "the store is nearly full") {
                Ok(evicted) => (had_effect, is_told) = (evicted, false),
                // It stays like that until the next start.
                Err(RegisterError::Stuck) if is_told => {}
                Err(error) => {
                    tracing::error!(%error, "the store cannot make room");
                    is_told = true;
                }
            }
            if !had_effect {
                idle_until = Instant::now() + AGAIN_AFTER;
            }
        }
        rooms.end_round(levels, had_effect);
    }
}

/// Evicts until so much is free, or as much as is possible, and removes the files. Returns whether anything was removed.
pub(crate) fn make_room(
    rooms: &Rooms,
    upkeep: &Upkeep,
    enough: Free,
    why: &str,
) -> Result<bool, RegisterError> {
    let space = || rooms.space().map_err(|e| FileError::new("look at", "the store", e));
    let serve = || rooms.levels.iter().for_each(|levels| rooms.serve(levels));
    let mut evicted = Evicted::default();
    let trees = if enough.missing(&space()?).is_nothing() { 0 } else { upkeep.discard_trees() };
    if trees > 0 {
        upkeep.trees.wait_for_removal(REMOVAL);
        serve();
    }
    for respects_all_needs in [true, false] {
        loop {
            let space = space()?;
            let missing = enough.missing(&space);
            if missing.is_nothing() || rooms.is_stopping() {
                break;
            }
            let for_needs = (!respects_all_needs).then_some(space.total / 2);
            let wish = Wish { bytes: missing.bytes, objects: missing.files, for_needs };
            if !round(upkeep, wish, &mut evicted)? {
                break;
            }
            serve();
        }
    }
    report(rooms, &evicted, trees, why);
    Ok(evicted.paths > 0 || trees > 0)
}

/// Evicts so many bytes, or as many as is possible, of what nobody needs, and removes the files.
pub(crate) fn evict_bytes(
    rooms: &Rooms,
    upkeep: &Upkeep,
    bytes: u64,
    why: &str,
) -> Result<Evicted, RegisterError> {
    let mut evicted = Evicted::default();
    while evicted.bytes < bytes && !rooms.is_stopping() {
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
    // What is evicted now would free nothing, however much it is.
    if upkeep.is_stuck() {
        return Err(RegisterError::Stuck);
    }
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

#[cfg(test)]
#[path = "room/room_test.rs"]
mod room_test;
