//! One run of one build: waits for slots, makes the attempt, registers and records what came of it.
//!
//! A run outlives the requests that wait for it: its owner may change while it waits and while it builds. Not here: who
//! owns it (`running`), and what happens inside (`attempt`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sandbox::{Cancel, Limits};
use store::{BuildRecord, RecordEnd, RecordedOutput};
use tokio::sync::watch;

use super::admit::{RunId, Start};
use super::queue::Turn;
use super::share::RunKey;
use super::{Built, Outcome, Request, Shared};
use crate::attempt::{self, AttemptContext, Outputs, Report};
use crate::failure::Cause;
use crate::log::{LogSource, LogWriter};
use crate::{Failure, Recipe, outputs};
use members::Member;
use shares::threads::Workers;

/// What a run begins with.
pub(super) struct Run {
    /// Names it in logs.
    pub id: RunId,
    pub key: RunKey,
    /// Who asked for it. They may have left before it came to this.
    pub first: Arc<Request>,
    /// `None` once nobody wants it any more.
    pub owner: watch::Receiver<Option<Arc<Request>>>,
    pub begun: watch::Sender<Option<Instant>>,
    pub outcome: watch::Sender<Option<Arc<Outcome>>>,
    pub log: LogWriter,
    pub source: LogSource,
    pub cancel: Cancel,
}

/// What a run has while it builds.
struct Place {
    turn: Turn,
    /// Whose slot it is, which is not the owner's after a hand-over for which the new owner had no slot.
    charged: Arc<Member>,
}

/// Makes the run happen, and tells everybody who waits.
pub(super) async fn run(shared: Arc<Shared>, run: Run) {
    let Run { id, key, first, mut owner, begun, outcome, log, source, cancel } = run;
    let check = key.1;
    let accepted = Instant::now();
    let drv = first.recipe.drv_path.to_absolute_path();
    tracing::info!(build = id, member = %first.member.name, %drv, "build accepted");

    let Some((request, turn, start)) = wait_for_turn(&shared, id, &mut owner).await else {
        tracing::info!(build = id, member = %first.member.name, %drv, "build cancelled before it started");
        shared.running.remove(&key, id);
        let result = Err(Failure::cancelled(&first.recipe.drv_path));
        let limits = shared.limits(&first, first.envelope);
        let drv = first.recipe.drv_path.clone();
        let ended = Outcome { result, drv, limits, log: None, start_time: 0, stop_time: 0 };
        outcome.send_replace(Some(Arc::new(ended)));
        return;
    };
    let waited = start.waited;
    let start_time = now();
    let recipe = request.recipe.clone();
    let drv = recipe.drv_path.to_absolute_path();
    let limits = shared.limits(&request, start.size);
    tracing::info!(build = id, member = %request.member.name, %drv, backend = shared.backend.name(), phase_slot_ms = millis(waited), "build started");
    begun.send_replace(Some(Instant::now()));

    // Its slot bounds how many of these threads there are.
    let mut work = shared.threads.alone("build", {
        let (shared, request, limits) = (shared.clone(), request.clone(), limits.clone());
        move || attempted(&shared, &request, id, limits, &cancel, log)
    });
    let mut place = Place { turn, charged: request.member.clone() };
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            Ok(()) = owner.changed() => rehome(&shared, id, &mut owner, &mut place),
        }
    };
    let (report, result) = result.unwrap_or_else(|error| {
        tracing::error!(build = id, %error, "a build was lost");
        let failure = Failure::transient(format!("building '{drv}' failed because of the box: {error}"));
        (Report::default(), Err(failure))
    });
    drop(place);

    // The owner at this moment. That member's view takes the outputs in; the others adopt them.
    let owner = owner.borrow().clone();
    let registering = Instant::now();
    let workers = shared.threads.of(&request.member.id);
    let (result, log) = match (result, owner) {
        (Err(failure), _) => {
            let log = keep_log(&shared, &workers, source, Some(&failure)).await;
            (Err(failure), log)
        }
        (Ok(_), None) => (Err(Failure::cancelled(&recipe.drv_path)), None),
        (Ok(outputs), Some(owner)) => {
            // Both at once: the client waits for the longer one.
            let finishing = finish(&shared, owner, check, outputs);
            tokio::join!(finishing, keep_log(&shared, &workers, source, None))
        }
    };
    let registered = registering.elapsed();
    report_end(id, &request.member.name, &drv, waited, (accepted.elapsed(), registered), report, &result);

    let ended = Outcome { result, drv: recipe.drv_path.clone(), limits, log, start_time, stop_time: now() };
    // Recorded, then unlisted, then told. Who comes before it is unlisted joins; who comes later finds the record, and so
    // does everybody who was told. The record is a turn in the queue for the index, and no flush.
    record(&shared, &workers, id, key, &recipe, &ended).await;
    shared.running.remove(&key, id);
    outcome.send_replace(Some(Arc::new(ended)));
}

