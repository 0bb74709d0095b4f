//! When a build runs, and who shares it.
//!
//! [`Scheduler`] is the seam for schedulers of more than one box; [`Embedded`] is the one that needs no other service.
//! A build belongs to one member. Requests of that member for the same recipe share one run and its log; a build
//! nobody waits for any more is cancelled, unless the box is told otherwise.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix_derivation::StorePath;
use sandbox::{Backend, Cancel, Limits};
use store::View;
use tokio::sync::{Semaphore, watch};

use super::attempt::{self, Means, Success};
use super::log::{self, LogReader, LogSource};
use super::recipe::BuildKey;
use super::{Failure, Recipe};
use crate::config::Config;
use crate::roster::{Member, Roster};

/// What a client wants built, and under which limits of its own. Zero and `None` mean "the box's".
#[derive(Clone)]
pub struct Request {
    pub member: Arc<Member>,
    pub view: View,
    pub recipe: Arc<Recipe>,
    pub wall: Option<Duration>,
    pub silent: Option<Duration>,
    /// `NIX_BUILD_CORES` as the client asked; the sandbox's CPUs bound it.
    pub cores: u32,
}

/// How a build ended, and when it ran (Unix seconds).
#[derive(Debug)]
pub struct Outcome {
    /// Where each output is now.
    pub result: Result<BTreeMap<String, StorePath>, Failure>,
    pub start_time: i64,
    pub stop_time: i64,
}

/// A share in a running build. Dropping it is leaving.
pub struct Attached {
    pub log: LogReader,
    pub outcome: watch::Receiver<Option<Arc<Outcome>>>,
    /// Whether the build ran already when this request came.
    pub joined: bool,
    _hold: Hold,
}

impl Attached {
    /// Waits for the end.
    pub async fn finished(&mut self) -> Arc<Outcome> {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.as_ref().map(Arc::clone).unwrap_or_else(|| unreachable!("waited for it")),
            Err(_) => Arc::new(Outcome {
                result: Err(Failure::transient("the build was lost; this is a bug of the box")),
                start_time: 0,
                stop_time: 0,
            }),
        }
    }
}

/// Runs builds.
pub trait Scheduler: Send + Sync {
    /// Starts a build, or joins the one that runs.
    fn build(&self, request: Request) -> Result<Attached, Failure>;
    /// Ends all builds of members for whom `keep` is false.
    fn retain(&self, keep: &dyn Fn(&str) -> bool);
}

/// Builds on this machine, as many at once as configured.
pub struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    backend: Arc<dyn Backend>,
    logs: PathBuf,
    box_slots: Arc<Semaphore>,
    member_slots: Mutex<HashMap<Arc<str>, MemberSlots>>,
    running: Mutex<HashMap<(Arc<str>, BuildKey), Running>>,
    next_id: AtomicU64,
}

/// How many builds a member may run at once, and the permits for them.
type MemberSlots = (u32, Arc<Semaphore>);

/// Listed from the first request until the outcome is known.
struct Running {
    id: u64,
    log: LogSource,
    outcome: watch::Receiver<Option<Arc<Outcome>>>,
    cancel: Cancel,
    /// Ends the wait for a slot, which `cancel` cannot.
    give_up: watch::Sender<bool>,
    waiters: usize,
}

/// One waiter of one build.
struct Hold {
    shared: Arc<Shared>,
    key: (Arc<str>, BuildKey),
    id: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut running = self.shared.running();
        // The id tells a later build of the same recipe from ours.
        let Some(build) = running.get_mut(&self.key).filter(|build| build.id == self.id) else { return };
        build.waiters -= 1;
        if build.waiters == 0 && !self.shared.config.keep_builds_running {
            build.stop();
            running.remove(&self.key);
        }
    }
}

