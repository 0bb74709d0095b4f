//! Scheduling: when a build runs, where, and which requests share it.
//!
//! Three parts, which know nothing of each other:
//!
//! - **share**: which requests wait for which run. Requests of any member with the same build key share one run and its
//!   log: the key covers all that goes into a build, so a shared run shows a member nothing that their own run would not.
//!   A run that nobody waits for is cancelled, unless the last who waited for it wants it to go on (`keep-builds-running`).
//! - **admit**: which runs may start, and when: a state machine, which `queue` lets tasks wait for. Members share the box
//!   by weight and recent usage; groups are limits on it.
//! - **place**: the machine on which a run is executed. A place gets plain data.
//!
//! Sessions see only [`Scheduler`]; [`Embedded`] needs no other service. `run` leads one run through the three parts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ledger::Ledger;
use nix_derivation::StorePath;
use sandbox::JobRunner;
use store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend;
use crate::drain::{Drain, Drained};
use crate::failure::{Cause, Limit};
use crate::kept::KeptLogs;
use crate::limits::RunLimits;
use crate::log::{self, LogReader};
use crate::reuse::Known;
use crate::{Envelope, Failure};
use members::{Member, Roster};
use net::HttpClient;
use settings::Config;
use shares::threads::Threads;

use place::{Here, Place, Snapshots};
use queue::Queue;
use share::{RunKey, Running, Table, Waiter};
use shared::{Shared, size_of};

pub use draining::Left;
pub use listing::{Listed, Load};
pub use request::{Built, Held, NotStarted, Outcome, Request};
pub use takeover::{Heir, NotPaused, Taken, WrittenRuns};
pub use waiting::{Wait, Why};

#[doc(hidden)]
pub mod admit;
mod charges;
mod draining;
mod listing;
mod place;
mod queue;
mod request;
mod run;
mod share;
mod shared;
mod takeover;
mod tickets;
mod waiting;

/// A request's share in a run. Dropping it leaves the run.
pub struct Attached {
    pub log: LogReader,
    pub outcome: watch::Receiver<Option<Arc<Outcome>>>,
    /// When the builder was started; `None` while the build waits for a slot.
    pub begun: watch::Receiver<Option<Instant>>,
    /// Whether the run existed when this request came.
    pub joined: bool,
    /// The limits of this request; a joined run has those of the request that started it.
    pub limits: RunLimits,
    /// The member has ended this request with a command.
    cancelled: CancellationToken,
    hold: Hold,
}

impl Attached {
    /// Waits for the end of the run.
    pub async fn finished(&mut self) -> Arc<Outcome> {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.as_ref().map(Arc::clone).unwrap_or_else(|| unreachable!("waited for it")),
            Err(_) => Arc::new(Outcome {
                result: Err(Failure::transient("the build was lost; this is a bug of the box")),
                drv: self.hold.drv.clone(),
                limits: self.limits.clone(),
                log: None,
                start_time: 0,
                stop_time: 0,
            }),
        }
    }

    /// Is cancelled when the member ends this request with a command.
    pub fn cancellation(&self) -> CancellationToken {
        self.cancelled.clone()
    }

    /// Whether the run ended at a limit that is higher for this request: with its own limits it might have gone on.
    pub fn is_not_ours(&self, outcome: &Outcome) -> bool {
        let Err(Failure { cause: Cause::Limit(limit), .. }) = &outcome.result else { return false };
        let (mine, theirs) = (&self.limits.of_sandbox, &outcome.limits.of_sandbox);
        let more = |mine: Option<Duration>, theirs: Option<Duration>| match (mine, theirs) {
            (Some(mine), Some(theirs)) => mine > theirs,
            (mine, theirs) => mine.is_none() && theirs.is_some(),
        };
        match limit {
            Limit::Wall => more(mine.wall, theirs.wall),
            Limit::Silence => more(mine.silent, theirs.silent),
            Limit::Log => mine.log_bytes > theirs.log_bytes,
            Limit::Output => mine.output_bytes > theirs.output_bytes,
            // The member who owned the run has used up their month, their ticket or their part of the store, and others
            // have not.
            Limit::Month | Limit::Ticket | Limit::Store => self.joined,
            // Requests of one key have one envelope.
            Limit::Memory | Limit::OfRun => false,
        }
    }
}