/// Waits until the run may start, for whoever owns it meanwhile; `None` when nobody does any more.
async fn wait_for_turn(
    shared: &Shared,
    id: RunId,
    owner: &mut watch::Receiver<Option<Arc<Request>>>,
) -> Option<(Arc<Request>, Turn, Start)> {
    let mut request = owner.borrow_and_update().clone()?;
    let slots = |request: &Request| shared.slots_now(&request.member);
    let mut turn = shared.queue.enter(id, &request.member.id, || slots(&request), request.envelope);
    loop {
        tokio::select! {
            // A run that has just become nobody's does not start.
            biased;
            changed = owner.changed() => {
                changed.ok()?;
                request = owner.borrow_and_update().clone()?;
                turn.hand_over(&request.member.id, || slots(&request));
            }
            start = turn.start() => return Some((request, turn, start?)),
        }
    }
}

/// Charges the run to its new owner, if that member has a slot to spare. Otherwise it stays charged to the member who
/// started it: see `admit`.
fn rehome(shared: &Shared, id: RunId, owner: &mut watch::Receiver<Option<Arc<Request>>>, place: &mut Place) {
    let Some(request) = owner.borrow_and_update().clone() else { return };
    let member = &request.member;
    if member.id == place.charged.id {
        return;
    }
    tracing::info!(build = id, from = %place.charged.name, member = %member.name, "build handed over");
    if place.turn.hand_over(&member.id, || shared.slots_now(member)) {
        place.charged = member.clone();
    }
}

fn attempted(
    shared: &Shared,
    request: &Request,
    id: RunId,
    limits: Limits,
    cancel: &Cancel,
    mut log: LogWriter,
) -> (Report, Result<Outputs, Failure>) {
    let label = id.to_string();
    let context = AttemptContext {
        id: &label,
        view: &request.view,
        http: &request.http,
        scratch: &shared.logs,
        inputs: &request.inputs,
        backend: &*shared.backend,
        kind: shared.config.sandbox.backend,
        limits,
        cores: request.envelope.cores(),
        cancel,
    };
    let mut report = Report::default();
    let result = attempt::run(&request.recipe, &context, &mut log, &mut report);
    (report, result)
}

/// Makes the outputs visible to the owner. Those of a comparison are only looked at.
async fn finish(
    shared: &Shared,
    owner: Arc<Request>,
    check: bool,
    settled: Outputs,
) -> Result<Built, Failure> {
    let recorded: BTreeMap<String, RecordedOutput> =
        settled.iter().map(|(name, settled)| (name.clone(), settled.record())).collect();
    if !check {
        let workers = shared.threads.of(&owner.member.id);
        let view = shared.view_of(&owner);
        let work = move || outputs::register(&owner.recipe, &view, owner.proven(), settled);
        workers.commit(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "registering outputs was lost");
            Err(Failure::transient(format!("the outputs could not be kept because of the box: {error}")))
        })?;
    }
    Ok(Built { outputs: recorded })
}

/// Records what later requests with the same key need not run again for.
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
        // What a download gives is not in the key.
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
    let store = shared.store.clone();
    match workers.commit(move || store.record_result(&key, record)).await {
        // Outputs that were there already, with other contents: nothing to hand on.
        Ok(Ok(()) | Err(store::RegisterError::NoObject { .. })) => {}
        Ok(Err(error)) => {
            tracing::warn!(build = id, %error, "cannot record a result; it will be built again")
        }
        Err(error) => tracing::error!(build = id, %error, "recording a result was lost"),
    }
}

/// Logs of cancelled builds are nobody's.
async fn keep_log(
    shared: &Shared,
    workers: &Workers,
    source: LogSource,
    failure: Option<&Failure>,
) -> Option<String> {
    if failure.is_some_and(Failure::is_cancelled) {
        return None;
    }
    let kept = shared.kept.clone();
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
    let Report { kernel, inputs_prepared, phases, outputs_checked, usage } = report;
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

/// Fractions matter: some phases take well under a millisecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}
