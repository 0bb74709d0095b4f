//! One derivation of a request: valid already, known from an earlier build, or built; its log on the way to the client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nix::BuildStatus;
use nix_derivation::StorePath;
use sandbox::SandboxError;
use store::{Closure, Provenance, RecordedOutput, RegisterError, View};
use tokio::time::Instant;
use wire::worker::{ActivityKind, LogEvent, Verbosity};

use super::context::{Context, Done, Ended};
use super::desk::Desk;
use builds::failure::sandbox_failed;
use builds::kept::Reader;
use builds::log::{Lines, LogReader, Notice};
use builds::reuse::{self, Earlier, Known};
use builds::schedule::NotStarted;
use builds::{Attached, BuildKey, Envelope, Failure, Held, Outcome, Recipe, Request, outputs, realised};
use shares::threads::Lost;

/// What one path of a build's closure takes.
const INPUT_BYTES: u64 = 256;

/// What a build takes beside its derivation and its closure: its tasks, its place among those that wait, who it tells.
const RUN_BYTES: u64 = 16 << 10;

/// Read from a kept log at once.
const CHUNK: usize = 32 * 1024;

/// Makes the outputs of `recipe` valid in the view of `context`; with `check`, builds them again and compares.
pub(super) async fn build_one(context: Context, recipe: Arc<Recipe>, check: bool) -> Ended {
    // Builds of the same request may have run for hours before this one.
    let view = &context.views.now();
    let stated = || {
        let paths = recipe.known_paths()?;
        let proven = recipe.verified_paths && view.all_verified(&paths.values().cloned().collect());
        Some((paths, proven))
    };
    let realised = || realised::paths(view, &recipe.drv_hash?, recipe.outputs.keys());
    let known = stated().or_else(realised);
    let valid = known.filter(|(paths, _)| paths.values().all(|path| view.is_valid(path)));
    match valid {
        Some((paths, proven)) if !check => {
            name_deriver(&context.desk, view, &recipe, &paths).await;
            return Ok(Done::already(paths, proven));
        }
        _ => {}
    }
    let config = &context.agent.config;
    recipe.check(&config.systems, &config.system_features)?;
    let mut one = One::prepare(context, recipe).await?;
    if check {
        return one.check(valid.is_some()).await;
    }
    if let Some(ended) = one.reuse().await {
        return ended;
    }
    one.build(false).await
}

/// As [`outputs::name_deriver`]; a thread is taken only if there is something to note.
async fn name_deriver(desk: &Desk, view: &View, recipe: &Arc<Recipe>, paths: &BTreeMap<String, StorePath>) {
    let nameless = |path: &&StorePath| view.info(path).is_some_and(|info| info.deriver.is_none());
    let paths: Vec<StorePath> = paths.values().filter(nameless).cloned().collect();
    if !paths.is_empty() {
        let (view, recipe) = (view.clone(), recipe.clone());
        let _ = desk.workers.commit(move || outputs::name_deriver(&recipe, &view, &paths)).await;
    }
}

/// A derivation whose inputs are all there.
struct One {
    context: Context,
    request: Request,
    held: Arc<Held>,
    /// Of the same build in the box's own envelope: its result is as good for a member who may have less.
    key_of_box: BuildKey,
}

impl One {
    async fn prepare(context: Context, recipe: Arc<Recipe>) -> Result<Self, Failure> {
        let (view, sandbox_identity) = (context.views.now(), context.agent.sandbox_identity);
        let envelope = Envelope::for_member(&context.agent.config, &context.member.limits);
        let envelope_of_box = Envelope::of_box(&context.agent.config);
        let looked_at = recipe.clone();
        let looking = move || -> Result<(Closure, BuildKey, BuildKey), Failure> {
            let inputs = view.snapshot_to_build(&looked_at.inputs).map_err(|error| match error {
                RegisterError::NotValid(missing) => Failure::rejected(format!(
                    "dependency '{}' of '{}' does not exist here; upload it, or let the box fetch it (`builders-use-substitutes`)",
                    missing.0.to_absolute_path(),
                    looked_at.drv_path.to_absolute_path()
                )),
                error => {
                    tracing::error!(%error, "the store cannot take a change");
                    Failure::transient(format!("the box cannot prepare the inputs of this build: {error}"))
                }
            })?;
            let key = BuildKey::of(&looked_at, inputs.info(), sandbox_identity, &envelope);
            let of_box = match envelope.is_of_box() {
                true => key,
                false => BuildKey::of(&looked_at, inputs.info(), sandbox_identity, &envelope_of_box),
            };
            Ok((inputs, key, of_box))
        };
        let (inputs, key, key_of_box) = lost(context.desk.workers.plan(looking).await)??;
        // Kept until the build has ended, however long it waits for a slot, and whether or not its client stays.
        let need = RUN_BYTES + recipe.weight + inputs.info().paths.len() as u64 * INPUT_BYTES;
        let memory = context.desk.budget.wait(need, "this build").await;
        let memory = memory.map_err(|over| Failure::transient(over.to_string()))?;
        let request = Request {
            member: context.member.clone(),
            recipe,
            inputs: inputs.info().clone(),
            envelope,
            key,
            known: Known::default(),
            check: false,
            wall: context.wall,
            silent: context.silent,
            log: context.log,
        };
        let held = Arc::new(Held { view: context.views.now(), inputs: Arc::new(inputs), memory });
        Ok(Self { context, request, held, key_of_box })
    }

