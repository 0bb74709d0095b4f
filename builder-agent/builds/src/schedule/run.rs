//! One run of one build: waits for its turn, is executed, registers its outputs and records its result.
//!
//! A run outlives the requests that wait for it: its owner may change while it waits and while it builds. Not here: who
//! owns it (`share`), when it may start (`admit`), and how it is executed (`place`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix_derivation::StorePath;
use sandbox::Cancel;
use store::{BuildRecord, RecordEnd, RecordedOutput};
use tokio::sync::watch;

use super::admit::{RunId, Start};
use super::charges::{self, Owners, Used};
use super::place::{Done, Kept, Task};
use super::queue::Turn;
use super::request::{Built, Outcome, Request};
use super::share::{RunKey, Waiter};
use super::shared::{Shared, size_of};
use super::tickets::Permit;
use crate::attempt::{Outputs, Report, TakenOver};
use crate::drain::Drained;
use crate::failure::Cause;
use crate::limits::RunLimits;
use crate::log::{LogSource, LogWriter};
use crate::{BuildKey, Failure, Recipe, outputs, reuse};
use members::Member;
use shares::threads::Workers;

/// A run, apart from its log's writer.
pub(super) struct Run {
    /// Names the run in logs.
    pub id: RunId,
    /// Under which it is listed.
    pub key: RunKey,
    /// Under which its result is recorded. Not the listed one if an earlier version of the box has started the run.
    pub recorded: BuildKey,
    pub accepted: Instant,
    /// `None` once nobody wants the run any more.
    pub owner: watch::Receiver<Option<Arc<Waiter>>>,
    pub begun: watch::Sender<Option<Instant>>,
    pub outcome: watch::Sender<Option<Arc<Outcome>>>,
    pub source: LogSource,
    pub cancel: Cancel,
    /// Why the run ends early, if it is because the box is drained.
    pub drained: Arc<OnceLock<Arc<Drained>>>,
    pub progress: Progress,
}

/// What a started run has used so far and what was promised to it; shared with those who write it down. `None`: it has not
/// started, or has ended.
pub(super) type Progress = Arc<Mutex<Option<Account>>>;

/// The account of a started run.
pub(super) struct Account {
    pub start_time: i64,
    pub waited: Duration,
    pub owners: Owners,
    /// The member whose slot it has. This is not the owner if the run was handed over to an owner who had no free slot.
    pub charged: Arc<Member>,
    pub permit: Permit,
}

/// A run that may start, or has.
pub(super) struct Started {
    /// For whom it was started.
    pub waiter: Arc<Waiter>,
    pub turn: Turn,
    pub account: Account,
}

/// Executes a new run, which `first` has asked for, and sends the outcome to every waiter. They may have left before it starts.
pub(super) async fn run(shared: Arc<Shared>, mut run: Run, first: Arc<Waiter>, log: LogWriter) {
    let id = run.id;
    let drv = first.request.recipe.drv_path.to_absolute_path();
    let tags = first.request.tags.join(" ");
    tracing::info!(build = id, member = %first.request.member.name, %drv, tags, "build accepted");
    let Some((waiter, charged, turn, start)) = wait_for_turn(&shared, id, &mut run.owner).await else {
        tracing::info!(build = id, member = %first.request.member.name, %drv, "build cancelled before it started");
        shared.running.remove(&run.key, id);
        let drv = &first.request.recipe.drv_path;
        let why = run.drained.get().map_or_else(|| Failure::cancelled(drv), |drained| drained.refusal(drv));
        run.outcome.send_replace(Some(Arc::new(never_started(&shared, &first, why))));
        return;
    };
    let permit = match shared.permit(&waiter.request).await {
        Ok(permit) => permit,
        Err(failure) => {
            tracing::info!(build = id, member = %waiter.request.member.name, %drv, reason = failure.message, "build not started");
            shared.running.remove(&run.key, id);
            run.outcome.send_replace(Some(Arc::new(never_started(&shared, &waiter, failure))));
            return;
        }
    };
    let member = &waiter.request.member;
    let drv = waiter.request.recipe.drv_path.to_absolute_path();
    let account = Account {
        start_time: now(),
        waited: start.waited,
        owners: Owners::new(&waiter.request),
        charged,
        permit,
    };
    tracing::info!(build = id, member = %member.name, %drv, backend = shared.place.name(), phase_slot_ms = millis(start.waited), "build started");
    run.begun.send_replace(Some(Instant::now()));
    let task = task(id, &waiter, &account.permit.limits);
    let inputs = shared.snapshots.keep(id, waiter.held.inputs.clone());
    let done = shared.place.run(task, None, log, run.cancel.clone());
    let started = Started { waiter, turn, account };
    to_the_end(shared, run, started, inputs, done).await;
}

