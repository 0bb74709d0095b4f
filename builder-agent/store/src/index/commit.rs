//! One commit for all who wait: whoever comes first leads, and takes along what others have ready.
//!
//! A commit is one transaction however much is in it. So registrations queue here; while one group is written the next
//! one gathers. Order within a group: plans against the index, one transaction, then the maps in memory; objects are
//! complete before, and get their names later (`keeper`). What became visible survives this process, and a power loss as
//! soon as the housekeeper has flushed it; no lock that readers need is held while the disk works.
//!
//! Deleting is the other way round: what goes is out of sight before it is deleted, so that nobody who makes it a
//! temporary root meanwhile is told that it is there. A crash in between brings back garbage and nothing else.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::RegisterError;
use crate::index::change::Change;
use crate::index::memory::Index;
use crate::store::{Inner, Temporary};
use crate::types::Member;

/// Most jobs of one group. Each may bring a batch of hundreds of paths, and all wait for the slowest.
const MAX_GROUP: usize = 256;

/// What a job decided to do.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    /// Complete objects, the NAR hashes that name them, and the sizes of their files.
    pub(crate) objects: Vec<(Temporary, [u8; 32], u64)>,
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
type Planner = Box<dyn FnMut(&Index) -> Result<Plan, RegisterError> + Send>;
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
    store: &Inner,
    about: About,
    plan: impl FnOnce(&Index) -> Result<(Plan, T), RegisterError> + Send + 'static,
) -> Result<T, RegisterError> {
    let mut plan = Some(plan);
    commit_repeatable(store, about, move |index| match plan.take() {
        Some(plan) => plan(index),
        // Only plans that drop something are made twice.
        None => Err(RegisterError::Abandoned),
    })
}

/// [`commit`] of a plan that can be made twice: the second one counts. For plans that drop what may be held.
pub(crate) fn commit_repeatable<T: Send + 'static>(
    store: &Inner,
    about: About,
    mut plan: impl FnMut(&Index) -> Result<(Plan, T), RegisterError> + Send + 'static,
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

/// A job whose plan is made.
struct Planned {
    job: Job,
    changes: Vec<Change>,
    objects: Vec<(Temporary, [u8; 32], u64)>,
    /// If they are visible already: what takes them back.
    undo: Option<Vec<Change>>,
}

