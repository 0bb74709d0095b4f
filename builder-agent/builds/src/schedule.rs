//! When a build runs, and who shares it.
//!
//! [`Scheduler`] is the seam for schedulers of more than one box; [`Embedded`] is the one that needs no other service.
//! Requests with the same build key share one run and its log, whoever they are from: the key covers all that goes
//! into a build, so nobody learns from a shared run what a run of their own would not have told them. A build nobody waits
//! for any more is cancelled, unless the box is told otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use sandbox::{Cancel, JobRunner, Limits};
use store::{Closure, RecordedOutput, Store, View};
use tokio::sync::watch;

use super::failure::{Cause, Limit};
use super::kept::KeptLogs;
use super::key::BuildKey;
use super::log::{self, LogReader};
use super::reuse::Known;
use super::{Envelope, Failure, Recipe};
use members::{Member, Roster};
use net::HttpClient;
use settings::Config;
use shares::budget::Charge;
use shares::threads::Threads;

use queue::Queue;
use run::Run;
use share::{RunKey, Running, Table};

mod admit;
mod queue;
mod run;
mod share;

/// What a client wants built, and under which limits of its own. Zero and `None` mean "the box's".
#[derive(Clone)]
pub struct Request {
    /// Who asks. Their limits are looked up anew wherever they count.
    pub member: Arc<Member>,
    pub view: View,
    pub recipe: Arc<Recipe>,
    pub http: Arc<HttpClient>,
    /// All the builder will see, as it was in the view at one moment.
    pub inputs: Arc<Closure>,
    /// Of whoever asked, for all that the box keeps of this request.
    pub memory: Arc<Charge>,
    /// The box's, or what this member may have of it.
    pub envelope: Envelope,
    /// Of `recipe` with `inputs` in `envelope`.
    pub key: BuildKey,
    /// What was recorded of `key` when the requester looked, and decided to build.
    pub known: Known,
    /// Build to compare only: the outputs become visible to nobody.
    pub check: bool,
    pub wall: Option<Duration>,
    pub silent: Option<Duration>,
    /// Bytes of log.
    pub log: Option<u64>,
}

impl Request {
    /// Whether what comes of it is what everybody with the same derivation gets: see [`Recipe::proven`], and nothing of
    /// the place it ran in was this member's.
    #[must_use]
    pub fn proven(&self) -> bool {
        self.envelope.is_of_box() && self.recipe.proven(&self.inputs)
    }
}

/// How a build ended, and when it ran (Unix seconds).
#[derive(Debug)]
pub struct Outcome {
    pub result: Result<Built, Failure>,
    /// The derivation that `result` speaks of.
    pub drv: StorePath,
    /// What the run was allowed.
    pub limits: Limits,
    /// Under which name the log was kept.
    pub log: Option<String>,
    pub start_time: i64,
    pub stop_time: i64,
}

/// What a run made. Visible in the view of its owner; everybody else who waited adopts it.
#[derive(Debug)]
pub struct Built {
    pub outputs: BTreeMap<String, RecordedOutput>,
}

/// A share in a running build. Dropping it is leaving.
pub struct Attached {
    pub log: LogReader,
    pub outcome: watch::Receiver<Option<Arc<Outcome>>>,
    /// When the builder was started; `None` while the build waits for a slot.
    pub begun: watch::Receiver<Option<Instant>>,
    /// Whether the build ran already when this request came.
    pub joined: bool,
    /// What this request is allowed, which is not what a joined run was started with.
    pub limits: Limits,
    hold: Hold,
}

impl Attached {
    /// Waits for the end.
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

