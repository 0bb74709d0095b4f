//! Threads for work that blocks: files, hashing, the store's commits, names, builds.
//!
//! Work here waits for this machine's disk and processor, never for a client or a guest, and it has an owner. A
//! [`Crew`] is a fixed number of threads for one kind of short work. Each owner has a queue; the queues are served in
//! turn, and no owner has more than half of the threads, so a member who fills a crew with work delays only their own
//! work. Each kind of work has its own crew, since kinds wait for different things: a long transaction delays commits,
//! but no reads. Work that takes hours ([`Threads::alone`]: a build, a download) has a thread of its own; slots bound
//! the number of those.
//!
//! tokio's own blocking pool is not used for such work: an owner who blocked all its threads would block the whole box.
//! Only the threads that replace the callers of [`Crew::short`] come from it.
//! Not here: memory (`budget`), and how many builds there are (`builds::schedule`).

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// Threads for pieces of contents, per processor. They hash and copy, and sometimes wait for a disk.
const CONTENTS_PER_CPU: usize = 2;
const LEAST_CONTENTS: usize = 8;
/// Threads for commits. Waiting commits become one transaction in the store, so more threads make it faster.
const COMMITS: usize = 32;
/// Least number of threads for reading derivations, since plans can be large; else [`CONTENTS_PER_CPU`] for each
/// processor.
const LEAST_PLANS: usize = 4;

/// The reason why a task has no result.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// A bug; other tasks are not affected.
    #[error("it panicked: {0}")]
    Panicked(String),
    /// The kernel refused to start a thread. Waiting for one could take for ever.
    #[error("the box has no thread for it")]
    NoThread,
}

/// Work in progress: a future of its result. If the future is dropped before the work has begun, the work never begins;
/// work that has begun ends, and its result is dropped on its thread.
#[derive(Debug)]
pub struct Task<T>(oneshot::Receiver<Result<T, Lost>>);

impl<T> Future for Task<T> {
    type Output = Result<T, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().0).poll(cx).map(|told| told.unwrap_or(Err(Lost::NoThread)))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A job, and the future of its result.
fn job<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> (Job, Task<T>) {
    let (tell, told) = oneshot::channel();
    let job = move || {
        if tell.is_closed() {
            return;
        }
        let result = here(work);
        // An error means that the future was dropped; the result is dropped here.
        let _ = tell.send(result);
    };
    (Box::new(job), Task(told))
}

/// Does `work` on the calling thread. As on a thread of a crew, a panic becomes an error and affects nothing else.
fn here<T>(work: impl FnOnce() -> T) -> Result<T, Lost> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Lost::Panicked(said(&*panic)))
}

/// Whether this thread is one of an async runtime that can move its tasks to another one. A runtime with one thread
/// cannot.
fn can_hand_over() -> bool {
    Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
}