impl Running {
    fn stop(&self) {
        self.cancel.cancel();
        self.give_up.send_replace(true);
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<(Arc<str>, BuildKey), Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member's own slots. A changed limit in the roster takes effect with a new set; builds in the old one finish.
    fn member_slots(&self, member: &Member) -> Arc<Semaphore> {
        let most = self.config.limits.max_jobs_per_member as u32;
        let jobs = member.limits.max_jobs.unwrap_or(most).clamp(1, most);
        let mut slots = self.member_slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.get(&member.name) {
            Some((known, semaphore)) if *known == jobs => semaphore.clone(),
            _ => {
                let semaphore = Arc::new(Semaphore::new(jobs as usize));
                slots.insert(member.name.clone(), (jobs, semaphore.clone()));
                semaphore
            }
        }
    }
}

impl Embedded {
    /// `logs` must be an existing folder. Builds of members who leave the roster are ended from now on.
    pub fn new(
        config: Arc<Config>,
        backend: Arc<dyn Backend>,
        logs: PathBuf,
        mut roster: watch::Receiver<Arc<Roster>>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            box_slots: Arc::new(Semaphore::new(config.limits.max_jobs)),
            config,
            backend,
            logs,
            member_slots: Mutex::default(),
            running: Mutex::default(),
            next_id: AtomicU64::new(1),
        });
        let scheduler = Arc::new(Self { shared });
        let weak = Arc::downgrade(&scheduler);
        tokio::spawn(async move {
            while roster.changed().await.is_ok() {
                let Some(scheduler) = weak.upgrade() else { return };
                let now = roster.borrow_and_update().clone();
                scheduler.retain(&|name| now.contains(name));
            }
        });
        scheduler
    }
}

impl Scheduler for Embedded {
    fn build(&self, request: Request) -> Result<Attached, Failure> {
        let key = (request.member.name.clone(), request.recipe.key());
        let mut running = self.shared.running();
        if let Some(build) = running.get_mut(&key) {
            build.waiters += 1;
            let (log, outcome, id) = (build.log.reader(), build.outcome.clone(), build.id);
            let hold = Hold { shared: self.shared.clone(), key, id };
            return Ok(Attached { log, outcome, joined: true, _hold: hold });
        }
        let (writer, source) = log::create(&self.shared.logs)
            .map_err(|e| Failure::transient(format!("cannot create a build log: {e}")))?;
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (outcome, outcome_seen) = watch::channel(None);
        let (give_up, given_up) = watch::channel(false);
        let cancel = Cancel::new();
        let log = source.reader();
        running.insert(
            key.clone(),
            Running {
                id,
                log: source,
                outcome: outcome_seen.clone(),
                cancel: cancel.clone(),
                give_up,
                waiters: 1,
            },
        );
        drop(running);
        let hold = Hold { shared: self.shared.clone(), key: key.clone(), id };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let ended = Arc::new(run(&shared, request, id, writer, cancel, given_up).await);
            // Unlisted first: who asks from now on finds the outputs valid, or may try again.
            {
                let mut running = shared.running();
                if running.get(&key).is_some_and(|build| build.id == id) {
                    running.remove(&key);
                }
            }
            outcome.send_replace(Some(ended));
        });
        Ok(Attached { log, outcome: outcome_seen, joined: false, _hold: hold })
    }

    fn retain(&self, keep: &dyn Fn(&str) -> bool) {
        self.shared.running().retain(|(member, _), build| {
            let kept = keep(member);
            if !kept {
                build.stop();
            }
            kept
        });
    }
}