    /// The end that an earlier build with the same key has already decided.
    async fn reuse(&mut self) -> Option<Ended> {
        self.look();
        let (agent, recipe) = (&self.context.agent, &self.request.recipe);
        let failures = match self.context.reuse_failures {
            true => agent.config.reuse_failures,
            false => Duration::ZERO,
        };
        let of_box = match self.request.envelope.is_of_box() {
            true => None,
            false => reuse::built(&agent.store, &self.key_of_box),
        };
        let proven = of_box.is_some() && recipe.proven(&self.request.inputs) || self.request.proven();
        let earlier = match of_box {
            Some(built) => built,
            None => reuse::find(&self.request.known, &recipe.drv_path, failures)?,
        };
        let (member, drv) = (&self.context.member.name, recipe.drv_path.to_absolute_path());
        match earlier {
            Earlier::Built { outputs, log } => {
                // The contents may be gone since; then it is built again.
                let outputs = self.adopt(outputs, log, proven).await.ok()?;
                tracing::info!(%member, %drv, ok = true, "build reused");
                let id = self.context.ids.next();
                let text = format!("using the earlier result on '{}' for '{drv}'", agent.config.name);
                self.context.show(start(id, ActivityKind::Unknown, text, Vec::new())).await;
                self.context.show(LogEvent::stop(id)).await;
                Some(Ok(Done {
                    status: BuildStatus::Substituted,
                    outputs,
                    drv_hash: None,
                    proven,
                    start_time: 0,
                    stop_time: 0,
                }))
            }
            Earlier::Failed { failure, log } => {
                tracing::info!(%member, %drv, ok = false, "build reused");
                if let Some(log) = log {
                    self.show_again(&log).await;
                    self.give_log(Some(log), proven).await;
                }
                Some(Err(failure))
            }
        }
    }

    /// Notes what is recorded now.
    fn look(&mut self) {
        self.request.known = Known::look(&self.context.agent.store, &self.request.key);
    }

    /// Shows the log of a build that is not run again, as it was shown then.
    async fn show_again(&self, log: &str) {
        // It may have made room for others.
        let Ok(file) = self.context.agent.kept.open(log) else { return };
        let (workers, file, mut at) = (&self.context.desk.workers, Arc::new(file), 0);
        let id = self.context.ids.next();
        let drv = self.request.recipe.drv_path.to_absolute_path();
        let fields = vec![drv.as_str().into(), "".into(), 1.into(), 1.into()];
        let text = format!("reporting the earlier failure of '{drv}'");
        self.context.show(start(id, ActivityKind::Build, text, fields)).await;
        let mut lines = Lines::default();
        while let Ok(Ok(chunk)) = workers.read_at(&file, at, CHUNK).await
            && !chunk.is_empty()
        {
            at += chunk.len() as u64;
            self.show_lines(id, &mut lines, &chunk).await;
        }
        self.show_last(id, &mut lines).await;
        self.context.show(LogEvent::stop(id)).await;
    }

    async fn show_lines(&self, id: u64, lines: &mut Lines, chunk: &[u8]) {
        let mut events = Vec::new();
        lines.push(chunk, |notice| events.extend(event(id, notice)));
        for event in events {
            self.context.show(event).await;
        }
    }

    async fn show_last(&self, id: u64, lines: &mut Lines) {
        let mut last = None;
        lines.finish(|notice| last = event(id, notice));
        if let Some(event) = last {
            self.context.show(event).await;
        }
    }