    /// Whether the run ended at a limit of somebody else's: under ours it might have gone on.
    pub fn is_not_ours(&self, outcome: &Outcome) -> bool {
        let Err(Failure { cause: Cause::Limit(limit), .. }) = &outcome.result else { return false };
        let (mine, theirs) = (&self.limits, &outcome.limits);
        let more = |mine: Option<Duration>, theirs: Option<Duration>| match (mine, theirs) {
            (Some(mine), Some(theirs)) => mine > theirs,
            (mine, theirs) => mine.is_none() && theirs.is_some(),
        };
        match limit {
            Limit::Wall => more(mine.wall, theirs.wall),
            Limit::Silence => more(mine.silent, theirs.silent),
            Limit::Log => mine.log_bytes > theirs.log_bytes,
            Limit::OfRun => false,
        }
    }
}

/// Why a request has no share in a run.
#[derive(Debug)]
pub enum NotStarted {
    Refused(Failure),
    /// An equal build has ended since the requester looked: what is recorded now may be the answer.
    Known,
}

impl From<NotStarted> for Failure {
    fn from(why: NotStarted) -> Self {
        match why {
            NotStarted::Refused(failure) => failure,
            NotStarted::Known => Self::transient("an equal build has ended just now; ask again"),
        }
    }
}

/// Runs builds.
pub trait Scheduler: Send + Sync {
    /// Starts a build, or joins the one that runs, if the member is in the roster at this moment.
    fn build(&self, request: Request) -> Result<Attached, NotStarted>;
    /// Takes all members for whom `keep` is false out of all builds; what nobody else waits for ends.
    fn retain(&self, keep: &dyn Fn(&Member) -> bool);
}

/// Builds on this machine, as many at once as configured.
pub struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    pub config: Arc<Config>,
    pub backend: Arc<dyn JobRunner>,
    pub store: Store,
    pub kept: Arc<KeptLogs>,
    pub logs: PathBuf,
    pub queue: Arc<Queue>,
    pub running: Table,
    /// Who is a member, and with which limits, at each moment.
    roster: watch::Receiver<Arc<Roster>>,
    pub threads: Threads,
    next_id: AtomicU64,
}

/// One waiter of one build.
struct Hold {
    shared: Arc<Shared>,
    key: RunKey,
    id: u64,
    waiter: u64,
    drv: StorePath,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.running.leave(&self.key, self.id, self.waiter, self.shared.config.keep_builds_running);
    }
}

impl Shared {
    /// The member as the roster has them now; `None` once they have left.
    pub fn current(&self, member: &Member) -> Option<Arc<Member>> {
        self.roster.borrow().current(member).cloned()
    }

    /// How many builds this member may run at once, as the roster says now.
    pub fn slots_now(&self, member: &Arc<Member>) -> usize {
        self.slots(&self.current(member).unwrap_or_else(|| member.clone()))
    }

    fn slots(&self, member: &Member) -> usize {
        let most = self.config.limits.max_jobs_per_member;
        member.limits.max_jobs.map_or(most, |own| own as usize).clamp(1, most)
    }

    /// The store as who asked may see it now. Their request may have waited, and then built, for hours.
    pub fn view_of(&self, request: &Request) -> View {
        self.roster.borrow().view_of(&self.store, &request.member).holding_as(&request.view)
    }

    /// What a build of this request is allowed if it starts now, in this envelope.
    pub fn limits(&self, request: &Request, size: Envelope) -> Limits {
        let now = self.current(&request.member).unwrap_or_else(|| request.member.clone());
        limits(&self.config, &now, request, size)
    }
}

