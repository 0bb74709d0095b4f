//! Threads for work that blocks: files, hashing, the store's commits, names, builds.
//!
//! Work here waits for this machine's disk and processor, never for a client or a guest's leisure, and it belongs to
//! somebody. A [`Crew`] is a fixed number of threads for one kind of short work. Each owner has a queue of their own; the
//! queues are served in turn, and no owner has more than half of the threads, so that whoever fills a crew with work
//! waits for themselves. Kinds have crews of their own, since they wait for different things: a long transaction holds
//! up commits, and nobody's reading. What takes hours ([`Threads::alone`]: a build, a download) has a thread of its own;
//! slots bound how many there are.
//!
//! tokio's own blocking pool is for nobody: whoever parked threads there would park the whole box. Only the threads that
//! stand in for those in [`Crew::short`] come from it.
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

/// Threads for pieces of contents, for each processor. They hash and copy, and sometimes wait for a disk.
const CONTENTS_PER_CPU: usize = 2;
const LEAST_CONTENTS: usize = 8;
/// Threads for commits. They wait for one another in the store, which makes one transaction of many: the more the better.
const COMMITS: usize = 32;
/// Threads for reading derivations: as `CONTENTS_PER_CPU`, with large plans in mind.
const LEAST_PLANS: usize = 4;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// A bug: the others do not notice.
    #[error("it panicked: {0}")]
    Panicked(String),
    /// The kernel gave no thread. Waiting for one could take for ever.
    #[error("the box has no thread for it")]
    NoThread,
}

/// Work in progress: a future of its result. If this is dropped before the work has begun, it never does; work that has
/// begun ends, and its result is dropped on its thread.
#[derive(Debug)]
pub struct Task<T>(oneshot::Receiver<Result<T, Lost>>);

impl<T> Future for Task<T> {
    type Output = Result<T, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.get_mut().0).poll(cx).map(|told| told.unwrap_or(Err(Lost::NoThread)))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A job, and where its result will be.
fn job<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> (Job, Task<T>) {
    let (tell, told) = oneshot::channel();
    let job = move || {
        if tell.is_closed() {
            return;
        }
        let result = here(work);
        // Nobody waits any more: what was made is dropped here.
        let _ = tell.send(result);
    };
    (Box::new(job), Task(told))
}

/// Does `work` where the caller is, as a thread of a crew would: a panic is told and ends nothing else.
fn here<T>(work: impl FnOnce() -> T) -> Result<T, Lost> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Lost::Panicked(said(&*panic)))
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

/// Counts threads that have one work each.
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
    /// As many as fit this machine. They are started when they are needed.
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

    /// For the work of one member.
    #[must_use]
    pub fn of(&self, owner: &Arc<str>) -> Workers {
        Workers { threads: self.clone(), owner: owner.clone() }
    }

    /// Does `work` on a thread of its own, inside of the runtime at hand.
    pub fn alone<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        let runtime = tokio::runtime::Handle::current();
        let (job, task) = job(work);
        let counted = Counted::new(&self.lone);
        let run = move || {
            let (_counted, _inside) = (counted, runtime.enter());
            job();
        };
        if let Err(error) = std::thread::Builder::new().name(name.into()).spawn(run) {
            // The job is gone with its thread, which its task notices.
            tracing::error!(%error, name, "cannot start a thread");
        }
        task
    }

    /// Waits until no [`Threads::alone`] runs any more, but no longer than this.
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
    /// Takes in or reads a piece of contents.
    pub fn contents<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        self.threads.contents.start(&self.owner, work)
    }

    /// Reads a piece of a file; an empty one is its end.
    pub fn read_at(&self, file: &Arc<File>, at: u64, longest: usize) -> Task<io::Result<Vec<u8>>> {
        let file = file.clone();
        self.contents(move || {
            let mut piece = vec![0; longest];
            let n = file.read_at(&mut piece, at)?;
            piece.truncate(n);
            Ok(piece)
        })
    }

    /// Changes what the store says.
    pub fn commit<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        self.threads.commits.start(&self.owner, work)
    }

    /// The same for work of some hundred microseconds. See [`Crew::short`].
    pub async fn commit_short<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        self.threads.commits.short(&self.owner, work).await
    }

    /// Reads derivations.
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
    state: Mutex<State>,
    /// Told when there may be something to do.
    to_do: Condvar,
}

#[derive(Default)]
struct State {
    threads: usize,
    idle: usize,
    /// Threads of others that are at work here.
    entered: usize,
    /// Owners with something to do or being done.
    lanes: HashMap<Arc<str>, Lane>,
    /// Owners with something to do and a thread to spare, in turn. Each once.
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
    /// Whether it stands in `turns`.
    listed: bool,
}

impl Crew {
    /// At most `most` threads, half of them for one owner.
    #[must_use]
    pub fn new(name: &'static str, most: usize) -> Self {
        Self(Arc::new(Inner { name, most, state: Mutex::default(), to_do: Condvar::new() }))
    }

    /// Does `work` when it is its owner's turn. What waits is bounded by who waits for it: a session has at most three
    /// works at a time.
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

    /// Does short work on the caller's own thread, where waking a thread and being woken by it would take about as long as
    /// the work. The thread counts as one of the owner's. If the owner has no room for it, or somebody waits, this is
    /// [`Crew::start`].
    ///
    /// The work may wait for a disk or for other commits: the runtime gives the other tasks of this thread to another one.
    pub async fn short<T: Send + 'static>(
        &self,
        owner: &Arc<str>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        // A runtime with one thread has no other one to give tasks to.
        let hands_over = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
        match hands_over.then(|| self.enter(owner)).flatten() {
            Some(_entered) => tokio::task::block_in_place(|| here(work)),
            None => self.start(owner, work).await,
        }
    }

    /// Lets the caller's thread work here as one of the owner's, if nobody waits and there is room.
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

    /// Sees to it that somebody comes, if there is something to do that may be begun. Takes the lock with it: who is woken
    /// needs it at once, and would go to sleep again.
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
                    // Nobody would ever come. Those who wait are told.
                    state.lanes.clear();
                    state.turns.clear();
                }
            }
        }
    }

    /// A thread's whole life.
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
            // For what is left: whoever was told of it before may have been told twice of the same.
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

/// A thread that works in a crew for a moment.
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most threads for one owner.
    fn of_one(&self) -> usize {
        (self.most / 2).max(1)
    }

    /// Gives `owner` a turn if there is something to do for it and it has a thread to spare.
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