/// Goes on with a run that another program has started and paused.
pub(super) async fn go_on(
    shared: Arc<Shared>,
    run: Run,
    started: Started,
    paused: TakenOver,
    log: LogWriter,
) {
    let member = &started.waiter.request.member;
    let drv = started.waiter.request.recipe.drv_path.to_absolute_path();
    tracing::info!(build = run.id, member = %member.name, %drv, backend = shared.place.name(), "build taken over");
    let task = task(run.id, &started.waiter, &started.account.permit.limits);
    let inputs = shared.snapshots.keep(run.id, started.waiter.held.inputs.clone());
    let done = shared.place.run(task, Some(paused), log, run.cancel.clone());
    to_the_end(shared, run, started, inputs, done).await;
}

fn task(run: RunId, waiter: &Waiter, limits: &RunLimits) -> Task {
    let request = &waiter.request;
    Task {
        run,
        member: request.member.id.clone(),
        recipe: request.recipe.clone(),
        inputs: request.inputs.clone(),
        envelope: request.envelope,
        limits: limits.clone(),
    }
}

fn lock(progress: &Progress) -> MutexGuard<'_, Option<Account>> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the end of a started run, registers its outputs, records its result, and sends the outcome to every waiter.
async fn to_the_end(
    shared: Arc<Shared>,
    run: Run,
    started: Started,
    inputs: Kept,
    done: impl Future<Output = Done> + Unpin,
) {
    let Run { id, key, recorded, accepted, mut owner, outcome, source, drained, progress, .. } = run;
    let Started { waiter, turn, account } = started;
    let (member, recipe) = (&waiter.request.member, &waiter.request.recipe);
    let drv = recipe.drv_path.to_absolute_path();
    let (waited, start_time, limits) = (account.waited, account.start_time, account.permit.limits.clone());
    *lock(&progress) = Some(account);
    let Done { report, result } = follow(&shared, id, done, &mut owner, (&turn, &progress)).await;
    let cpu = report.usage.map_or(Duration::ZERO, |usage| usage.cpu);
    let account = lock(&progress).take();
    let (owners, result) = match account {
        Some(account) => (account.owners.end(), account.permit.end(&recipe.drv_path, cpu, result)),
        None => unreachable!("it was put there above, and only this takes it"),
    };
    // Charged before the slot is free: the next run that starts in it has to find the charge.
    let (log_bytes, failed) = (source.written(), result.is_err());
    let (usage, downloaded) = (report.usage, report.downloaded);
    let used = Used { usage, envelope: waiter.request.envelope, log_bytes, downloaded, failed };
    charges::charge(&shared.parts.ledger, &owners, &used);
    drop(turn);
    // While it has its inputs it counts as a run: whoever writes runs down waits for its charge.
    drop(inputs);

    let owner = owner.borrow().clone();
    let for_whom = owner.clone();
    let registering = Instant::now();
    let payer = &member.payer().id;
    let workers = shared.parts.threads.of(payer);
    let (result, log) = match (result, owner) {
        (Err(failure), _) => {
            let failure = of_drain(failure, &drained, &recipe.drv_path);
            let log = keep_log(&shared, &workers, payer, source, Some(&failure)).await;
            (Err(failure), log)
        }
        (Ok(_), None) => {
            let cancelled = Failure::cancelled(&recipe.drv_path);
            (Err(of_drain(cancelled, &drained, &recipe.drv_path)), None)
        }
        (Ok(outputs), Some(owner)) => {
            // Both at once, so that the client waits only for the longer one.
            let finishing = finish(&shared, owner, key.1, outputs);
            tokio::join!(finishing, keep_log(&shared, &workers, payer, source, None))
        }
    };
    if let (Some(log), Some(owner)) = (&log, for_whom)
        && shared.running.has_no_requests(&key, id)
    {
        give_log(&shared, &workers, &owner, log.clone()).await;
    }
    let times = (accepted.elapsed(), registering.elapsed());
    report_end(id, &member.name, &drv, waited, times, report, &result);

    let ended = Outcome { result, drv: recipe.drv_path.clone(), limits, log, start_time, stop_time: now() };
    // First the run is recorded, then it is unlisted, then its waiters get the outcome. A request that comes before the
    // run is unlisted joins it; a later one finds the record, also if it comes from a waiter who has the outcome.
    // Recording takes a turn in the queue of the index, and no flush.
    record(&shared, &workers, id, (recorded, key.1), recipe, &ended).await;
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

/// Waits until the run may start, among the runs of its owner; `None` when it has no owner any more. Returns the owner, and
/// the member whose slot it has.
async fn wait_for_turn(
    shared: &Shared,
    id: RunId,
    owner: &mut watch::Receiver<Option<Arc<Waiter>>>,
) -> Option<(Arc<Waiter>, Arc<Member>, Turn, Start)> {
    let mut waiter = owner.borrow_and_update().clone()?;
    let mut charged = waiter.request.member.clone();
    let (asked, size) = (waiter.request.asked(), size_of(&waiter.request.envelope));
    let mut turn = shared.queue.enter(id, || shared.owner_of(&waiter.request), asked, size);
    loop {
        tokio::select! {
            // The owner is checked first: a run that has lost its last owner must not start.
            biased;
            changed = owner.changed() => {
                changed.ok()?;
                waiter = owner.borrow_and_update().clone()?;
                // If it has started and the new owner has no free slot, the charge stays: see `admit`.
                if turn.hand_over(|| shared.owner_of(&waiter.request)) {
                    charged = waiter.request.member.clone();
                }
            }
            start = turn.start() => return start.map(|start| (waiter, charged, turn, start)),
        }
    }
}

/// Waits until the task has ended, while the run may get other owners, which `progress` notes.
async fn follow(
    shared: &Shared,
    id: RunId,
    mut done: impl Future<Output = Done> + Unpin,
    owner: &mut watch::Receiver<Option<Arc<Waiter>>>,
    (turn, progress): (&Turn, &Progress),
) -> Done {
    loop {
        tokio::select! {
            done = &mut done => return done,
            Ok(()) = owner.changed() => {
                let Some(waiter) = owner.borrow_and_update().clone() else { continue };
                hand_over(shared, id, &waiter.request, turn, progress);
            }
        }
    }
}

/// A started run has this owner from now on. It is charged to the new owner, too, who may have no free slot: then the
/// charge stays, see `admit`.
fn hand_over(shared: &Shared, id: RunId, to: &Request, turn: &Turn, progress: &Progress) {
    let member = &to.member;
    let charged = lock(progress).as_mut().map(|account| {
        account.owners.hand_over(to);
        account.charged.clone()
    });
    let Some(charged) = charged.filter(|charged| charged.id != member.id) else { return };
    tracing::info!(build = id, from = %charged.name, member = %member.name, "build handed over");
    if turn.hand_over(|| shared.owner_of(to))
        && let Some(account) = lock(progress).as_mut()
    {
        account.charged = member.clone();
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
        // A fixed-output builder may have waited for a server.
        Err(_) if recipe.is_fixed() => return,
        Err(failure) => {
            let kept = (ended.log.as_ref(), shared.parts.config.reuse_failures);
            let store = &shared.parts.store;
            match reuse::end_at_time_limit(store, &key, failure, &ended.limits, kept) {
                Some(end) => end,
                None => return,
            }
        }
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
    payer: &Arc<str>,
    source: LogSource,
    failure: Option<&Failure>,
) -> Option<String> {
    if failure.is_some_and(Failure::is_cancelled) {
        return None;
    }
    let (kept, payer) = (shared.parts.kept.clone(), payer.clone());
    let name = workers.contents(move || kept.keep(source.file(), &payer)).await.ok()?;
    name.inspect_err(|error| tracing::warn!(%error, "cannot keep a build log")).ok()
}

/// Lets the owner of a run that nobody waits for find its log. Requests that wait for a run do that for themselves.
async fn give_log(shared: &Shared, workers: &Workers, owner: &Arc<Waiter>, log: String) {
    let (kept, view, owner) = (shared.parts.kept.clone(), shared.view_of(owner), owner.clone());
    let giving = move || {
        let request = &owner.request;
        let (member, drv) = (&request.member.id, &request.recipe.drv_path);
        outputs::give_log(&kept, &view, member, drv, request.proven(), &log);
    };
    let _ = workers.contents(giving).await;
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
        network_bytes = usage.map(|usage| usage.network).filter(|bytes| *bytes > 0),
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