fn lead(store: &Inner, group: Vec<Job>) {
    // Held to the end: whoever removes objects takes it too.
    let mut db = store.db();
    let mut planned = Vec::with_capacity(group.len());
    for mut job in group {
        let Some(mut planner) = job.plan.take() else { continue };
        let mut plan = planner(&store.index());
        let mut undo = None;
        if let Ok(Plan { drops_of: Some(_), .. }) = &plan {
            (plan, undo) = drop_early(store, plan, &mut planner);
        }
        match plan {
            Ok(Plan { changes, objects, .. }) => planned.push(Planned { job, changes, objects, undo }),
            Err(error) => job.end(Err(error)),
        }
    }
    let any = planned.iter().any(|one| !one.changes.is_empty());
    let written = match any {
        true => db.write(planned.iter().flat_map(|one| &one.changes)).map_err(RegisterError::Index),
        false => Ok(()),
    };
    match written {
        Ok(()) => {
            // Even if there is such an object already: what an upload does must not tell. Readers find it from here on.
            let objects = planned.iter_mut().flat_map(|one| std::mem::take(&mut one.objects));
            store.keep(objects.collect());
            let unseen = planned.iter_mut().filter(|one| one.undo.is_none());
            let changes: Vec<Change> = unseen.flat_map(|one| std::mem::take(&mut one.changes)).collect();
            store.apply(changes.into_iter());
            drop(db);
            planned.iter().for_each(|one| one.job.end(Ok(())));
        }
        Err(error) => {
            let error = Arc::new(error);
            let undo = planned.iter_mut().filter_map(|one| one.undo.take()).flatten();
            store.apply(undo.collect::<Vec<_>>().into_iter());
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
    store: &Inner,
    mut plan: Result<Plan, RegisterError>,
    planner: &mut Planner,
) -> (Result<Plan, RegisterError>, Option<Vec<Change>>) {
    let mut index = store.index_mut();
    let held = match &plan {
        Ok(Plan { changes, drops_of: Some(member), .. }) => {
            // What a Verified path hides stays valid by that.
            let gone = |change: &Change| match change {
                Change::DropClaim { path, .. } if !index.is_verified(path) => store.holds.has(member, path),
                _ => false,
            };
            changes.iter().any(gone)
        }
        _ => false,
    };
    if held {
        plan = planner(&index);
    }
    let undo = plan.as_ref().ok().map(|plan| {
        let undo: Vec<Change> = plan.changes.iter().filter_map(|change| index.inverse(change)).collect();
        plan.changes.iter().for_each(|change| index.apply(change.clone()));
        undo
    });
    (plan, undo)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};

    use super::*;
    use crate::types::realisation::RealisationId;
    use crate::types::result::{BuildRecord, RecordEnd};
    use crate::types::{PathInfo, Provenance, StoreConfig};
    use crate::{Store, View};

    /// A store in which alice claims one path.
    fn store() -> (tempfile::TempDir, Store, View, StorePath) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
        let view = store.view(&Member::new("alice"));
        let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
        let made = view.add_ca("x", method, algorithm, &[].into(), &mut &b"x"[..]).unwrap();
        let path = StorePath::from_parts([1; 20], "claim").unwrap();
        let info = PathInfo { path: path.clone(), ca: None, ..PathInfo::clone(&made) };
        view.adopt(vec![(info, Provenance::Claimed(Member::new("alice")))], None).unwrap();
        (dir, store, view, path)
    }

    fn everything() -> About {
        About { everything: true, ..About::default() }
    }

    fn drops(changes: Vec<Change>) -> Plan {
        Plan { changes, drops_of: Some(Member::new("alice")), ..Plan::default() }
    }

    #[test]
    fn what_is_held_after_it_was_planned_to_go_is_planned_again() {
        let (_dir, store, view, path) = store();
        let session = view.clone().holding();
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, drop) =
            (Arc::clone(&asked), Change::DropClaim { member: Member::new("alice"), path: path.clone() });
        let held = path.clone();
        commit_repeatable(&store.inner, everything(), move |_| {
            if count.fetch_add(1, Ordering::Relaxed) > 0 {
                return Ok((Plan::default(), ()));
            }
            // As another thread would, just after the plan.
            session.hold([&held]).unwrap();
            Ok((drops(vec![drop.clone()]), ()))
        })
        .unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        assert!(view.is_valid(&path));
    }

    #[test]
    fn what_could_not_be_deleted_is_there_again() {
        let (_dir, store, view, path) = store();
        let alice = Member::new("alice");
        let id = RealisationId { drv_hash: [2; 32], output: "out".to_owned() };
        view.add_realisation(id.clone(), path.clone(), Provenance::Claimed(alice.clone())).unwrap();
        let end = RecordEnd::Failed { status: 1, message: "no".to_owned(), log: None };
        store.record_result(&[3; 32], BuildRecord { drv: path.clone(), time: 4, end }).unwrap();
        let before = (view.info_with_provenance(&path), view.realisation(&id), store.result(&[3; 32]));
        assert!(before.0.is_some() && before.1.is_some() && before.2.is_some());

        store.inner.db().refuse_writes();
        let changes = vec![
            Change::DropClaim { member: alice.clone(), path: path.clone() },
            Change::DropRealisation { id: id.clone(), member: Some(alice) },
            Change::DropResult { key: [3; 32] },
        ];
        let nar_hash = before.0.as_ref().unwrap().0.nar_hash;
        let users = store.inner.index().paths_with(&nar_hash);
        commit_repeatable(&store.inner, everything(), move |_| Ok((drops(changes.clone()), ()))).unwrap_err();
        assert_eq!((view.info_with_provenance(&path), view.realisation(&id), store.result(&[3; 32])), before);
        assert_eq!(store.inner.index().paths_with(&nar_hash), users);
    }
}
