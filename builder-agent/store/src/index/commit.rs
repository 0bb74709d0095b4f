//! One commit for all who wait: whoever comes first leads, and takes along what others have ready.
//!
//! A commit is one transaction however much is in it. So registrations queue here; while one group is written the next
//! one gathers. Order within a group: plans against the index, one transaction, then the maps in memory. What became
//! visible survives this process, and a power loss as soon as the housekeeper has flushed it; no lock that readers need
//! is held while the disk works.
//!
//! Deleting is the other way round: what goes is out of sight before it is deleted, so that nobody who makes it a
//! temporary root meanwhile is told that it is there. A crash in between brings back garbage and nothing else.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::RegisterError;
use crate::index::change::Change;
use crate::index::memory::Memory;
use crate::index::{Index, Locked};
use crate::types::Member;

/// Most jobs of one group. Each may bring a batch of hundreds of paths, and all wait for the slowest.
const MAX_GROUP: usize = 256;

/// What a job decided to do.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    /// Called once the changes are written, before anybody can see them: what they name has to be found then.
    pub(crate) once_written: Option<Box<dyn FnOnce() + Send>>,
    /// The changes only drop things, namely this member's claims and what goes with them.
    pub(crate) drops_of: Option<Member>,
}

/// Which paths a job is about, by digest. Jobs that are about the same paths do not share a group, since the second
/// has to see what the first did.
#[derive(Default)]
pub(crate) struct About {
    pub(crate) adds: Vec<[u8; 20]>,
    pub(crate) reads: Vec<[u8; 20]>,
    /// It may be about anything.
    pub(crate) everything: bool,
}

/// May be asked again, with what was held meanwhile.
type Planner = Box<dyn FnMut(&Memory) -> Result<Plan, RegisterError> + Send>;
type Outcome = Result<(), RegisterError>;

struct Job {
    about: About,
    plan: Option<Planner>,
    /// Shared with the thread that waits for it.
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl Job {
    fn end(&self, outcome: Outcome) {
        lock(&self.outcome).get_or_insert(outcome);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Only if the leader panicked: nobody may wait for ever.
        self.end(Err(RegisterError::Abandoned));
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    led: bool,
}

impl Queue {
    /// The first job, and all that can go with it.
    fn group(&mut self) -> Vec<Job> {
        let mut group: Vec<Job> = self.waiting.pop_front().into_iter().collect();
        if self.waiting.is_empty() || group[0].about.everything {
            return group;
        }
        let (mut added, mut read) = (HashSet::new(), HashSet::new());
        let mut note = |about: &About| {
            let clash = about.adds.iter().any(|p| added.contains(p) || read.contains(p))
                || about.reads.iter().any(|p| added.contains(p));
            // Also of one that has to wait: nobody overtakes it.
            added.extend(about.adds.iter().copied());
            read.extend(about.reads.iter().copied());
            clash
        };
        note(&group[0].about);
        let mut later = VecDeque::new();
        while let Some(job) = self.waiting.pop_front() {
            if job.about.everything || group.len() == MAX_GROUP {
                later.push_back(job);
                break;
            }
            if note(&job.about) { later.push_back(job) } else { group.push(job) }
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        group
    }
}

/// The queue of one store.
#[derive(Default)]
pub(crate) struct Commits {
    queue: Mutex<Queue>,
    turn: Condvar,
}

/// Gives up the lead, also when the leader panics.
struct Lead<'a>(&'a Commits);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).led = false;
        self.0.turn.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `plan` against the index, writes down what it decided, then makes it visible. Blocks until then.
pub(crate) fn commit<T: Send + 'static>(
    index: &Index,
    about: About,
    plan: impl FnOnce(&Memory) -> Result<(Plan, T), RegisterError> + Send + 'static,
) -> Result<T, RegisterError> {
    let mut plan = Some(plan);
    commit_repeatable(index, about, move |memory| match plan.take() {
        Some(plan) => plan(memory),
        // Only plans that drop something are made twice.
        None => Err(RegisterError::Abandoned),
    })
}

