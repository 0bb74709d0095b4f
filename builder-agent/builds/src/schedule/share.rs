//! Sharing: the runs that build or wait for a slot, and the requests that wait for each.
//!
//! A run has one owner, whose slots and limits it uses: the member who asked first. When the owner leaves, the member
//! who has waited longest becomes the owner. A run without waiters ends, unless the request that left last lets it go on.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use sandbox::Cancel;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::admit::RunId;
use super::request::{Held, Outcome, Request};
use super::run::{Progress, Run};
use crate::BuildKey;
use crate::drain::Drained;
use crate::log::{LogReader, LogSource};
use members::Member;

/// Two requests with the same value share a run: the build key, and whether the build is only for comparison.
pub(super) type RunKey = (BuildKey, bool);

/// A request, and the data kept for it while it waits or owns a run.
pub(super) struct Waiter {
    pub request: Request,
    pub held: Arc<Held>,
    /// The member has ended this request with a command.
    pub cancelled: CancellationToken,
}

/// A run that is listed from its first request until its outcome is known.
pub(super) struct Running {
    pub id: RunId,
    /// The key of its record.
    pub recorded: BuildKey,
    pub accepted: Instant,
    pub log: LogSource,
    pub outcome: watch::Receiver<Option<Arc<Outcome>>>,
    /// When the builder's sandbox was started.
    pub begun: watch::Receiver<Option<Instant>>,
    /// `None` when nobody wants the run any more. The task of the run watches it.
    pub owner: watch::Sender<Option<Arc<Waiter>>>,
    pub cancel: Cancel,
    /// Set when the run is ended because the box is drained.
    pub drained: Arc<OnceLock<Arc<Drained>>>,
    pub progress: Progress,
    /// The waiters in the order in which they came.
    pub waiters: BTreeMap<u64, Arc<Waiter>>,
    /// Whether some have left while started runs stay: who owns the run then is decided afterwards.
    pub unsettled: bool,
}

/// A run for the table, and for the task that executes it, owned by `owner`. The keys are that under which it is listed, and under
/// which its result is recorded. `begun`: when its sandbox was started, if it was.
pub(super) fn listed(
    id: RunId,
    (key, recorded): (RunKey, BuildKey),
    accepted: Instant,
    begun: Option<Instant>,
    owner: Arc<Waiter>,
    log: LogSource,
) -> (Run, Running) {
    let (outcome, outcome_seen) = watch::channel(None);
    let (begun, begun_seen) = watch::channel(begun);
    let (owner, followed) = watch::channel(Some(owner));
    let (cancel, drained, progress) = (Cancel::new(), Arc::new(OnceLock::new()), Progress::default());
    let run = Run {
        id,
        key,
        recorded,
        accepted,
        owner: followed,
        begun,
        outcome,
        source: log.clone(),
        cancel: cancel.clone(),
        drained: drained.clone(),
        progress: progress.clone(),
    };
    let running = Running {
        id,
        recorded,
        accepted,
        log,
        outcome: outcome_seen,
        begun: begun_seen,
        owner,
        cancel,
        drained,
        progress,
        waiters: BTreeMap::new(),
        unsettled: false,
    };
    (run, running)
}

/// One waiter's share in a run.
pub(super) struct Joined {
    pub id: RunId,
    pub waiter: u64,
    pub log: LogReader,
    pub outcome: watch::Receiver<Option<Arc<Outcome>>>,
    pub begun: watch::Receiver<Option<Instant>>,
}

#[derive(Default)]
pub(super) struct Table {
    builds: Mutex<HashMap<RunKey, Running>>,
    /// Whether runs that have started go on without requests: their clients are about to be disconnected, because another
    /// program takes over. Read and set with the table locked.
    stays: AtomicBool,
}