/// Does `work`, which may wait or take long. On a thread of the async runtime the other tasks of that thread move to
/// another one first. That takes about as long as to wake a thread, so short work that waits for nothing does without.
pub fn hand_over(work: &mut dyn FnMut()) {
    match can_hand_over() {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// All threads of the box for work that blocks. Clones share them.
#[derive(Clone, Debug)]
pub struct Threads {
    /// Pieces of uploads and of NARs that are sent, logs that are read.
    contents: Crew,
    /// Commits of the store.
    commits: Crew,
    /// Derivations: plans, keys, hashes.
    plans: Crew,
    lone: Arc<Lone>,
}

/// Counts the threads with a single piece of work each.
#[derive(Debug, Default)]
struct Lone {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Default for Threads {
    fn default() -> Self {
        Self::new()
    }
}

impl Threads {
    /// Crews that fit this machine. Their threads are started when they are needed.
    #[must_use]
    pub fn new() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            contents: Crew::new("contents", (CONTENTS_PER_CPU * cpus).max(LEAST_CONTENTS)),
            commits: Crew::new("commits", COMMITS),
            plans: Crew::new("plans", (CONTENTS_PER_CPU * cpus).max(LEAST_PLANS)),
            lone: Arc::default(),
        }
    }

    /// The same threads, for a store that calls [`hand_over`] before long work: the thread of a caller of
    /// [`Workers::commit_short`] keeps its other tasks until then.
    #[must_use]
    pub fn whose_commits_hand_over(self) -> Self {
        let commits = Crew(Arc::new(Inner { hands_over: true, ..Inner::new("commits", COMMITS) }));
        Self { commits, ..self }
    }

    /// The threads for the work of one member.
    #[must_use]
    pub fn of(&self, owner: &Arc<str>) -> Workers {
        Workers { threads: self.clone(), owner: owner.clone() }
    }

    /// Does `work` on a thread of its own, inside of the current runtime.
    pub fn alone<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        let runtime = tokio::runtime::Handle::current();
        let (job, task) = job(work);
        let counted = Counted::new(&self.lone);
        let run = move || {
            let (_counted, _inside) = (counted, runtime.enter());
            job();
        };
        if let Err(error) = std::thread::Builder::new().name(name.into()).spawn(run) {
            // The job was dropped with the thread, so its future returns an error.
            tracing::error!(%error, name, "cannot start a thread");
        }
        task
    }

    /// Waits until no [`Threads::alone`] runs any more, at most for `longest`.
    pub fn wait(&self, longest: Duration) {
        let deadline = Instant::now() + longest;
        let mut running = self.lone.running.lock().unwrap_or_else(PoisonError::into_inner);
        while *running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            running = self.lone.ended.wait_timeout(running, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Counted(Arc<Lone>);

impl Counted {
    fn new(lone: &Arc<Lone>) -> Self {
        *lone.running.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(lone.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_all();
    }
}

/// The threads, for one member's work.
#[derive(Clone, Debug)]
pub struct Workers {
    threads: Threads,
    owner: Arc<str>,
}

impl Workers {
    /// Receives or reads a piece of contents.
    pub fn contents<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        self.threads.contents.start(&self.owner, work)
    }

    /// Reads a piece of a file; an empty one means its end.
    pub fn read_at(&self, file: &Arc<File>, at: u64, longest: usize) -> Task<io::Result<Vec<u8>>> {
        let file = file.clone();
        self.contents(move || {
            let mut piece = vec![0; longest];
            let n = file.read_at(&mut piece, at)?;
            piece.truncate(n);
            Ok(piece)
        })
    }

    /// Commits a change of the store.
    pub fn commit<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        self.threads.commits.start(&self.owner, work)
    }

    /// As [`Workers::commit`], for work of some hundred microseconds. See [`Crew::short`] and
    /// [`Threads::whose_commits_hand_over`].
    pub async fn commit_short<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        self.threads.commits.short(&self.owner, work).await
    }

    /// Reads derivations, or makes a report that takes as long.
    pub fn plan<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        self.threads.plans.start(&self.owner, work)
    }
}

/// Threads for one kind of work. Clones share them.
#[derive(Clone, Debug)]
pub struct Crew(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: &'static str,
    most: usize,
    /// Whether short work calls [`hand_over`] itself where it waits.
    hands_over: bool,
    state: Mutex<State>,
    /// Notified when there may be work.
    to_do: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    idle: usize,
    /// Threads of callers that do work here.
    entered: usize,
    /// Owners with waiting or running work.
    lanes: HashMap<Arc<str>, Lane>,
    /// Owners with waiting work and a free thread, in turn; each is listed once.
    turns: VecDeque<Arc<str>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} threads, {} idle, {} owners", self.threads, self.idle, self.lanes.len())
    }
}

#[derive(Default)]
struct Lane {
    jobs: VecDeque<Job>,
    running: usize,
    /// Whether the owner is in `turns`.
    listed: bool,
}

impl Crew {
    /// At most `most` threads, half of them for one owner.
    #[must_use]
    pub fn new(name: &'static str, most: usize) -> Self {
        Self(Arc::new(Inner::new(name, most)))
    }