/// [`commit`] of a plan that can be made twice: the second one counts. For plans that drop what may be held.
pub(crate) fn commit_repeatable<T: Send + 'static>(
    index: &Index,
    about: About,
    mut plan: impl FnMut(&Memory) -> Result<(Plan, T), RegisterError> + Send + 'static,
) -> Result<T, RegisterError> {
    let value = Arc::new(Mutex::new(None));
    let outcome = Arc::new(Mutex::new(None));
    let planner = {
        let value = Arc::clone(&value);
        move |memory: &Memory| {
            let (plan, result) = plan(memory)?;
            *lock(&value) = Some(result);
            Ok(plan)
        }
    };
    let job = Job { about, plan: Some(Box::new(planner)), outcome: Arc::clone(&outcome) };
    let commits = &index.commits;
    let mut queue = lock(&commits.queue);
    queue.waiting.push_back(job);
    loop {
        if let Some(outcome) = lock(&outcome).take() {
            drop(queue);
            return outcome.and_then(|()| lock(&value).take().ok_or(RegisterError::Abandoned));
        }
        if queue.led {
            queue = commits.turn.wait(queue).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        queue.led = true;
        let group = queue.group();
        drop(queue);
        let lead_ends = Lead(commits);
        lead(index, group);
        drop(lead_ends);
        queue = lock(&commits.queue);
    }
}

/// A job whose plan is made.
struct Planned {
    job: Job,
    changes: Vec<Change>,
    once_written: Option<Box<dyn FnOnce() + Send>>,
    /// If they are visible already: what takes them back.
    undo: Option<Vec<Change>>,
}

fn lead(index: &Index, group: Vec<Job>) {
    // Held to the end: whoever removes objects takes it too.
    let mut locked = index.lock();
    let mut planned = Vec::with_capacity(group.len());
    for mut job in group {
        let Some(mut planner) = job.plan.take() else { continue };
        let mut plan = planner(&index.read());
        let mut undo = None;
        if let Ok(Plan { drops_of: Some(_), .. }) = &plan {
            (plan, undo) = drop_early(&locked, plan, &mut planner);
        }
        match plan {
            Ok(Plan { changes, once_written, .. }) => {
                planned.push(Planned { job, changes, once_written, undo });
            }
            Err(error) => job.end(Err(error)),
        }
    }
    let any = planned.iter().any(|one| !one.changes.is_empty());
    let written = match any {
        true => locked.write(planned.iter().flat_map(|one| &one.changes)).map_err(RegisterError::Index),
        false => Ok(()),
    };
    match written {
        Ok(()) => {
            locked.note_commit();
            planned.iter_mut().filter_map(|one| one.once_written.take()).for_each(|call| call());
            let unseen = planned.iter_mut().filter(|one| one.undo.is_none());
            let changes: Vec<Change> = unseen.flat_map(|one| std::mem::take(&mut one.changes)).collect();
            locked.show(changes);
            drop(locked);
            planned.iter().for_each(|one| one.job.end(Ok(())));
        }
        Err(error) => {
            let error = Arc::new(error);
            let undo = planned.iter_mut().filter_map(|one| one.undo.take()).flatten();
            locked.show(undo.collect());
            planned.iter().for_each(|one| one.job.end(Err(RegisterError::Shared(Arc::clone(&error)))));
        }
    }
}

/// Takes what `plan` drops out of sight, before it is deleted, unless somebody has made one of these paths a temporary
/// root since it was planned: then it is planned again. Returns what counts, and what takes it back.
///
/// With the index locked nobody is told that a path is valid, so whoever holds one afterwards hears that it is gone.
/// The index cannot have changed since the plan, because only the leader changes it.
fn drop_early(
    locked: &Locked<'_>,
    mut plan: Result<Plan, RegisterError>,
    planner: &mut Planner,
) -> (Result<Plan, RegisterError>, Option<Vec<Change>>) {
    let mut memory = locked.memory_mut();
    let held = match &plan {
        Ok(Plan { changes, drops_of: Some(member), .. }) => {
            // What a Verified path hides stays valid by that.
            let gone = |change: &Change| match change {
                Change::DropClaim { path, .. } if !memory.is_verified(path) => {
                    locked.holds().has(member, path)
                }
                _ => false,
            };
            changes.iter().any(gone)
        }
        _ => false,
    };
    if held {
        plan = planner(&memory);
    }
    let undo = plan.as_ref().ok().map(|plan| {
        let undo: Vec<Change> = plan.changes.iter().filter_map(|change| memory.inverse(change)).collect();
        plan.changes.iter().for_each(|change| memory.apply(change.clone()));
        undo
    });
    (plan, undo)
}
