//! One run of one build: waits for its turn, is executed, registers its outputs and records its result.
//!
//! A run outlives the requests that wait for it: its owner may change while it waits and while it builds. Not here: who
//! owns it (`share`), when it may start (`admit`), and how it is executed (`place`).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix_derivation::StorePath;
use sandbox::Cancel;
use store::{BuildRecord, RecordEnd, RecordedOutput};
use tokio::sync::watch;

use super::admit::{RunId, Start};
use super::charges::{self, Owners, Used};
use super::place::{Done, Task};
use super::queue::Turn;
use super::request::{Built, Outcome, Request};
use super::share::{RunKey, Waiter};
use super::shared::{Shared, size_of};
use crate::attempt::{Outputs, Report};
use crate::drain::Drained;
use crate::failure::Cause;
use crate::log::{LogSource, LogWriter};
use crate::{Failure, Recipe, outputs};
use members::Member;
use shares::threads::Workers;

/// The data with which a run begins.
pub(super) struct Run {
    /// Names the run in logs.
    pub id: RunId,
    pub key: RunKey,
    /// The first requester. They may have left before the run starts.
    pub first: Arc<Waiter>,
    /// `None` once nobody wants the run any more.
    pub owner: watch::Receiver<Option<Arc<Waiter>>>,
    pub begun: watch::Sender<Option<Instant>>,
    pub outcome: watch::Sender<Option<Arc<Outcome>>>,
    pub log: LogWriter,
    pub source: LogSource,
    pub cancel: Cancel,
    /// Why the run ends early, if it is because the box is drained.
    pub drained: Arc<OnceLock<Arc<Drained>>>,
}

/// A run's turn, and the member whose slot it uses. This is not the owner if the run was handed over to an owner who
/// had no free slot.
struct Slot {
    turn: Turn,
    charged: Arc<Member>,
}

/// Executes the run, and sends the outcome to every waiter.
pub(super) async fn run(shared: Arc<Shared>, run: Run) {
    let Run { id, key, first, mut owner, begun, outcome, log, source, cancel, drained } = run;
    let accepted = Instant::now();
    let drv = first.request.recipe.drv_path.to_absolute_path();
    let tags = first.request.tags.join(" ");
    tracing::info!(build = id, member = %first.request.member.name, %drv, tags, "build accepted");
    let Some((waiter, mut slot, start)) = wait_for_turn(&shared, id, &mut owner).await else {
        tracing::info!(build = id, member = %first.request.member.name, %drv, "build cancelled before it started");
        shared.running.remove(&key, id);
        let drv = &first.request.recipe.drv_path;
        let why = drained.get().map_or_else(|| Failure::cancelled(drv), |drained| drained.refusal(drv));
        outcome.send_replace(Some(Arc::new(never_started(&shared, &first, why))));
        return;
    };
    let permit = match shared.permit(&waiter.request).await {
        Ok(permit) => permit,
        Err(failure) => {
            tracing::info!(build = id, member = %waiter.request.member.name, %drv, reason = failure.message, "build not started");
            shared.running.remove(&key, id);
            outcome.send_replace(Some(Arc::new(never_started(&shared, &waiter, failure))));
            return;
        }
    };
    let (member, recipe) = (&waiter.request.member, &waiter.request.recipe);
    let drv = recipe.drv_path.to_absolute_path();
    let start_time = now();
    let task = Task {
        run: id,
        member: member.id.clone(),
        recipe: recipe.clone(),
        inputs: waiter.request.inputs.clone(),
        envelope: waiter.request.envelope,
        limits: permit.limits.clone(),
    };
    let limits = task.limits.clone();
    tracing::info!(build = id, member = %member.name, %drv, backend = shared.place.name(), phase_slot_ms = millis(start.waited), "build started");
    begun.send_replace(Some(Instant::now()));
    let inputs = shared.snapshots.keep(id, waiter.held.inputs.clone());
    let mut owners = Owners::new(&waiter.request);
    let done = shared.place.run(task, log, cancel);
    let Done { report, result } = follow(&shared, id, done, &mut owner, (&mut slot, &mut owners)).await;
    drop(inputs);
    let cpu = report.usage.map_or(Duration::ZERO, |usage| usage.cpu);
    let result = permit.end(&recipe.drv_path, cpu, result);
    // Charged before the slot is free: the next run that starts in it has to find the charge.
    let (log_bytes, failed) = (source.written(), result.is_err());
    let (usage, downloaded) = (report.usage, report.downloaded);
    let used = Used { usage, envelope: waiter.request.envelope, log_bytes, downloaded, failed };
    charges::charge(&shared.parts.ledger, &owners.end(), &used);
    drop(slot);

    let owner = owner.borrow().clone();
    let registering = Instant::now();
    let workers = shared.parts.threads.of(&member.payer().id);
    let (result, log) = match (result, owner) {
        (Err(failure), _) => {
            let failure = of_drain(failure, &drained, &recipe.drv_path);
            let log = keep_log(&shared, &workers, source, Some(&failure)).await;
            (Err(failure), log)
        }
        (Ok(_), None) => {
            let cancelled = Failure::cancelled(&recipe.drv_path);
            (Err(of_drain(cancelled, &drained, &recipe.drv_path)), None)
        }
        (Ok(outputs), Some(owner)) => {
            // Both at once, so that the client waits only for the longer one.
            let finishing = finish(&shared, owner, key.1, outputs);
            tokio::join!(finishing, keep_log(&shared, &workers, source, None))
        }
    };
    let times = (accepted.elapsed(), registering.elapsed());
    report_end(id, &member.name, &drv, start.waited, times, report, &result);

    let ended = Outcome { result, drv: recipe.drv_path.clone(), limits, log, start_time, stop_time: now() };
    // First the run is recorded, then it is unlisted, then its waiters get the outcome. A request that comes before the
    // run is unlisted joins it; a later one finds the record, also if it comes from a waiter who has the outcome.
    // Recording takes a turn in the queue of the index, and no flush.
    record(&shared, &workers, id, key, recipe, &ended).await;
    shared.running.remove(&key, id);
    outcome.send_replace(Some(Arc::new(ended)));
}