/// Runs builds.
pub trait Scheduler: Send + Sync {
    /// Starts a build, or joins the run that exists, if the member is in the roster at this moment. `held` belongs to
    /// `request`.
    fn build(&self, request: Request, held: Arc<Held>) -> Result<Attached, NotStarted>;
    /// The limits of a build of this request if it starts now.
    fn limits(&self, request: &Request) -> RunLimits;
    /// Removes all members for whom `keep` is false from all runs. A run that nobody else waits for ends.
    fn retain(&self, keep: &dyn Fn(&Member) -> bool);
    /// The runs for which one of these members waits.
    fn list(&self, of: &dyn Fn(&Member) -> bool) -> Vec<Listed>;
    /// How many runs that is.
    fn load(&self, of: &dyn Fn(&Member) -> bool) -> Load;
    /// The log of a run for which one of these members waits, from its start to its end.
    fn log(&self, run: u64, of: &dyn Fn(&Member) -> bool) -> Option<LogReader>;
    /// Ends the requests of these members for a run. Returns the number of requests that ended.
    fn cancel(&self, run: u64, of: &dyn Fn(&Member) -> bool) -> usize;
    /// Starts no runs from now on, also after a start of the agent in the same boot. Waiting runs end at once, running ones
    /// at the deadline. On error nothing has changed. Waits for the disk.
    fn drain(&self, drained: Drained) -> io::Result<Left>;
    /// Starts runs again. Returns why it did not; `None` if it did. On error nothing has changed.
    fn undrain(&self) -> io::Result<Option<Arc<Drained>>>;
    /// Why no runs are started, if so.
    fn drained(&self) -> Option<Arc<Drained>>;
}

/// A scheduler in this process: runs as many builds at once as configured.
pub struct Embedded {
    shared: Arc<Shared>,
}

/// The parts of the box that a scheduler uses, wherever it places builds.
pub struct Parts {
    pub config: Arc<Config>,
    pub store: Store,
    pub kept: Arc<KeptLogs>,
    /// Folder for the logs of running builds. It exists, on the file system of `kept`.
    pub logs: PathBuf,
    /// A member who is not in the roster starts no builds, and the builds of a member who leaves it end.
    pub roster: watch::Receiver<Arc<Roster>>,
    pub threads: Threads,
    /// Runs are charged to it when they end.
    pub ledger: Ledger,
}

/// One waiter of one run.
struct Hold {
    shared: Arc<Shared>,
    key: RunKey,
    id: u64,
    waiter: u64,
    drv: StorePath,
    keep_running: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.running.leave(&self.key, self.id, self.waiter, self.keep_running);
    }
}

impl Embedded {
    /// A scheduler that places all builds on this machine. `http` is for the builders that download.
    pub fn here(parts: Parts, backend: Arc<dyn JobRunner>, http: Arc<HttpClient>) -> Arc<Self> {
        let snapshots = Snapshots::default();
        let here = Here {
            backend,
            certificates: backend::network_certificates(&parts.config),
            kind: parts.config.sandbox.backend,
            http,
            store: parts.store.clone(),
            snapshots: snapshots.clone(),
            scratch: parts.logs.clone(),
            threads: parts.threads.clone(),
        };
        Self::new(parts, Arc::new(here), snapshots)
    }

    /// `place` finds the inputs of its tasks in `snapshots`.
    fn new(parts: Parts, place: Arc<dyn Place>, snapshots: Snapshots) -> Arc<Self> {
        let mut roster = parts.roster.clone();
        let drain = Drain::open(&parts.config.state_dir);
        let drains = drain.follow();
        let shared = Arc::new(Shared {
            queue: Queue::new(parts.config.limits.max_jobs, size_of(&Envelope::of_box(&parts.config))),
            parts,
            place,
            snapshots,
            drain,
            running: Table::default(),
            written: Default::default(),
            next_id: AtomicU64::new(1),
        });
        let scheduler = Arc::new(Self { shared });
        tokio::spawn(draining::keep_deadlines(Arc::downgrade(&scheduler.shared), drains));
        let weak = Arc::downgrade(&scheduler);
        tokio::spawn(async move {
            while roster.changed().await.is_ok() {
                let Some(scheduler) = weak.upgrade() else { return };
                let now = roster.borrow_and_update().clone();
                scheduler.retain(&|member| now.current(member).is_some());
                let shared = &scheduler.shared;
                shared.queue.follow(|id| now.by_id(id).map(|member| shared.owner(member)));
            }
        });
        scheduler
    }

