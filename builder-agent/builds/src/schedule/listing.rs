//! The runs that exist at a moment, for lists and sums that people read, and the end of a request by its own member.
//!
//! A member sees the runs for which that member waits, and nothing of other members' waiting for the same run. A run that
//! goes on without requests (`keep-builds-running`) is its owner's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use tokio::sync::watch;

use super::admit::RunId;
use super::request::Outcome;
use super::share::{Running, Table, Waiter};
use crate::log::LogReader;
use members::Member;

/// One run.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The number of the build in the log of the box.
    pub id: RunId,
    pub drv: StorePath,
    /// The member who has waited longest, of those that were asked for.
    pub member: Arc<str>,
    /// Requests that wait for the run, of the members that were asked for; zero if it goes on without any.
    pub requests: usize,
    /// Time since the run was accepted.
    pub age: Duration,
    /// Time since the builder was started; `None` while the run waits for a slot.
    pub running: Option<Duration>,
    /// Store paths that the builder sees.
    pub inputs: usize,
    /// Processors and memory of the sandbox.
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Bytes that the builder has written to its log.
    pub log_bytes: u64,
    /// The result, once there is one.
    pub outcome: watch::Receiver<Option<Arc<Outcome>>>,
}

/// How many runs there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub running: usize,
    /// Those that wait for a slot.
    pub waiting: usize,
}

impl Table {
    /// The runs for which one of the members waits, or that one of them owns alone, for whom `of` is true, in the order in
    /// which they were accepted.
    pub fn list(&self, of: &dyn Fn(&Member) -> bool) -> Vec<Listed> {
        let now = Instant::now();
        let mut listed: Vec<Listed> =
            self.lock().values().filter_map(|build| Listed::of(build, of, now)).collect();
        listed.sort_by_key(|run| run.id);
        listed
    }

    /// The number of the runs that [`Table::list`] lists.
    pub fn load(&self, of: &dyn Fn(&Member) -> bool) -> Load {
        let mut load = Load::default();
        for build in self.lock().values().filter(|build| build.is_of(of)) {
            match *build.begun.borrow() {
                Some(_) => load.running += 1,
                None => load.waiting += 1,
            }
        }
        load
    }

    /// The log of this run, from its start to its end, if one of the members waits for it, or owns it alone, for whom `of` is
    /// true.
    pub fn log(&self, id: RunId, of: &dyn Fn(&Member) -> bool) -> Option<LogReader> {
        let builds = self.lock();
        let build = builds.values().find(|build| build.id == id)?;
        build.is_of(of).then(|| build.log.reader())
    }

    /// Ends the requests for this run of the members for whom `of` is true, as if their clients had disconnected. The
    /// run goes on if other requests wait for it. A run that goes on without requests ends for its owner. Returns the number
    /// of requests, or runs, that ended.
    pub fn cancel(&self, id: RunId, of: &dyn Fn(&Member) -> bool) -> usize {
        let mut builds = self.lock();
        let Some((key, build)) = builds.iter_mut().find(|(_, build)| build.id == id) else { return 0 };
        let key = *key;
        let kept = build.goes_on_for(of).is_some();
        let before = build.waiters.len();
        build.waiters.retain(|_, waiter| {
            let ends = of(&waiter.request.member);
            if ends {
                waiter.cancelled.cancel();
            }
            !ends
        });
        let ended = before - build.waiters.len();
        if kept || ended > 0 && build.waiters.is_empty() {
            // Also where builds go on without waiters: somebody has asked for the end of this one.
            build.stop();
            builds.remove(&key);
        } else {
            build.settle_owner(|_| true);
        }
        ended + usize::from(kept)
    }
}

impl Running {
    /// Whether one of the members waits for this run, or owns it alone, for whom `of` is true.
    fn is_of(&self, of: &dyn Fn(&Member) -> bool) -> bool {
        let waits = self.waiters.values().any(|waiter| of(&waiter.request.member));
        waits || self.goes_on_for(of).is_some()
    }

    /// The owner of a run without requests, if `of` is true for that member.
    fn goes_on_for(&self, of: &dyn Fn(&Member) -> bool) -> Option<Arc<Waiter>> {
        let owner = self.owner.borrow().clone();
        owner.filter(|owner| self.waiters.is_empty() && of(&owner.request.member))
    }
}

impl Listed {
    fn of(build: &Running, of: &dyn Fn(&Member) -> bool, now: Instant) -> Option<Self> {
        let kept = build.goes_on_for(of);
        let requests = build.waiters.values().filter(|waiter| of(&waiter.request.member));
        let first = &requests.clone().next().or(kept.as_ref())?.request;
        Some(Self {
            id: build.id,
            drv: first.recipe.drv_path.clone(),
            member: first.member.name.clone(),
            requests: requests.count(),
            age: now.saturating_duration_since(build.accepted),
            running: build.begun.borrow().map(|begun| now.saturating_duration_since(begun)),
            inputs: first.inputs.paths.len(),
            vcpus: first.envelope.vcpus,
            memory_mib: first.envelope.memory_mib,
            log_bytes: build.log.written(),
            outcome: build.outcome.clone(),
        })
    }
}