/// The end of a cancelled run, with the reason if the box ended it because it is drained.
fn of_drain(failure: Failure, drained: &OnceLock<Arc<Drained>>, drv: &StorePath) -> Failure {
    match drained.get() {
        Some(drained) if failure.is_cancelled() => drained.ended(drv),
        _ => failure,
    }
}

fn never_started(shared: &Shared, waiter: &Waiter, failure: Failure) -> Outcome {
    let request = &waiter.request;
    Outcome {
        result: Err(failure),
        drv: request.recipe.drv_path.clone(),
        limits: shared.limits(request),
        log: None,
        start_time: 0,
        stop_time: 0,
    }
}

/// Waits until the run may start, among the runs of its owner; `None` when it has no owner any more.
async fn wait_for_turn(
    shared: &Shared,
    id: RunId,
    owner: &mut watch::Receiver<Option<Arc<Waiter>>>,
) -> Option<(Arc<Waiter>, Slot, Start)> {
    let mut waiter = owner.borrow_and_update().clone()?;
    let charged = waiter.request.member.clone();
    let (asked, size) = (waiter.request.asked(), size_of(&waiter.request.envelope));
    let turn = shared.queue.enter(id, || shared.owner_of(&waiter.request), asked, size);
    let mut slot = Slot { turn, charged };
    loop {
        tokio::select! {
            // The owner is checked first: a run that has lost its last owner must not start.
            biased;
            changed = owner.changed() => {
                changed.ok()?;
                waiter = owner.borrow_and_update().clone()?;
                slot.hand_over(shared, &waiter.request);
            }
            start = slot.turn.start() => return Some((waiter, slot, start?)),
        }
    }
}

impl Slot {
    /// Charges the run to its new owner. If it has started and the new owner has no free slot, the charge stays: see
    /// `admit`.
    fn hand_over(&mut self, shared: &Shared, owner: &Request) {
        if self.turn.hand_over(|| shared.owner_of(owner)) {
            self.charged = owner.member.clone();
        }
    }
}

/// Waits until the task has ended, while the run may get other owners, which `owners` notes.
async fn follow(
    shared: &Shared,
    id: RunId,
    mut done: impl Future<Output = Done> + Unpin,
    owner: &mut watch::Receiver<Option<Arc<Waiter>>>,
    (slot, owners): (&mut Slot, &mut Owners),
) -> Done {
    loop {
        tokio::select! {
            done = &mut done => return done,
            Ok(()) = owner.changed() => {
                let Some(waiter) = owner.borrow_and_update().clone() else { continue };
                let member = &waiter.request.member;
                owners.hand_over(&waiter.request);
                if member.id != slot.charged.id {
                    tracing::info!(build = id, from = %slot.charged.name, member = %member.name, "build handed over");
                    slot.hand_over(shared, &waiter.request);
                }
            }
        }
    }
}