    /// A new run for the table, and the task that executes it.
    fn start(&self, first: &Arc<Waiter>, key: RunKey) -> Result<Running, NotStarted> {
        let request = &first.request;
        // The caller holds the lock of the table, and a run is recorded before it is unlisted: so none can end
        // unnoticed between.
        if !request.check && !Known::look(&self.shared.parts.store, &request.key).is(&request.known) {
            return Err(NotStarted::Known);
        }
        let refused = self.shared.is_drained(request);
        let refused = refused.or_else(|| self.shared.month_is_over(request));
        if let Some(failure) = refused.or_else(|| self.shared.ticket_is_over(request)) {
            return Err(NotStarted::Refused(failure));
        }
        let (writer, log) = log::create(&self.shared.parts.logs).map_err(|error| {
            NotStarted::Refused(Failure::transient(format!("cannot create a build log: {error}")))
        })?;
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let keys = (key, request.key);
        let (run, running) = share::listed(id, keys, Instant::now(), None, first.clone(), log);
        tokio::spawn(run::run(self.shared.clone(), run, first.clone(), writer));
        Ok(running)
    }
}

impl Scheduler for Embedded {
    fn build(&self, request: Request, held: Arc<Held>) -> Result<Attached, NotStarted> {
        let key = (request.key, request.check);
        let limits = self.shared.limits(&request);
        let cancelled = CancellationToken::new();
        let waiter = Arc::new(Waiter { request, held, cancelled: cancelled.clone() });
        let request = &waiter.request;
        let (member, drv) = (&request.member.name, request.recipe.drv_path.to_absolute_path());
        // The caller holds the lock of the table. If a member leaves the roster after this check, `retain`, which runs
        // after each change and needs the same lock, finds the request in the table.
        let may = || match self.shared.current(&request.member) {
            Some(_) => Ok(()),
            None => Err(NotStarted::Refused(Failure::rejected(format!(
                "'{drv}' is not built: {}",
                request.member.left()
            )))),
        };
        let (joined, was_there) = self.shared.running.join(key, &waiter, may, || self.start(&waiter, key))?;
        if was_there {
            tracing::info!(build = joined.id, %member, %drv, "build joined");
        }
        Ok(Attached {
            log: joined.log,
            outcome: joined.outcome,
            begun: joined.begun,
            joined: was_there,
            limits,
            cancelled,
            hold: Hold {
                shared: self.shared.clone(),
                key,
                id: joined.id,
                waiter: joined.waiter,
                drv: request.recipe.drv_path.clone(),
                keep_running: request.keep_running,
            },
        })
    }

    fn limits(&self, request: &Request) -> RunLimits {
        self.shared.limits(request)
    }

    fn retain(&self, keep: &dyn Fn(&Member) -> bool) {
        self.shared.running.retain(keep);
    }

    fn list(&self, of: &dyn Fn(&Member) -> bool) -> Vec<Listed> {
        self.shared.running.list(of)
    }

    fn load(&self, of: &dyn Fn(&Member) -> bool) -> Load {
        self.shared.running.load(of)
    }

    fn log(&self, run: u64, of: &dyn Fn(&Member) -> bool) -> Option<LogReader> {
        self.shared.running.log(run, of)
    }

    fn cancel(&self, run: u64, of: &dyn Fn(&Member) -> bool) -> usize {
        self.shared.running.cancel(run, of)
    }

    fn drain(&self, drained: Drained) -> io::Result<Left> {
        self.shared.begin_drain(drained)
    }

    fn undrain(&self) -> io::Result<Option<Arc<Drained>>> {
        self.shared.drain.end()
    }

    fn drained(&self) -> Option<Arc<Drained>> {
        self.shared.drain.now()
    }
}

#[cfg(test)]
#[path = "schedule_test.rs"]
mod schedule_test;
