//! One commit for all who wait: whoever comes first leads, and takes along what others have ready.
//!
//! A commit costs two or three disk flushes however much is in it. So registrations queue here; while one group is on
//! its way to the disk the next one gathers. Order within a group: plans against the index, objects to their names,
//! one sync of that directory, one transaction, then the maps in memory. Nothing becomes visible before it is durable,
//! and no lock that readers need is held while the disk works.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::change::Change;
use crate::error::RegisterError;
use crate::index::Index;
use crate::store::{Inner, Temporary};

/// Most jobs of one group. Each may bring a batch of hundreds of paths, and all wait for the slowest.
const MAX_GROUP: usize = 256;

/// What a job decided to do.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    /// Complete and synced objects, and the NAR hashes that name them.
    pub(crate) objects: Vec<(Temporary, [u8; 32])>,
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

type Planner = Box<dyn FnOnce(&Index) -> Result<Plan, RegisterError> + Send>;
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

/// Runs `plan` against the index and makes what it decided durable, then visible. Blocks until then.
pub(crate) fn commit<T: Send + 'static>(
    store: &Inner,
    about: About,
    plan: impl FnOnce(&Index) -> Result<(Plan, T), RegisterError> + Send + 'static,
) -> Result<T, RegisterError> {
    let value = Arc::new(Mutex::new(None));
    let outcome = Arc::new(Mutex::new(None));
    let planner = {
        let value = Arc::clone(&value);
        move |index: &Index| {
            let (plan, result) = plan(index)?;
            *lock(&value) = Some(result);
            Ok(plan)
        }
    };
    let job = Job { about, plan: Some(Box::new(planner)), outcome: Arc::clone(&outcome) };
    let commits = &store.commits;
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
        lead(store, group);
        drop(lead_ends);
        queue = lock(&commits.queue);
    }
}

fn lead(store: &Inner, group: Vec<Job>) {
    // Held to the end: whoever removes objects takes it too.
    let mut db = store.db();
    let mut planned = Vec::with_capacity(group.len());
    let mut moved = false;
    for mut job in group {
        let Some(planner) = job.plan.take() else { continue };
        let plan = planner(&store.index());
        let kept = plan.and_then(|Plan { changes, objects }| {
            for (temporary, nar_hash) in objects {
                store.keep(temporary, &nar_hash)?;
                moved = true;
            }
            Ok(changes)
        });
        match kept {
            Ok(changes) => planned.push((job, changes)),
            Err(error) => job.end(Err(error)),
        }
    }
    // The names must be durable before a row mentions them.
    let written = match moved {
        true => store.sync_objects().map_err(RegisterError::File),
        false => Ok(()),
    };
    let any = planned.iter().any(|(_, changes)| !changes.is_empty());
    let written = written.and_then(|()| match any {
        true => db.write(planned.iter().flat_map(|(_, changes)| changes)).map_err(RegisterError::Index),
        false => Ok(()),
    });
    match written {
        Ok(()) => {
            let (jobs, changes): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
            store.apply(changes.into_iter().flatten());
            drop(db);
            jobs.iter().for_each(|job| job.end(Ok(())));
        }
        Err(error) => {
            let error = Arc::new(error);
            planned.iter().for_each(|(job, _)| job.end(Err(RegisterError::Shared(Arc::clone(&error)))));
        }
    }
}