impl Table {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<RunKey, Running>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the run with this key, or starts the one that `start` makes, which `new` owns. The flag says whether the
    /// run existed before. `may` is called with the table locked, so that [`Table::retain`] cannot run between it and
    /// the join.
    pub fn join<E>(
        &self,
        key: RunKey,
        new: &Arc<Waiter>,
        may: impl FnOnce() -> Result<(), E>,
        start: impl FnOnce() -> Result<Running, E>,
    ) -> Result<(Joined, bool), E> {
        use std::collections::hash_map::Entry;
        let mut builds = self.lock();
        may()?;
        let (build, there) = match builds.entry(key) {
            Entry::Occupied(there) => (there.into_mut(), true),
            Entry::Vacant(free) => (free.insert(start()?), false),
        };
        let waiter = build.waiters.last_key_value().map_or(0, |(last, _)| last + 1);
        build.waiters.insert(waiter, new.clone());
        let joined = Joined {
            id: build.id,
            waiter,
            log: build.log.reader(),
            outcome: build.outcome.clone(),
            begun: build.begun.clone(),
        };
        Ok((joined, there))
    }

    /// Removes one waiter. The run goes on if another is left, or if `keep`.
    pub fn leave(&self, key: &RunKey, id: RunId, waiter: u64, keep: bool) {
        let mut builds = self.lock();
        // A later run can have the same key; the id is that of the joined run.
        let Some(build) = builds.get_mut(key).filter(|build| build.id == id) else { return };
        build.waiters.remove(&waiter);
        if self.stays.load(Ordering::SeqCst) && build.begun.borrow().is_some() {
            // All are about to be disconnected, in any order: nobody is the successor of anybody.
            build.unsettled = true;
            return;
        }
        let ends = build.waiters.is_empty() && !keep;
        build.settle_owner(|_| keep);
        if ends {
            build.stop();
            builds.remove(key);
        }
    }

    /// Removes every member for whom `keep` is false, as waiter and as owner, from all runs.
    pub fn retain(&self, keep: &dyn Fn(&Member) -> bool) {
        self.lock().retain(|_, build| {
            build.waiters.retain(|_, waiter| keep(&waiter.request.member));
            build.settle_owner(|owner| keep(&owner.request.member));
            let goes_on = build.owner.borrow().is_some();
            if !goes_on {
                build.stop();
            }
            goes_on
        });
    }

    /// Whether started runs go on when their clients leave, from now on, and stay with those who own them now.
    pub fn let_runs_stay(&self, stay: bool) {
        let mut builds = self.lock();
        self.stays.store(stay, Ordering::SeqCst);
        if !stay {
            for build in builds.values_mut().filter(|build| build.unsettled) {
                build.unsettled = false;
                build.settle_owner(|_| true);
            }
        }
    }

    /// Whether this run goes on without requests.
    pub fn has_no_requests(&self, key: &RunKey, id: RunId) -> bool {
        self.lock().get(key).is_some_and(|build| build.id == id && build.waiters.is_empty())
    }

    /// Unlists the run: a request from now on starts another.
    pub fn remove(&self, key: &RunKey, id: RunId) {
        let mut builds = self.lock();
        if builds.get(key).is_some_and(|build| build.id == id) {
            builds.remove(key);
        }
    }
}

#[cfg(test)]
impl Table {
    /// How many runs are listed.
    pub fn len(&self) -> usize {
        self.lock().len()
    }
}

impl Running {
    /// If the owner has left, hands the run to the waiter who has waited longest. `stays`: whether an owner who no
    /// longer waits and has no successor stays the owner.
    pub(super) fn settle_owner(&mut self, stays: impl Fn(&Waiter) -> bool) {
        let Some(owner) = self.owner.borrow().clone() else { return };
        if self.waiters.values().any(|waiter| Arc::ptr_eq(waiter, &owner)) {
            return;
        }
        match self.waiters.values().next() {
            Some(next) => drop(self.owner.send_replace(Some(next.clone()))),
            None if stays(&owner) => {}
            None => drop(self.owner.send_replace(None)),
        }
    }

    pub(super) fn stop(&self) {
        self.owner.send_replace(None);
        self.cancel.cancel();
    }
}