    /// Builds again what is valid, and compares.
    async fn check(mut self, valid: bool) -> Ended {
        let recipe = self.request.recipe.clone();
        let drv = recipe.drv_path.to_absolute_path();
        if !valid {
            self.look();
            if self.request.known.has_failed() {
                // The way to try a known failure again.
                return self.build(true).await;
            }
            // Nix's words.
            return Err(Failure::new(
                BuildStatus::MiscFailure,
                format!("some outputs of '{drv}' are not valid, so checking is not possible"),
            ));
        }
        self.request.check = true;
        let (_, outcome) = self.run(&format!("checking outputs of '{drv}'")).await?;
        let built = outcome.result.as_ref().map_err(|failure| self.mine(failure, &outcome))?;
        outputs::compare(&recipe, &self.context.views.now(), &built.outputs)?;
        let outputs = paths(&built.outputs);
        Ok(Done {
            status: BuildStatus::Built,
            outputs,
            drv_hash: None,
            proven: self.request.proven(),
            start_time: outcome.start_time,
            stop_time: outcome.stop_time,
        })
    }

    /// `again`: whatever is recorded.
    async fn build(&mut self, again: bool) -> Ended {
        let drv = self.request.recipe.drv_path.to_absolute_path();
        if again {
            tracing::info!(member = %self.context.member.name, %drv, "a known failure is tried again");
        }
        loop {
            let (attached, outcome) = match self.run(&format!("building '{drv}'")).await {
                Ok(ended) => ended,
                Err(NotStarted::Refused(failure)) => return Err(failure),
                Err(NotStarted::Known) if again => {
                    self.look();
                    continue;
                }
                Err(NotStarted::Known) => match self.reuse().await {
                    Some(ended) => return ended,
                    None => continue,
                },
            };
            if attached.is_not_ours(&outcome) {
                let note = format!(
                    "note: '{drv}' reached a limit of another request for the same build; \
                     it starts again with your limits"
                );
                self.context.show(LogEvent::message(note)).await;
                continue;
            }
            let proven = self.request.proven();
            let built = match &outcome.result {
                Ok(built) => built,
                Err(failure) => {
                    self.give_log(outcome.log.clone(), proven).await;
                    return Err(self.mine(failure, &outcome));
                }
            };
            match self.adopt(built.outputs.clone(), outcome.log.clone(), proven).await {
                Ok(outputs) => {
                    let (start_time, stop_time) = (outcome.start_time, outcome.stop_time);
                    return Ok(Done {
                        status: BuildStatus::Built,
                        outputs,
                        drv_hash: None,
                        proven,
                        start_time,
                        stop_time,
                    });
                }
                // Its owner had another result already, so this one was kept nowhere. The next run is ours.
                Err(_) if attached.joined => {}
                Err(why) => return Err(why),
            }
        }
    }

    /// Starts a run or joins one, and shows it from the beginning to the end.
    async fn run(&self, text: &str) -> Result<(Attached, Arc<Outcome>), NotStarted> {
        let id = self.context.ids.next();
        let drv = self.request.recipe.drv_path.to_absolute_path();
        let mut attached = self.context.agent.scheduler.build(self.request.clone(), self.held.clone())?;
        // As a stock daemon has it: the builder is at the machine that says so.
        let fields = vec![drv.as_str().into(), "".into(), 1.into(), 1.into()];
        self.context.show(start(id, ActivityKind::Build, text.to_owned(), fields)).await;
        let shown = self.follow(id, &mut attached).await;
        let ended = match shown {
            Ok(()) => Ok(attached.finished().await),
            Err(failure) => Err(NotStarted::Refused(failure)),
        };
        self.context.show(LogEvent::stop(id)).await;
        Ok((attached, ended?))
    }

