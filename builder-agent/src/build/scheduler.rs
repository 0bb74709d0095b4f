//! When a build runs, and who shares it.
//!
//! [`Scheduler`] is the seam for schedulers of more than one box; [`Embedded`] is the one that needs no other service.
//! Requests with the same build key share one run and its log, whoever they are from: the key covers all that goes
//! into a build, so nobody learns from a shared run what a run of their own would not have told them. A build nobody waits
//! for any more is cancelled, unless the box is told otherwise.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use sandbox::{Backend, Cancel, Limits};
use store::{Closure, RecordedOutput, Store, View};
use tokio::sync::{Semaphore, watch};

use super::failure::{Cause, Limit};
use super::kept::KeptLogs;
use super::key::BuildKey;
use super::log::{self, LogReader};
use super::run::{self, Run};
use super::running::{RunKey, Running, Table};
use super::{Envelope, Failure, Recipe};
use crate::config::Config;
use crate::net::HttpClient;
use crate::roster::{Member, Roster};

/// What a client wants built, and under which limits of its own. Zero and `None` mean "the box's".
#[derive(Clone)]
pub struct Request {
    pub member: Arc<Member>,
    pub view: View,
    pub recipe: Arc<Recipe>,
    pub http: Arc<HttpClient>,
    /// All the builder will see, as it was in the view at one moment.
    pub inputs: Arc<Closure>,
    /// The box's, or what this member may have of it.
    pub envelope: Envelope,
    /// Of `recipe` with `inputs` in `envelope`.
    pub key: BuildKey,
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

/// Runs builds.
pub trait Scheduler: Send + Sync {
    /// Starts a build, or joins the one that runs.
    fn build(&self, request: Request) -> Result<Attached, Failure>;
    /// Takes all members for whose identity `keep` is false out of all builds; what nobody else waits for ends.
    fn retain(&self, keep: &dyn Fn(&str) -> bool);
}

/// Builds on this machine, as many at once as configured.
pub struct Embedded {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub config: Arc<Config>,
    pub backend: Arc<dyn Backend>,
    pub store: Store,
    pub kept: Arc<KeptLogs>,
    pub logs: PathBuf,
    pub box_slots: Arc<Semaphore>,
    member_slots: Mutex<HashMap<Arc<str>, MemberSlots>>,
    pub running: Table,
    next_id: AtomicU64,
}

/// How many builds a member may run at once, and the permits for them.
type MemberSlots = (u32, Arc<Semaphore>);

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
    /// The member's own slots. A changed limit in the roster takes effect with a new set; builds in the old one finish.
    pub fn member_slots(&self, member: &Member) -> Arc<Semaphore> {
        let most = self.config.limits.max_jobs_per_member as u32;
        let jobs = member.limits.max_jobs.unwrap_or(most).clamp(1, most);
        let mut slots = self.member_slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.get(&member.id) {
            Some((known, semaphore)) if *known == jobs => semaphore.clone(),
            _ => {
                let semaphore = Arc::new(Semaphore::new(jobs as usize));
                slots.insert(member.id.clone(), (jobs, semaphore.clone()));
                semaphore
            }
        }
    }
}

impl Embedded {
    /// `logs` must be an existing folder, on the file system of `kept`. Builds of members who leave the roster are
    /// ended from now on.
    pub fn new(
        config: Arc<Config>,
        backend: Arc<dyn Backend>,
        store: Store,
        logs: PathBuf,
        kept: Arc<KeptLogs>,
        mut roster: watch::Receiver<Arc<Roster>>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            box_slots: Arc::new(Semaphore::new(config.limits.max_jobs)),
            config,
            backend,
            store,
            kept,
            logs,
            member_slots: Mutex::default(),
            running: Table::default(),
            next_id: AtomicU64::new(1),
        });
        let scheduler = Arc::new(Self { shared });
        let weak = Arc::downgrade(&scheduler);
        tokio::spawn(async move {
            while roster.changed().await.is_ok() {
                let Some(scheduler) = weak.upgrade() else { return };
                let now = roster.borrow_and_update().clone();
                scheduler.retain(&|id| now.contains_id(id));
            }
        });
        scheduler
    }

    /// A new run for the table, and the task that makes it happen.
    fn start(&self, request: &Arc<Request>, key: RunKey) -> Result<Running, Failure> {
        let (writer, log) = log::create(&self.shared.logs)
            .map_err(|e| Failure::transient(format!("cannot create a build log: {e}")))?;
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (outcome, outcome_seen) = watch::channel(None);
        let (begun, begun_seen) = watch::channel(None);
        let (owner, followed) = watch::channel(Some(request.clone()));
        let cancel = Cancel::new();
        let run = Run {
            id,
            key,
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
    fn build(&self, request: Request) -> Result<Attached, Failure> {
        let key = (request.key, request.check);
        let limits = limits(&self.shared.config, &request);
        let request = Arc::new(request);
        let (place, joined) = self.shared.running.join(key, &request, || self.start(&request, key))?;
        if joined {
            let (member, drv) = (&request.member.name, request.recipe.drv_path.to_absolute_path());
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

    fn retain(&self, keep: &dyn Fn(&str) -> bool) {
        self.shared.running.retain(keep);
    }
}

/// The envelope, and of the limits that can only end a build the tightest of box, member and client.
pub fn limits(config: &Config, request: &Request) -> Limits {
    let (of_box, own) = (&config.limits, &request.member.limits);
    let tighter =
        |ceiling: Duration, asked: Option<Duration>| asked.map_or(ceiling, |asked| asked.min(ceiling));
    let wall = tighter(of_box.max_build, own.max_build_seconds.map(Duration::from_secs));
    Limits {
        vcpus: request.envelope.vcpus,
        memory_mib: request.envelope.memory_mib,
        wall: Some(tighter(wall, request.wall)),
        silent: Some(tighter(of_box.max_silent, request.silent)),
        log_bytes: of_box.max_log_bytes.min(request.log.unwrap_or(u64::MAX)),
        output_bytes: of_box.max_output_bytes,
        processes: request.envelope.processes,
    }
}