impl Embedded {
    /// `logs` must be an existing folder, on the file system of `kept`. Members who are not in the roster start no builds,
    /// and the builds of those who leave it are ended.
    pub fn new(
        config: Arc<Config>,
        backend: Arc<dyn JobRunner>,
        store: Store,
        logs: PathBuf,
        kept: Arc<KeptLogs>,
        mut roster: watch::Receiver<Arc<Roster>>,
        threads: Threads,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            queue: Queue::new(config.limits.max_jobs),
            config,
            backend,
            store,
            kept,
            logs,
            running: Table::default(),
            roster: roster.clone(),
            threads,
            next_id: AtomicU64::new(1),
        });
        let scheduler = Arc::new(Self { shared });
        let weak = Arc::downgrade(&scheduler);
        tokio::spawn(async move {
            while roster.changed().await.is_ok() {
                let Some(scheduler) = weak.upgrade() else { return };
                let now = roster.borrow_and_update().clone();
                scheduler.retain(&|member| now.current(member).is_some());
                let shared = &scheduler.shared;
                shared.queue.follow(|id| now.by_id(id).map(|member| shared.slots(member)));
            }
        });
        scheduler
    }

    /// A new run for the table, and the task that makes it happen.
    fn start(&self, request: &Arc<Request>, key: RunKey) -> Result<Running, NotStarted> {
        // With the table locked, and a run is recorded before it is unlisted: none can end unseen in between.
        if !request.check && !Known::look(&self.shared.store, &request.key).is(&request.known) {
            return Err(NotStarted::Known);
        }
        let (writer, log) = log::create(&self.shared.logs).map_err(|error| {
            NotStarted::Refused(Failure::transient(format!("cannot create a build log: {error}")))
        })?;
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (outcome, outcome_seen) = watch::channel(None);
        let (begun, begun_seen) = watch::channel(None);
        let (owner, followed) = watch::channel(Some(request.clone()));
        let cancel = Cancel::new();
        let run = Run {
            id,
            key,
            first: request.clone(),
            owner: followed,
            begun,
            outcome,
            log: writer,
            source: log.clone(),
            cancel: cancel.clone(),
        };
        tokio::spawn(run::run(self.shared.clone(), run));
        Ok(Running {
            id,
            log,
            outcome: outcome_seen,
            begun: begun_seen,
            owner,
            cancel,
            waiters: BTreeMap::new(),
        })
    }
}

impl Scheduler for Embedded {
    fn build(&self, request: Request) -> Result<Attached, NotStarted> {
        let key = (request.key, request.check);
        let limits = self.shared.limits(&request, request.envelope);
        let request = Arc::new(request);
        let (member, drv) = (&request.member.name, request.recipe.drv_path.to_absolute_path());
        // With the table locked. Whoever is still in the roster then and leaves it later is found in the table by
        // `retain`, which runs after each change and needs the same lock.
        let admit = || match self.shared.current(&request.member) {
            Some(_) => Ok(()),
            None => Err(NotStarted::Refused(Failure::rejected(format!(
                "'{drv}' is not built: {member} is no longer in the roster"
            )))),
        };
        let (place, joined) = self.shared.running.join(key, &request, admit, || self.start(&request, key))?;
        if joined {
            tracing::info!(build = place.id, %member, %drv, "build joined");
        }
        Ok(Attached {
            log: place.log,
            outcome: place.outcome,
            begun: place.begun,
            joined,
            limits,
            hold: Hold {
                shared: self.shared.clone(),
                key,
                id: place.id,
                waiter: place.waiter,
                drv: request.recipe.drv_path.clone(),
            },
        })
    }

    fn retain(&self, keep: &dyn Fn(&Member) -> bool) {
        self.shared.running.retain(keep);
    }
}

/// The envelope, and of the limits that can only end a build the tightest of box, member and client.
fn limits(config: &Config, member: &Member, request: &Request, size: Envelope) -> Limits {
    let (of_box, own) = (&config.limits, &member.limits);
    let tighter =
        |ceiling: Duration, asked: Option<Duration>| asked.map_or(ceiling, |asked| asked.min(ceiling));
    let wall = tighter(of_box.max_build, own.max_build_seconds.map(Duration::from_secs));
    Limits {
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        wall: Some(tighter(wall, request.wall)),
        silent: Some(tighter(of_box.max_silent, request.silent)),
        log_bytes: of_box.max_log_bytes.min(request.log.unwrap_or(u64::MAX)),
        output_bytes: of_box.max_output_bytes,
        processes: size.processes,
    }
}

#[cfg(test)]
#[path = "schedule_test.rs"]
mod schedule_test;
