//! One run of one build: waits for slots, makes the attempt, registers and records what came of it.
//!
//! A run outlives the requests that wait for it: its owner may change while it waits and while it builds. Not here: who
//! owns it (`running`), and what happens inside (`attempt`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sandbox::{Cancel, Limits};
use store::{BuildRecord, RecordEnd, RecordedOutput};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::attempt::{self, AttemptContext, Outputs, Report};
use super::failure::Cause;
use super::log::{LogSource, LogWriter};
use super::running::RunKey;
use super::scheduler::{Built, Outcome, Request, Shared};
use super::slots::Slot;
use super::{Failure, outputs};
use shares::threads::Workers;

/// What a run begins with.
pub(super) struct Run {
    /// Names it in logs.
    pub id: u64,
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

/// Slots a run holds while it builds. The member's may be missing after the owner has changed.
struct Slots {
    member: Arc<str>,
    _own: Slot,
    _of_box: OwnedSemaphorePermit,
}

/// Makes the run happen, and tells everybody who waits.
pub(super) async fn run(shared: Arc<Shared>, run: Run) {
    let Run { id, key, first, mut owner, begun, outcome, log, source, cancel } = run;
    let (build_key, check) = key;
    let accepted = Instant::now();
    let drv = first.recipe.drv_path.to_absolute_path();
    tracing::info!(build = id, member = %first.member.name, %drv, "build accepted");

    let Some((request, mut slots)) = wait_for_slots(&shared, &mut owner).await else {
        tracing::info!(build = id, member = %first.member.name, %drv, "build cancelled before it started");
        shared.running.remove(&key, id);
        let result = Err(Failure::cancelled(&first.recipe.drv_path));
        let limits = shared.limits(&first);
        let drv = first.recipe.drv_path.clone();
        let ended = Outcome { result, drv, limits, log: None, start_time: 0, stop_time: 0 };
        outcome.send_replace(Some(Arc::new(ended)));
        return;
    };
    let waited = accepted.elapsed();
    let start_time = now();
    let recipe = request.recipe.clone();
    let drv = recipe.drv_path.to_absolute_path();
    let limits = shared.limits(&request);
    tracing::info!(build = id, member = %request.member.name, %drv, backend = shared.backend.name(), phase_slot_ms = millis(waited), "build started");
    begun.send_replace(Some(Instant::now()));

    // Its slot bounds how many of these threads there are.
    let mut work = shared.threads.alone("build", {
        let (shared, request, limits) = (shared.clone(), request.clone(), limits.clone());
        move || attempted(&shared, &request, id, limits, &cancel, log)
    });
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            Ok(()) = owner.changed() => rehome(&shared, id, &mut owner, &mut slots),
        }
    };
    let (report, result) = result.unwrap_or_else(|error| {
        tracing::error!(build = id, %error, "a build was lost");
        let failure = Failure::transient(format!("building '{drv}' failed because of the box: {error}"));
        (Report::default(), Err(failure))
    });
    drop(slots);

    // Whoever owns it now. Their view takes the outputs in; the others adopt them.
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

    let stop_time = now();
    let record = |end| BuildRecord { drv: recipe.drv_path.clone(), time: stop_time, end };
    let to_record = match &result {
        _ if check => None,
        Ok(built) => Some((
            *build_key.bytes(),
            record(RecordEnd::Built { outputs: built.outputs.clone(), log: log.clone() }),
        )),
        // What a download gives is not in the key.
        Err(_) if recipe.builder.starts_with(b"builtin:fetch") => None,
        Err(failure) if failure.cause == Cause::Build => Some((
            build_key.of_failure(),
            record(RecordEnd::Failed {
                status: failure.status as u32,
                message: failure.message.clone(),
                log: log.clone(),
            }),
        )),
        Err(_) => None,
    };
    // Recorded, then unlisted, then told. Who comes before it is unlisted joins; who comes later finds the record, and so
    // does everybody who was told. The record is a turn in the queue for the index, and no flush.
    if let Some((key, record)) = to_record {
        let store = shared.store.clone();
        let recorded = workers.commit(move || store.record_result(&key, record)).await;
        match recorded {
            // Outputs that were there already, with other contents: nothing to hand on.
            Ok(Ok(()) | Err(store::RegisterError::NoObject { .. })) => {}
            Ok(Err(error)) => {
                tracing::warn!(build = id, %error, "cannot record a result; it will be built again")
            }
            Err(error) => tracing::error!(build = id, %error, "recording a result was lost"),
        }
    }
    shared.running.remove(&key, id);
    let ended = Outcome { result, drv: recipe.drv_path.clone(), limits, log, start_time, stop_time };
    outcome.send_replace(Some(Arc::new(ended)));
}

/// Slots for whoever owns the run; `None` when nobody does any more.
async fn wait_for_slots(
    shared: &Shared,
    owner: &mut watch::Receiver<Option<Arc<Request>>>,
) -> Option<(Arc<Request>, Slots)> {
    loop {
        let request = owner.borrow_and_update().clone()?;
        let slots = async {
            // The member's first: whoever has many builds waits in a queue of their own, not at the head of everyone's.
            let own = shared.member_slots(&request.member).take().await?;
            let of_box = shared.box_slots.clone().acquire_owned().await.ok()?;
            Some(Slots { member: request.member.name.clone(), _own: own, _of_box: of_box })
        };
        tokio::select! {
            slots = slots => return Some((request.clone(), slots?)),
            changed = owner.changed() => changed.ok()?,
        }
    }
}

/// Charges the run to its new owner, if that member has a slot to spare. Otherwise it stays charged to the member who
/// started it: nobody ever has more runs than slots, and nobody's run stops because another member is busy.
fn rehome(shared: &Shared, id: u64, owner: &mut watch::Receiver<Option<Arc<Request>>>, slots: &mut Slots) {
    let Some(request) = owner.borrow_and_update().clone() else { return };
    if request.member.name == slots.member {
        return;
    }
    tracing::info!(build = id, from = %slots.member, member = %request.member.name, "build handed over");
    if let Some(own) = shared.member_slots(&request.member).try_take() {
        slots.member = request.member.name.clone();
        slots._own = own;
    }
}

fn attempted(
    shared: &Shared,
    request: &Request,
    id: u64,
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
    build: u64,
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