    /// Does `work` when it is its owner's turn. The callers bound the length of the queue: a session has at most three
    /// pieces of work at a time.
    pub fn start<T: Send + 'static>(
        &self,
        owner: &Arc<str>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        let (job, task) = job(work);
        let mut state = self.0.lock();
        state.lanes.entry(owner.clone()).or_default().jobs.push_back(job);
        self.0.list(&mut state, owner);
        self.summon(state);
        task
    }

    /// Does short work on the caller's own thread; to wake another thread and to be woken by it would take about as
    /// long as the work. The thread counts as one of the owner's. If the owner has no free thread, or other work waits,
    /// this is [`Crew::start`].
    ///
    /// The work may wait for a disk or for other commits: the runtime moves the other tasks of this thread to another
    /// one first ([`hand_over`]), unless the work does that itself.
    pub async fn short<T: Send + 'static>(
        &self,
        owner: &Arc<str>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        match can_hand_over().then(|| self.enter(owner)).flatten() {
            Some(_entered) if self.0.hands_over => here(work),
            Some(_entered) => tokio::task::block_in_place(|| here(work)),
            None => self.start(owner, work).await,
        }
    }

    /// Lets the caller's thread work here as one of the owner's, if no work waits and a thread is free.
    fn enter(&self, owner: &Arc<str>) -> Option<Entered<'_>> {
        let mut state = self.0.lock();
        let running = state.lanes.get(owner).map_or(0, |lane| lane.running);
        let busy = state.threads - state.idle + state.entered;
        if !state.turns.is_empty() || busy >= self.0.most || running >= self.0.of_one() {
            return None;
        }
        state.entered += 1;
        state.lanes.entry(owner.clone()).or_default().running += 1;
        Some(Entered { crew: self, owner: owner.clone() })
    }

    /// Wakes or starts a thread if there is work that may begin. Releases the lock before it wakes one, because the
    /// woken thread needs the lock and would have to wait again.
    fn summon(&self, mut state: MutexGuard<'_, State>) {
        if state.turns.is_empty() {
            return;
        }
        if state.idle > 0 {
            drop(state);
            self.0.to_do.notify_one();
            return;
        }
        if state.threads >= self.0.most {
            return;
        }
        let crew = self.clone();
        match std::thread::Builder::new().name(self.0.name.into()).spawn(move || crew.work()) {
            Ok(_) => state.threads += 1,
            Err(error) => {
                tracing::error!(%error, name = self.0.name, "cannot start a thread");
                if state.threads == 0 {
                    // No thread exists to do the work. Dropping the jobs returns an error to everybody who waits.
                    state.lanes.clear();
                    state.turns.clear();
                }
            }
        }
    }

    /// The main loop of a thread.
    fn work(&self) {
        let mut state = self.0.lock();
        loop {
            let Some(owner) = state.turns.pop_front() else {
                state.idle += 1;
                state = self.0.to_do.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            let Some(lane) = state.lanes.get_mut(&owner) else { continue };
            lane.listed = false;
            let Some(job) = lane.jobs.pop_front() else { continue };
            lane.running += 1;
            self.0.list(&mut state, &owner);
            // For the rest of the queue: two earlier notifications may have been for the same job.
            self.summon(state);
            job();
            state = self.0.lock();
            if let Some(lane) = state.lanes.get_mut(&owner) {
                lane.running -= 1;
            }
            self.0.list(&mut state, &owner);
        }
    }
}

/// The caller's thread while it does work of a crew.
struct Entered<'a> {
    crew: &'a Crew,
    owner: Arc<str>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.crew.0.lock();
        state.entered -= 1;
        if let Some(lane) = state.lanes.get_mut(&self.owner) {
            lane.running -= 1;
        }
        self.crew.0.list(&mut state, &self.owner);
        self.crew.summon(state);
    }
}

impl Inner {
    fn new(name: &'static str, most: usize) -> Self {
        Self { name, most, hands_over: false, state: Mutex::default(), to_do: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most threads for one owner.
    fn of_one(&self) -> usize {
        (self.most / 2).max(1)
    }

    /// Puts `owner` into `turns` if work waits and the owner has a free thread.
    fn list(&self, state: &mut State, owner: &Arc<str>) {
        let of_one = self.of_one();
        let Some(lane) = state.lanes.get_mut(owner) else { return };
        if !lane.listed && !lane.jobs.is_empty() && lane.running < of_one {
            lane.listed = true;
            state.turns.push_back(owner.clone());
        } else if lane.jobs.is_empty() && lane.running == 0 {
            state.lanes.remove(owner);
        }
    }
}

#[cfg(test)]
#[path = "threads_test.rs"]
mod threads_test;
