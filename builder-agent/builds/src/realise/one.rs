//! One derivation of a request: it is valid, known from an earlier build, or built.
//!
//! Not here: sending its log to the client (`follow`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nix::BuildStatus;
use nix_derivation::StorePath;
use store::{Closure, RecordedOutput, RegisterError, View};

use super::{Context, Done, Ended};
use crate::envelope::Most;
use crate::events::{Again, BuildKind, Event};
use crate::failure::{Cause, Limit};
use crate::reuse::{self, Earlier, Known};
use crate::schedule::{Attached, NotStarted};
use crate::{BuildKey, Envelope, Failure, Held, Outcome, Recipe, Request, outputs, realisations};
use members::settings::Effective;
use shares::threads::{Lost, Workers};

/// Memory of one path of a build's closure.
const INPUT_BYTES: u64 = 256;

/// Memory of a build besides its derivation and its closure: its tasks, and its places in waiting lists.
const RUN_BYTES: u64 = 16 << 10;

/// Before a build is started again whose sandbox failed there is a pause of a second, then of two, and so on. After so many
/// it grows no more.
const PAUSES: u32 = 5;

/// Makes the outputs of `recipe` valid in the view of `context`; with `check`, builds them again and compares.
pub(super) async fn build_one(context: Context, recipe: Arc<Recipe>, check: bool) -> Ended {
    // A new view: builds of the same request may have run for hours before this one.
    let view = &context.views.now();
    let stated = || {
        let paths = recipe.known_paths()?;
        let proven = recipe.verified_paths && view.all_verified(&paths.values().cloned().collect());
        Some((paths, proven))
    };
    let realised = || realisations::paths(view, &recipe.drv_hash?, recipe.outputs.keys());
    let known = stated().or_else(realised);
    let valid = known.filter(|(paths, _)| paths.values().all(|path| view.is_valid(path)));
    match valid {
        Some((paths, proven)) if !check => {
            name_deriver(&context.workers, view, &recipe, &paths).await;
            return Ok(Done::already(paths, proven));
        }
        _ => {}
    }
    let config = &context.realiser.config;
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

/// As [`outputs::name_deriver`]; takes a thread only if there is something to note.
async fn name_deriver(
    workers: &Workers,
    view: &View,
    recipe: &Arc<Recipe>,
    paths: &BTreeMap<String, StorePath>,
) {
    let nameless = |path: &&StorePath| view.info(path).is_some_and(|info| info.deriver.is_none());
    let paths: Vec<StorePath> = paths.values().filter(nameless).cloned().collect();
    if !paths.is_empty() {
        let (view, recipe) = (view.clone(), recipe.clone());
        let _ = workers.commit(move || outputs::name_deriver(&recipe, &view, &paths)).await;
    }
}

/// A derivation whose inputs are all valid.
pub(super) struct One {
    pub context: Context,
    pub request: Request,
    pub held: Arc<Held>,
    /// The key of the same build in the box's own envelope. A result with that key is also good for a member with lower
    /// limits.
    key_of_box: BuildKey,
    /// The settings for this derivation.
    settings: Arc<Effective>,
    /// The most that its build may have of the box.
    most: Most,
    /// How often its build was started again.
    again: u64,
    /// How often of these it was because of the sandbox.
    broken: u32,
}

impl One {
    async fn prepare(context: Context, recipe: Arc<Recipe>) -> Result<Self, Failure> {
        let settings = context.options.wishes.for_build(&recipe)?;
        let (view, sandbox_identity) = (context.views.now(), context.realiser.sandbox_identity);
        let (config, member) = (&context.realiser.config, &context.member);
        let most = Most::of(config, &member.limits, &member.groups, &settings);
        let envelope = Envelope::of_build(config, &most, &settings).map_err(|why| {
            let drv = recipe.drv_path.to_absolute_path();
            let hint = "`ssh box settings --explain NAME` says where a setting is set";
            Failure::rejected(format!("'{drv}' is not built: {why}\nhint: {hint}"))
        })?;
        let memory_set_by = most.memory_set_by(config, &envelope, &settings);
        let envelope_of_box = Envelope::of_box(config);
        let looked_at = recipe.clone();
        let looking = move || -> Result<(Closure, BuildKey, BuildKey), Failure> {
            let inputs = view.snapshot_to_build(&looked_at.inputs).map_err(|error| match error {
                RegisterError::NotValid(missing) => Failure::rejected(format!(
                    "dependency '{}' of '{}' does not exist here; upload it, or let the box fetch it (`builders-use-substitutes`)",
                    missing.0.to_absolute_path(),
                    looked_at.drv_path.to_absolute_path()
                )),
                // Copies of what others share count for the member's own limit.
                error if error.is_callers_fault() => {
                    outputs::not_kept("cannot prepare the inputs of this build".to_owned(), &error)
                }
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
        let (inputs, key, key_of_box) = lost(context.workers.plan(looking).await)??;
        // The charge is held until the build has ended, even if it waits long for a slot, and even if its client
        // leaves.
        let need = RUN_BYTES + recipe.weight + inputs.info().paths.len() as u64 * INPUT_BYTES;
        let memory = context.budget.wait(need, "this build").await;
        let memory = memory.map_err(|over| Failure::transient(over.to_string()))?;
        let request = Request {
            member: context.member.clone(),
            principal: context.principal.clone(),
            recipe,
            inputs: inputs.info().clone(),
            envelope,
            key,
            known: Known::default(),
            check: false,
            before: 0,
            alone: context.alone,
            wall: smaller(context.options.wall, settings.timeout),
            silent: smaller(context.options.silent, settings.max_silent_time),
            log: context.options.log,
            keep_running: settings.keep_builds_running,
            priority: settings.priority,
            tags: settings.tags.clone(),
            paid: false,
            memory_set_by,
        };
        let held = Arc::new(Held { view: context.views.now(), inputs: Arc::new(inputs), memory });
        Ok(Self { context, request, held, key_of_box, settings, most, again: 0, broken: 0 })
    }

    /// The result that an earlier build with the same key gives.
    async fn reuse(&mut self) -> Option<Ended> {
        self.look();
        let (realiser, recipe) = (&self.context.realiser, &self.request.recipe);
        let failures = match self.settings.reuse_build_failures {
            true => realiser.config.reuse_failures,
            false => Duration::ZERO,
        };
        let of_box = match self.request.envelope.is_of_box() {
            true => None,
            false if !self.request.envelope.is_served_by_box() => None,
            false => reuse::built(&realiser.store, &self.key_of_box),
        };
        let proven = of_box.is_some() && recipe.proven(&self.request.inputs) || self.request.proven();
        let earlier = match of_box {
            Some(built) => built,
            None => reuse::find(&self.request.known, &recipe.drv_path, failures)
                .or_else(|| self.timed_out_before())?,
        };
        let (member, drv) = (&self.context.member.name, recipe.drv_path.to_absolute_path());
        match earlier {
            Earlier::Built { outputs, log } => {
                let outputs = match self.adopt(outputs, log, proven).await {
                    Ok(outputs) => outputs,
                    Err(full) if full.cause == Cause::Limit(Limit::Store) => return Some(Err(full)),
                    // The contents have been removed since, so the derivation is built again.
                    Err(_) => return None,
                };
                tracing::info!(%member, %drv, ok = true, "build reused");
                self.context.reporter.report(Event::Reused { drv: recipe.drv_path.clone() }).await;
                Some(Ok(Done::without_run(BuildStatus::Substituted, outputs, proven)))
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

    /// The end of an earlier build at a time limit, if that is the answer.
    fn timed_out_before(&self) -> Option<Earlier> {
        if !self.request.known.has_timed_out() {
            return None;
        }
        let (realiser, request) = (&self.context.realiser, &self.request);
        let (limits, kept) = (realiser.scheduler.limits(request), realiser.config.reuse_failures);
        reuse::timed_out(&request.known, &request.recipe.drv_path, &limits, &self.settings, kept)
    }

    /// Notes the current records of the build key.
    fn look(&mut self) {
        self.request.known = Known::look(&self.context.realiser.store, &self.request.key);
    }

    /// Builds valid outputs again, and compares.
    async fn check(mut self, valid: bool) -> Ended {
        let recipe = self.request.recipe.clone();
        let drv = recipe.drv_path.to_absolute_path();
        if !valid {
            self.look();
            let known = &self.request.known;
            if known.has_failed() || self.settings.reuse_build_timeouts.is_some() && known.has_timed_out() {
                // A check of outputs that are not valid is the way to try a known failure again.
                return self.build(true).await;
            }
            // The message is Nix's.
            return Err(Failure::new(
                BuildStatus::MiscFailure,
                format!("some outputs of '{drv}' are not valid, so checking is not possible"),
            ));
        }
        self.request.check = true;
        let (attached, outcome) = loop {
            let (attached, outcome) = self.run(BuildKind::Checking).await?;
            if attached.is_not_ours(&outcome) {
                self.context.reporter.report(Event::LimitOfOthers { drv: recipe.drv_path.clone() }).await;
            } else if !self.starts_again(&attached, &outcome).await? {
                break (attached, outcome);
            }
        };
        let built = outcome
            .result
            .as_ref()
            .map_err(|failure| self.in_words_of_request(failure, &outcome, &attached))?;
        outputs::compare(&recipe, &self.context.views.now(), &built.outputs)?;
        Ok(self.built(paths(&built.outputs), &outcome))
    }

    /// Makes the outputs with a run. `again`: even if a result is recorded.
    async fn build(&mut self, again: bool) -> Ended {
        let drv = self.request.recipe.drv_path.to_absolute_path();
        if again {
            tracing::info!(member = %self.context.member.name, %drv, "a known failure is tried again");
        }
        loop {
            let (attached, outcome) = match self.run(BuildKind::Building).await {
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
                let drv = self.request.recipe.drv_path.clone();
                self.context.reporter.report(Event::LimitOfOthers { drv }).await;
                continue;
            }
            if self.starts_again(&attached, &outcome).await? {
                continue;
            }
            let proven = self.request.proven();
            let built = match &outcome.result {
                Ok(built) => built,
                Err(failure) => {
                    self.give_log(outcome.log.clone(), proven).await;
                    return Err(self.in_words_of_request(failure, &outcome, &attached));
                }
            };
            match self.adopt(built.outputs.clone(), outcome.log.clone(), proven).await {
                Ok(outputs) => return Ok(self.built(outputs, &outcome)),
                Err(full) if full.cause == Cause::Limit(Limit::Store) => return Err(full),
                // The owner of the run had another result already, so the outputs were not kept. This request owns the
                // next run.
                Err(_) if attached.joined => {}
                Err(why) => return Err(why),
            }
        }
    }

    /// Whether the run is to be started again: with more memory if it ran out of it, as it was if its sandbox failed. Then
    /// the request is the next one's.
    async fn starts_again(&mut self, attached: &Attached, outcome: &Outcome) -> Result<bool, Failure> {
        let Err(failure) = &outcome.result else { return Ok(false) };
        if self.again >= self.settings.max_build_restarts {
            return Ok(false);
        }
        let before = self.request.envelope;
        let why = match (failure.cause, before.larger(&self.context.realiser.config, &self.most)) {
            (Cause::Limit(Limit::Memory), Some(larger)) => {
                self.resize(larger).await?;
                // Who joined a run has spent nothing for it.
                self.request.paid |= !attached.joined;
                Again::Memory { before_mib: before.memory_mib, now_mib: larger.memory_mib }
            }
            (Cause::Sandbox, _) => {
                // Its own run has given the use back.
                self.request.paid &= attached.joined;
                Again::Sandbox
            }
            _ => return Ok(false),
        };
        self.again += 1;
        let drv = self.request.recipe.drv_path.clone();
        let (member, reason) = (&self.context.member.name, failure.message.lines().next().unwrap_or(""));
        let memory_mib = self.request.envelope.memory_mib;
        let (shown, again) = (drv.to_absolute_path(), self.again);
        let is_broken = matches!(why, Again::Sandbox);
        if is_broken && !attached.joined {
            // Once for each run, not for all who waited for it.
            tracing::warn!(%member, drv = %shown, again, memory_mib, reason, "a sandbox failed; its build starts again");
        } else {
            tracing::info!(%member, drv = %shown, again, memory_mib, reason, "build starts again");
        }
        self.context.reporter.report(Event::StartsAgain { drv, why }).await;
        if is_broken {
            // The run has ended, so its slot is free meanwhile.
            tokio::time::sleep(pause(self.broken)).await;
            self.broken += 1;
        }
        Ok(true)
    }

    /// The request is for a build in this envelope from now on.
    async fn resize(&mut self, envelope: Envelope) -> Result<(), Failure> {
        let (recipe, inputs) = (self.request.recipe.clone(), self.request.inputs.clone());
        let identity = self.context.realiser.sandbox_identity;
        let hashing = move || BuildKey::of(&recipe, &inputs, identity, &envelope);
        let key = lost(self.context.workers.plan(hashing).await)?;
        // Whether there is a result is looked up when the scheduler says so.
        (self.request.envelope, self.request.key, self.request.known) = (envelope, key, Known::default());
        let config = &self.context.realiser.config;
        self.request.memory_set_by = self.most.memory_set_by(config, &envelope, &self.settings);
        Ok(())
    }

    fn built(&self, outputs: Arc<BTreeMap<String, StorePath>>, outcome: &Outcome) -> Done {
        let (start_time, stop_time) = (outcome.start_time, outcome.stop_time);
        let done = Done::without_run(BuildStatus::Built, outputs, self.request.proven());
        Done { start_time, stop_time, ..done }
    }

    /// The failure with the name of this request's derivation in place of the one that was built, and with this request's
    /// limits.
    fn in_words_of_request(&self, failure: &Failure, outcome: &Outcome, attached: &Attached) -> Failure {
        let mut failure = failure.clone().limited_by(&outcome.limits.set_by, &attached.limits.set_by);
        if self.again > 0 && matches!(failure.cause, Cause::Sandbox | Cause::Limit(Limit::Memory)) {
            let (starts, most) = (self.again + 1, self.settings.max_build_restarts);
            let note = format!("\nnote: it was started {starts} times; `max-build-restarts` is {most}");
            failure.message.push_str(&note);
        }
        failure.about(&outcome.drv, &self.request.recipe.drv_path)
    }

    /// Makes the outputs of a run with this request's key valid in the member's view, and its log readable.
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
            let drv = recipe.drv_path.to_absolute_path();
            adopted
                .map_err(|error| outputs::not_kept(format!("cannot keep the outputs of '{drv}'"), &error))?;
            give_log();
            Ok(paths(&outputs))
        };
        lost(self.context.workers.commit(adopting).await)?
    }

    async fn give_log(&self, log: Option<String>, proven: bool) {
        if log.is_some() {
            let _ = self.context.workers.contents(self.giving_log(log, proven)).await;
        }
    }

    /// A function that lets the member, or everybody, find the log. The function blocks.
    fn giving_log(&self, log: Option<String>, proven: bool) -> impl FnOnce() + Send + 'static {
        let (recipe, view) = (self.request.recipe.clone(), self.context.views.now());
        let (kept, member) = (self.context.realiser.kept.clone(), self.context.member.id.clone());
        move || {
            if let Some(log) = log {
                outputs::give_log(&kept, &view, &member, &recipe.drv_path, proven, &log);
            }
        }
    }
}

/// The time before a build is started again whose sandbox failed, after so many others: what is wrong with the machine may
/// pass, and a build that breaks each sandbox should not keep the box busy with starts.
fn pause(before: u32) -> Duration {
    Duration::from_secs(1 << before.min(PAUSES))
}

/// The smaller of the client's limit and of a setting in seconds.
fn smaller(client: Option<Duration>, setting: Option<u64>) -> Option<Duration> {
    client.into_iter().chain(setting.map(Duration::from_secs)).min()
}

fn paths(outputs: &BTreeMap<String, RecordedOutput>) -> Arc<BTreeMap<String, StorePath>> {
    Arc::new(outputs.iter().map(|(name, output)| (name.clone(), output.path.clone())).collect())
}

fn lost<T>(done: Result<T, Lost>) -> Result<T, Failure> {
    done.map_err(|error| {
        tracing::error!(%error, "work for a build was lost");
        Failure::transient(format!("the build failed because of the box: {error}"))
    })
}