/// Waits for slots, runs the attempt, writes the log lines that `make bench` and operators read.
async fn run(
    shared: &Arc<Shared>,
    request: Request,
    id: u64,
    mut log: log::LogWriter,
    cancel: Cancel,
    mut given_up: watch::Receiver<bool>,
) -> Outcome {
    let accepted = Instant::now();
    let recipe = request.recipe.clone();
    let drv = recipe.drv_path.to_absolute_path();
    let member = request.member.name.clone();
    tracing::info!(build = id, %member, %drv, "build accepted");
    let slots = async {
        // The member's first: whoever has many builds waits in a queue of their own, not at the head of everyone's.
        let own = shared.member_slots(&request.member).acquire_owned().await;
        let of_box = shared.box_slots.clone().acquire_owned().await;
        (own, of_box)
    };
    let slots = tokio::select! {
        slots = slots => slots,
        () = crate::turned(&mut given_up) => {
            tracing::info!(build = id, %member, %drv, "build cancelled before it started");
            return Outcome { result: Err(Failure::cancelled(&recipe.drv_path)), start_time: 0, stop_time: 0 };
        }
    };
    let waited = accepted.elapsed();
    let start_time = now();
    let limits = limits(&shared.config, &request);
    let backend = shared.backend.clone();
    let kind = shared.config.sandbox.backend;
    let cores =
        if request.cores == 0 { u32::from(limits.vcpus) } else { request.cores.min(u32::from(limits.vcpus)) };
    tracing::info!(build = id, %member, %drv, backend = backend.name(), phase_slot_ms = millis(waited), "build started");
    let label = id.to_string();
    let work = {
        let recipe = recipe.clone();
        tokio::task::spawn_blocking(move || {
            let backend = &*backend;
            let means =
                Means { id: &label, view: &request.view, backend, kind, limits, cores, cancel: &cancel };
            attempt::run(&recipe, &means, &mut log)
        })
    };
    let result = work.await.unwrap_or_else(|panic| {
        tracing::error!(build = id, %panic, "a build panicked; this is a bug of the box");
        Err(Failure::transient(format!("building '{drv}' failed because of a bug of the box")))
    });
    drop(slots);
    report(id, &member, &drv, waited, accepted.elapsed(), &result);
    Outcome { result: result.map(|success| success.outputs), start_time, stop_time: now() }
}

fn report(
    build: u64,
    member: &str,
    drv: &str,
    waited: Duration,
    total: Duration,
    result: &Result<Success, Failure>,
) {
    let phase_slot_ms = millis(waited);
    let total_ms = millis(total);
    match result {
        Ok(success) => {
            let phase = |name: &str| success.phases.iter().find(|(n, _)| *n == name).map(|(_, d)| millis(*d));
            tracing::info!(
                build,
                member,
                drv,
                ok = true,
                total_ms,
                kernel = success.kernel,
                vmm_overhead_bytes = success.vmm_overhead_bytes,
                phase_slot_ms,
                phase_inputs_ms = phase("inputs prepared"),
                phase_vm_started_ms = phase("vm started"),
                phase_guest_ready_ms = phase("guest ready"),
                phase_job_sent_ms = phase("job sent"),
                phase_builder_started_ms = phase("builder started"),
                phase_builder_ms = phase("builder"),
                phase_outputs_ms = phase("outputs"),
                phase_registered_ms = phase("outputs registered"),
                "build finished"
            );
        }
        Err(failure) => {
            let error = failure.message.lines().next().unwrap_or("");
            tracing::info!(build, member, drv, ok = false, total_ms, phase_slot_ms, status = ?failure.status, error, "build finished");
        }
    }
}

/// Fractions matter: some phases take well under a millisecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// The tightest of box, member and client, for each resource.
fn limits(config: &Config, request: &Request) -> Limits {
    let (of_box, own) = (&config.limits, &request.member.limits);
    let tighter =
        |ceiling: Duration, asked: Option<Duration>| asked.map_or(ceiling, |asked| asked.min(ceiling));
    let wall = tighter(of_box.max_build, own.max_build_seconds.map(Duration::from_secs));
    Limits {
        vcpus: config.sandbox.vcpus.min(of_box.max_vcpus).min(own.max_cpus.unwrap_or(u8::MAX)).max(1),
        memory_mib: config
            .sandbox
            .memory_mib
            .min(of_box.max_memory_mib)
            .min(own.max_memory_mib.unwrap_or(u32::MAX)),
        wall: Some(tighter(wall, request.wall)),
        silent: Some(tighter(of_box.max_silent, request.silent)),
        log_bytes: of_box.max_log_bytes,
        output_bytes: of_box.max_output_bytes,
        processes: of_box.max_processes,
    }
}