    /// Passes the log on, line by line, until it is complete. A run that was joined has the limits of who started it,
    /// so ours are kept here: whoever asked for less time stops waiting, and the run goes on for the others.
    async fn follow(&self, id: u64, attached: &mut Attached) -> Result<(), Failure> {
        let mut lines = Lines::default();
        let mut clock = Clock::new(attached);
        let mut left = attached.limits.log_bytes;
        loop {
            let read = clock.bound(&mut attached.log).await.map_err(|error| self.too_late(&error))?;
            let chunk = match read {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot read a build log back");
                    break;
                }
            };
            self.show_lines(id, &mut lines, &chunk).await;
            let limit = attached.limits.log_bytes;
            left = left
                .checked_sub(chunk.len() as u64)
                .ok_or_else(|| self.too_late(&SandboxError::LogLimit { limit }))?;
        }
        self.show_last(id, &mut lines).await;
        Ok(())
    }

    fn too_late(&self, error: &SandboxError) -> Failure {
        sandbox_failed(&self.request.recipe.drv_path, &[], error)
    }

    /// A failure in the words of whoever asked here.
    fn mine(&self, failure: &Failure, outcome: &Outcome) -> Failure {
        failure.clone().about(&outcome.drv, &self.request.recipe.drv_path)
    }

    /// Makes outputs of a run with our key valid in our view, and its log readable.
    async fn adopt(
        &self,
        outputs: BTreeMap<String, RecordedOutput>,
        log: Option<String>,
        proven: bool,
    ) -> Result<Arc<BTreeMap<String, StorePath>>, Failure> {
        let (recipe, view) = (self.request.recipe.clone(), self.context.views.now());
        let give_log = self.giving_log(log, proven);
        let adopting = move || {
            let adopted = outputs::adopt(&recipe, &view, proven, &outputs);
            adopted.map_err(|error| Failure::transient(error.to_string()))?;
            give_log();
            Ok(paths(&outputs))
        };
        lost(self.context.desk.workers.commit(adopting).await)?
    }

    async fn give_log(&self, log: Option<String>, proven: bool) {
        if log.is_some() {
            let _ = self.context.desk.workers.contents(self.giving_log(log, proven)).await;
        }
    }

    /// What lets our member, or everybody, find the log; blocking.
    fn giving_log(&self, log: Option<String>, proven: bool) -> impl FnOnce() + Send + 'static {
        let (recipe, view) = (self.request.recipe.clone(), self.context.views.now());
        let (kept, member) = (self.context.agent.kept.clone(), self.context.member.id.clone());
        move || {
            let Some(log) = log else { return };
            // The log of a build that was made from Verified things alone holds nothing that others could not have.
            let drv = view.info_with_provenance(&recipe.drv_path);
            let public = proven && drv.is_some_and(|(_, provenance)| provenance == Provenance::Verified);
            let reader = if public { Reader::Everybody } else { Reader::Member(&member) };
            if let Err(error) = kept.give(&log, reader, &recipe.drv_path) {
                tracing::warn!(%error, "cannot keep a build log");
            }
        }
    }
}

/// The time limits of someone who joined.
struct Clock {
    limits: Option<sandbox::Limits>,
    begun: tokio::sync::watch::Receiver<Option<std::time::Instant>>,
    joined_at: Instant,
    last_line: Instant,
}

impl Clock {
    fn new(attached: &Attached) -> Self {
        // Who starts a run has its limits, and the sandbox keeps them.
        let limits = attached.joined.then(|| attached.limits.clone());
        let now = Instant::now();
        Self { limits, begun: attached.begun.clone(), joined_at: now, last_line: now }
    }

    async fn bound(&mut self, log: &mut LogReader) -> Result<std::io::Result<Option<Vec<u8>>>, SandboxError> {
        let Some(limits) = self.limits.clone() else { return Ok(log.next().await) };
        let read = log.next();
        tokio::pin!(read);
        // Waiting for a slot is not building.
        let begun = async {
            let begun = self.begun.wait_for(Option::is_some).await.ok().and_then(|begun| *begun);
            begun.map(Instant::from_std)
        };
        let begun = tokio::select! {
            biased;
            read = &mut read => {
                self.last_line = Instant::now();
                return Ok(read);
            }
            begun = begun => begun,
        };
        let Some(begun) = begun else { return Ok(read.await) };
        let since = |start: Instant, limit: Option<Duration>| {
            limit.map(|limit| (start.max(self.joined_at) + limit, limit))
        };
        let wall = since(begun, limits.wall);
        let silent = since(self.last_line.max(begun), limits.silent);
        let sleep = |until: Option<(Instant, Duration)>| async move {
            match until {
                Some((until, limit)) => {
                    tokio::time::sleep_until(until).await;
                    limit
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = &mut read => {
                self.last_line = Instant::now();
                Ok(read)
            }
            after = sleep(wall) => Err(SandboxError::Timeout { after }),
            after = sleep(silent) => Err(SandboxError::Silent { after }),
        }
    }
}

fn paths(outputs: &BTreeMap<String, RecordedOutput>) -> Arc<BTreeMap<String, StorePath>> {
    Arc::new(outputs.iter().map(|(name, output)| (name.clone(), output.path.clone())).collect())
}

fn start(id: u64, kind: ActivityKind, text: String, fields: Vec<wire::worker::Field>) -> LogEvent {
    LogEvent::StartActivity { id, level: Verbosity::Info, kind, text, fields, parent: 0 }
}

fn event(id: u64, notice: Notice<'_>) -> Option<LogEvent> {
    match notice {
        Notice::Line(line) => Some(LogEvent::build_line(id, line)),
        Notice::Phase(phase) => Some(LogEvent::phase(id, &phase)),
        Notice::Ignored => None,
    }
}

fn lost<T>(done: Result<T, Lost>) -> Result<T, Failure> {
    done.map_err(|error| {
        tracing::error!(%error, "work for a build was lost");
        Failure::transient(format!("the build failed because of the box: {error}"))
    })
}
