//! One commit for many waiting changes: the first thread leads, and includes the jobs that other threads have
//! ready.
//!
//! A commit is one transaction, however large. Therefore registrations queue here; while one group is written
//! the next one gathers. Order within a group: plans against the index, one transaction, then the maps in
//! memory. A visible change survives this process, and a power loss as soon as the housekeeper has flushed
//! it; no lock that readers need is held while the disk works.
//!
//! A commit that waits for no other thread, because no other commit is under way, is short work ([`crate::LongWork`]).
//!
//! Deletion has the opposite order: a path is hidden before it is deleted, so that a client that makes it a
//! temporary root meanwhile does not get the answer that it is valid. A crash in between brings back garbage
//! and nothing else.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::RegisterError;
use crate::index::change::Change;
use crate::index::holds::Holds;
use crate::index::memory::Memory;
use crate::index::{Index, Locked};
use crate::types::Member;

/// Most jobs of one group. Each may bring a batch of hundreds of paths, and all wait for the slowest.
const MAX_GROUP: usize = 256;

/// The decision of a job.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    /// Called after the changes are written and before they are visible: the objects that they name must be
    /// found by then.
    pub(crate) once_written: Option<Box<dyn FnOnce() + Send>>,
    /// Set if the changes only drop things.
    pub(crate) drops: Option<Drops>,
}

/// Whose things a plan drops.
pub(crate) enum Drops {
    /// This member's claims and what belongs to them.
    Of(Member),
    /// Rows of any layer. The function returns whether one of them was held or leased since the plan; it is called while
    /// no client gets an answer.
    Rows(Box<dyn Fn(&Holds) -> bool + Send>),
}

/// The paths that a job is about, by digest. Jobs about the same paths do not share a group, since the second
/// job has to see the result of the first.
#[derive(Default)]
pub(crate) struct About {
    pub(crate) adds: Vec<[u8; 20]>,
    pub(crate) reads: Vec<[u8; 20]>,
    /// The job may be about any path.
    pub(crate) everything: bool,
}

/// May be called again, when paths were held after the first call.
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
        // Happens only if the leader panicked: no thread may wait for ever.
        self.end(Err(RegisterError::Abandoned));
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    led: bool,
}

impl Queue {
    /// The first job, and all later jobs that can share its group.
    fn group(&mut self) -> Vec<Job> {
        let mut group: Vec<Job> = self.waiting.pop_front().into_iter().collect();
        if self.waiting.is_empty() || group[0].about.everything {
            return group;
        }
        let (mut added, mut read) = (HashSet::new(), HashSet::new());
        let mut note = |about: &About| {
            let clash = about.adds.iter().any(|p| added.contains(p) || read.contains(p))
                || about.reads.iter().any(|p| added.contains(p));
            // Also the paths of a job that has to wait: no later job may overtake it.
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

/// Runs `plan` against the index, writes its changes, then makes them visible. Blocks until then.
pub(crate) fn commit<T: Send + 'static>(
    index: &Index,
    about: About,
    plan: impl FnOnce(&Memory) -> Result<(Plan, T), RegisterError> + Send + 'static,
) -> Result<T, RegisterError> {
    let mut plan = Some(plan);
    commit_repeatable(index, about, move |memory| match plan.take() {
        Some(plan) => plan(memory),
        // Only a plan that drops something is called twice.
        None => Err(RegisterError::Abandoned),
    })
}

/// [`commit`] of a plan that can be called twice; the second result counts. For plans that drop paths that
/// may be held.
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
    let mut queue = lock(&index.commits.queue);
    let alone = !queue.led && queue.waiting.is_empty();
    queue.waiting.push_back(job);
    // With the queue locked no other job can join the group.
    match alone.then(|| index.try_lock()).flatten() {
        Some(locked) => lead(index, queue, Some(locked)),
        None => {
            drop(queue);
            index.long_work.run(|| wait_or_lead(index, &outcome));
        }
    }
    // Jobs in the same group end together, and a leader's group has the leader's job, or an earlier one.
    let outcome = lock(&outcome).take().unwrap_or(Err(RegisterError::Abandoned));
    outcome.and_then(|()| lock(&value).take().ok_or(RegisterError::Abandoned))
}

/// Returns when this outcome is there. Leads when no other thread does.
fn wait_or_lead(index: &Index, outcome: &Mutex<Option<Outcome>>) {
    let commits = &index.commits;
    let mut queue = lock(&commits.queue);
    while lock(outcome).is_none() {
        if queue.led {
            queue = commits.turn.wait(queue).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        lead(index, queue, None);
        queue = lock(&commits.queue);
    }
}

/// Commits the first group of the queue, whose lead is free. If the index is not locked yet, this waits for that.
fn lead(index: &Index, mut queue: MutexGuard<'_, Queue>, locked: Option<Locked<'_>>) {
    queue.led = true;
    let group = queue.group();
    drop(queue);
    let _lead_ends = Lead(&index.commits);
    commit_group(locked.unwrap_or_else(|| index.lock()), group);
}

/// A job after its plan was called.
struct Planned {
    job: Job,
    changes: Vec<Change>,
    once_written: Option<Box<dyn FnOnce() + Send>>,
    /// Set if the changes are visible already: the changes that take them back.
    undo: Option<Vec<Change>>,
}

/// The index is locked to the end: the thread that removes objects takes the same lock.
fn commit_group(mut locked: Locked<'_>, group: Vec<Job>) {
    let mut planned = Vec::with_capacity(group.len());
    for mut job in group {
        let Some(mut planner) = job.plan.take() else { continue };
        let mut plan = planner(&locked.index.read());
        let mut undo = None;
        if let Ok(Plan { drops: Some(_), .. }) = &plan {
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

/// Hides what `plan` drops before it is deleted. If one of these paths has become a temporary root since the
/// plan, the plan is called again. Returns the plan that counts, and the changes that take it back.
///
/// While the index is locked no client gets the answer that a path is valid, so a client that holds a dropped
/// path afterwards learns that it is not valid. The index cannot have changed since the plan, because only
/// the leader changes it.
fn drop_early(
    locked: &Locked<'_>,
    mut plan: Result<Plan, RegisterError>,
    planner: &mut Planner,
) -> (Result<Plan, RegisterError>, Option<Vec<Change>>) {
    let mut memory = locked.memory_mut();
    let held = match &plan {
        Ok(Plan { drops: Some(Drops::Rows(taken)), .. }) => taken(locked.holds()),
        Ok(Plan { changes, drops: Some(Drops::Of(member)), .. }) => {
            // A path that also has a Verified row stays valid.
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
