//! Sharing: the runs that build or wait for a slot, and who waits for each.
//!
//! A build has one owner, whose slots and limits it uses: the first who asked. When the owner leaves, the build goes
//! over to the next who waits, and ends when there is none (unless the box is told to go on).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sandbox::Cancel;
use tokio::sync::watch;

use super::admit::RunId;
use super::request::{Held, Outcome, Request};
use crate::BuildKey;
use crate::log::{LogReader, LogSource};
use members::Member;

/// What makes two requests the same run: the build, and whether it is made only to be compared.
pub(super) type RunKey = (BuildKey, bool);

/// A request, and what is kept for it while it waits or owns a run.
pub(super) struct Waiter {
    pub request: Request,
    pub held: Arc<Held>,
}

/// Listed from the first request until the outcome is known.
pub(super) struct Running {
    pub id: RunId,
    pub log: LogSource,
    pub outcome: watch::Receiver<Option<Arc<Outcome>>>,
    /// When the builder's sandbox was started.
    pub begun: watch::Receiver<Option<Instant>>,
    /// `None` when nobody wants it any more. Followed by the task that runs it.
    pub owner: watch::Sender<Option<Arc<Waiter>>>,
    pub cancel: Cancel,
    /// In the order they came.
    pub waiters: BTreeMap<u64, Arc<Waiter>>,
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
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<RunKey, Running>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the run with this key, or starts the one that `start` makes, which `new` owns. The flag says whether it
    /// was there. `may` is asked with the table locked, so that [`Table::retain`] comes either before or after it and
    /// the join together.
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

    /// One waiter less. The run goes on if another is left, or if `keep`.
    pub fn leave(&self, key: &RunKey, id: RunId, waiter: u64, keep: bool) {
        let mut builds = self.lock();
        // The id tells a later run with the same key from the one that was joined.
        let Some(build) = builds.get_mut(key).filter(|build| build.id == id) else { return };
        build.waiters.remove(&waiter);
        let ends = build.waiters.is_empty() && !keep;
        build.settle_owner(|_| keep);
        if ends {
            build.stop();
            builds.remove(key);
        }
    }

    /// Nobody for whom `keep` is false waits for, or owns, any run from now on.
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

    /// The run is over: who asks from now on starts another.
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
    /// Hands the run to who waits longest when its owner has left. `stays`: whether an owner who does not wait any
    /// more and has no successor stays the owner.
    fn settle_owner(&mut self, stays: impl Fn(&Waiter) -> bool) {
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

    fn stop(&self) {
        self.owner.send_replace(None);
        self.cancel.cancel();
    }
}