/// Makes the outputs visible to the owner at the end of the run; the other waiters adopt them. The outputs of a check
/// are only compared.
async fn finish(
    shared: &Shared,
    owner: Arc<Waiter>,
    check: bool,
    settled: Outputs,
) -> Result<Built, Failure> {
    let recorded: BTreeMap<String, RecordedOutput> =
        settled.iter().map(|(name, settled)| (name.clone(), settled.record())).collect();
    if !check {
        let workers = shared.parts.threads.of(&owner.request.member.payer().id);
        let view = shared.view_of(&owner);
        let work = move || outputs::register(&owner.request.recipe, &view, owner.request.proven(), settled);
        workers.commit(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "registering outputs was lost");
            Err(Failure::transient(format!("the outputs could not be kept because of the box: {error}")))
        })?;
    }
    Ok(Built { outputs: recorded })
}

/// Records the result, if it is the answer to later requests with the same key.
async fn record(
    shared: &Shared,
    workers: &Workers,
    id: RunId,
    (key, check): RunKey,
    recipe: &Recipe,
    ended: &Outcome,
) {
    let (key, end) = match &ended.result {
        _ if check => return,
        Ok(built) => {
            (*key.bytes(), RecordEnd::Built { outputs: built.outputs.clone(), log: ended.log.clone() })
        }
        // The key does not cover the contents of a download.
        Err(_) if recipe.builder.starts_with(b"builtin:fetch") => return,
        Err(failure) if failure.cause == Cause::Build => (
            key.of_failure(),
            RecordEnd::Failed {
                status: failure.status as u32,
                message: failure.message.clone(),
                log: ended.log.clone(),
            },
        ),
        Err(_) => return,
    };
    let record = BuildRecord { drv: recipe.drv_path.clone(), time: ended.stop_time, end };
    let store = shared.parts.store.clone();
    match workers.commit(move || store.record_result(&key, record)).await {
        // `NoObject`: the paths were valid with other contents, so there is no result that others could reuse.
        Ok(Ok(()) | Err(store::RegisterError::NoObject { .. })) => {}
        Ok(Err(error)) => {
            tracing::warn!(build = id, %error, "cannot record a result; it will be built again")
        }
        Err(error) => tracing::error!(build = id, %error, "recording a result was lost"),
    }
}

/// Logs of cancelled builds are not kept.
async fn keep_log(
    shared: &Shared,
    workers: &Workers,
    source: LogSource,
    failure: Option<&Failure>,
) -> Option<String> {
    if failure.is_some_and(Failure::is_cancelled) {
        return None;
    }
    let kept = shared.parts.kept.clone();
    let name = workers.contents(move || kept.keep(source.file())).await.ok()?;
    name.inspect_err(|error| tracing::warn!(%error, "cannot keep a build log")).ok()
}

/// Writes the log line that `make bench` and operators read.
fn report_end(
    build: RunId,
    member: &str,
    drv: &str,
    waited: Duration,
    (total, registered): (Duration, Duration),
    report: Report,
    result: &Result<Built, Failure>,
) {
    let Report { kernel, inputs_prepared, phases, outputs_checked, usage, downloaded: _ } = report;
    let failure = result.as_ref().err();
    tracing::info!(
        build,
        member,
        drv,
        ok = result.is_ok(),
        status = failure.map(|failure| tracing::field::debug(failure.status)),
        error = failure.map(|failure| failure.message.lines().next().unwrap_or("")),
        total_ms = millis(total),
        kernel,
        cpu_ms = usage.map(|usage| millis(usage.cpu)),
        peak_memory_bytes = usage.and_then(|usage| usage.peak_memory),
        bytes_in = usage.map(|usage| usage.bytes_in),
        bytes_out = usage.map(|usage| usage.bytes_out),
        vmm_overhead_bytes = usage.and_then(|usage| usage.vmm_overhead),
        phase_slot_ms = millis(waited),
        phase_inputs_ms = inputs_prepared.map(millis),
        phase_machine_started_ms = phases.machine_started.map(millis),
        phase_guest_ready_ms = phases.guest_ready.map(millis),
        phase_job_sent_ms = phases.job_sent.map(millis),
        phase_builder_started_ms = phases.builder_started.map(millis),
        phase_builder_ms = phases.builder.map(millis),
        phase_outputs_ms = phases.outputs.map(millis),
        phase_registered_ms = outputs_checked.map(|checked| millis(checked + registered)),
        "build finished"
    );
}

/// Milliseconds with a fraction: some phases take well under a millisecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}
