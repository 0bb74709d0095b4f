//! Runs plans: builds in the right order, several at once, logs on their way to the client as they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nix::derivation::BasicDerivation;
use nix::{BuildMode, BuildResult, BuildStatus, BuiltOutput};
use nix_derivation::{DerivedPath, StorePath};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wire::types::ClientSettings;
use wire::worker::{ActivityKind, LogEvent, ResultKind, Verbosity};

use super::Session;
use super::audience::Audience;
use super::context::{Context, Done, Ended};
use super::floating::{self, Work};
use super::studied::studied;
use super::transfer::{RequestError, bug, over};
use builds::{Failure, Plan, Recipe};

/// Builds of one request handed to the scheduler at once. Each waits with an open log file.
const MAX_AT_ONCE: usize = 128;
/// Log events on their way to a client before a build's reader waits. Each may be a line of 8 KiB.
const EVENTS_AHEAD: usize = 64;
/// What a request that builds takes: log on its way, and a piece of it for each of a few builds.
const LOG_BYTES: u64 = 1 << 20;
/// Outputs that one answer names: the targets may be the same derivation again and again, with all its outputs. A NixOS
/// system has some thousand.
const MAX_OUTPUTS_TOLD: usize = 200_000;
/// Failures repeated in one error message.
const MAX_FAILURES_SHOWN: usize = 20;

impl Session {
    pub(super) async fn build_paths(
        &self,
        audience: &mut impl Audience,
        targets: Vec<DerivedPath>,
        mode: BuildMode,
    ) -> Result<(), RequestError> {
        let results = self.build_paths_with_results(audience, targets, mode).await?;
        let results = results.into_iter().map(|(_, result)| result);
        let failed: Vec<BuildResult> = results.filter(|result| !result.status.is_success()).collect();
        match failed.is_empty() {
            true => Ok(()),
            false => Err(RequestError::Refused(all_messages(failed))),
        }
    }

    pub(super) async fn build_paths_with_results(
        &self,
        audience: &mut impl Audience,
        targets: Vec<DerivedPath>,
        mode: BuildMode,
    ) -> Result<Vec<(DerivedPath, BuildResult)>, RequestError> {
        let check = is_check(mode)?;
        // Before anything else is held.
        let _charge = self.desk.budget.wait(LOG_BYTES, "the log of this build").await.map_err(over)?;
        if !check {
            self.prefetch(audience, &targets).await?;
        }
        let view = self.view();
        let looked_at = targets.clone();
        let agent = self.agent.clone();
        let planning = studied(&self.desk, move |study| match check {
            true => Plan::make_again(&view, &agent.drv_hashes, &looked_at, study),
            false => Plan::make(&view, &agent.drv_hashes, &looked_at, study),
        });
        let (_, mut nothing) = mpsc::channel(1);
        let plan = audience.run(planning, &mut nothing).await??;
        let plan = Arc::new(plan.map_err(|failure| RequestError::Refused(failure.message))?);
        let answered = targets.iter().map(|target| outputs_of(&plan, target)).sum::<usize>();
        if answered > MAX_OUTPUTS_TOLD {
            return Err(RequestError::Refused(format!(
                "the targets have {answered} outputs together, and this box reports at \
                 most {MAX_OUTPUTS_TOLD} for one request; request them in parts"
            )));
        }
        let (events, mut shown) = mpsc::channel(EVENTS_AHEAD);
        let context = self.context(events);
        let work = realise(context, plan.clone(), self.settings.keep_going, self.settings.keep_failed);
        let ended = audience.run(work, &mut shown).await?;
        // The same target may be named again and again, and its error is a page long.
        let told: u64 = targets.iter().map(|target| message_bytes(&ended, target)).sum();
        let _charge = self.desk.budget.wait(told, "this answer").await.map_err(over)?;
        Ok(targets
            .into_iter()
            .map(|target| {
                let result = result(&plan, &ended, &target);
                (target, result)
            })
            .collect())
    }

    pub(super) async fn build_derivation(
        &self,
        audience: &mut impl Audience,
        drv_path: StorePath,
        derivation: BasicDerivation,
        mode: BuildMode,
    ) -> Result<BuildResult, RequestError> {
        let check = is_check(mode)?;
        if !check {
            self.prefetch_outputs(audience, &drv_path, &derivation).await?;
        }
        let reading = move || Recipe::from_basic(&drv_path, derivation);
        let recipe = self.desk.workers.plan(reading).await.map_err(bug)?;
        let recipe = match recipe {
            Ok(recipe) => Arc::new(recipe),
            Err(failure) => return Ok(BuildResult::new(failure.status, failure.message)),
        };
        let _charge = self.desk.budget.wait(LOG_BYTES, "the log of this build").await.map_err(over)?;
        let (events, mut shown) = mpsc::channel(EVENTS_AHEAD);
        let (context, keep_failed) = (self.context(events), self.settings.keep_failed);
        let work = async move {
            warn_keep_failed(&context, keep_failed).await;
            floating::build_plain(context, recipe, check).await
        };
        let ended = audience.run(work, &mut shown).await?;
        Ok(match ended {
            Ok(done) => success(&done, &[]),
            Err(failure) => BuildResult::new(failure.status, failure.message),
        })
    }

    fn context(&self, events: mpsc::Sender<LogEvent>) -> Context {
        let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        Context {
            agent: self.agent.clone(),
            member: self.member.clone(),
            views: self.views.clone(),
            desk: self.desk.clone(),
            wall: number(&self.settings, &["timeout", "build-timeout"]).and_then(seconds),
            silent: seconds(self.settings.max_silent_time),
            log: number(&self.settings, &["max-log-size", "build-max-log-size"]).filter(|bytes| *bytes > 0),
            reuse_failures: self.options.reuse_failures,
            ids: self.ids.clone(),
            events,
        }
    }
}

/// A setting that has no place of its own in `SetOptions` and comes by name, the new or the old one.
fn number(settings: &ClientSettings, names: &[&str]) -> Option<u64> {
    names.iter().find_map(|name| settings.overrides.get(*name)?.parse().ok())
}

/// One message out of those of failed targets.
pub(super) fn all_messages(failed: Vec<BuildResult>) -> String {
    let count = failed.len();
    let messages: Vec<String> =
        failed.into_iter().take(MAX_FAILURES_SHOWN).map(|result| result.error_msg).collect();
    match count {
        1 => messages.concat(),
        n => format!("{n} targets failed:\n{}", messages.join("\n")),
    }
}

/// Whether the targets are built to be compared.
fn is_check(mode: BuildMode) -> Result<bool, RequestError> {
    match mode {
        BuildMode::Normal => Ok(false),
        BuildMode::Check => Ok(true),
        BuildMode::Repair => Err(RequestError::Refused(
            "--repair is refused: objects of this box are immutable and checked when they are read, so nothing can be \
             repaired in place; to build without it, leave it out"
                .into(),
        )),
    }
}

/// Nix keeps the folder of a failed build on the machine that built it, for whoever can log in there. A build here has
/// nothing that would outlive it, so this is refused; the build goes on without, as it would on a stock builder.
async fn warn_keep_failed(context: &Context, asked: bool) {
    if asked {
        let name = &context.agent.config.name;
        let text = format!(
            "warning: '--keep-failed' is refused: the folder of a failed build is removed with its sandbox on '{name}'; \
             build on your own machine to keep it"
        );
        context.show(LogEvent::message(text)).await;
    }
}

/// Builds all that a plan needs. Whatever ends early (the client hangs up) leaves every build it waits for.
async fn realise(
    context: Context,
    plan: Arc<Plan>,
    keep_going: bool,
    keep_failed: bool,
) -> BTreeMap<StorePath, Ended> {
    warn_keep_failed(&context, keep_failed).await;
    let mut ended: BTreeMap<StorePath, Ended> = BTreeMap::new();
    for (drv, failure) in &plan.rejected {
        ended.insert(drv.clone(), Err(failure.clone()));
    }
    for path in &plan.unknown {
        ended.insert(path.clone(), Err(unknown(path)));
    }
    let mut waiting: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
    let mut needed_by: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
    let mut ready: Vec<StorePath> = Vec::new();
    for (drv, node) in plan.nodes.iter().filter(|(_, node)| node.needs_build) {
        for input in &node.after {
            needed_by.entry(input.clone()).or_default().insert(drv.clone());
        }
        if node.after.is_empty() {
            ready.push(drv.clone());
        } else {
            waiting.insert(drv.clone(), node.after.clone());
        }
    }
    // The first of them to be started is the first in the order of the plan.
    ready.reverse();
    let expected = (waiting.len() + ready.len()) as u64;
    let progress = Progress::start(&context, expected).await;
    let mut failed: Vec<StorePath> =
        ended.iter().filter(|(_, end)| end.is_err()).map(|(path, _)| path.clone()).collect();
    let mut failures = failed.len() as u64;
    let mut running = JoinSet::new();
    let mut stop = false;
    loop {
        // A failure fails all that needs it, however indirectly.
        while let Some(input) = failed.pop() {
            stop |= !keep_going;
            let Some(users) = needed_by.get(&input) else { continue };
            if let Some(Err(failure)) = ended.get(&input)
                && failure.status != BuildStatus::DependencyFailed
            {
                // Nobody else tells the client: it asked for something that needs this.
                context.show(LogEvent::message(format!("error: {}", failure.message))).await;
            }
            for user in users {
                if let Some(inputs) = waiting.remove(user) {
                    let count =
                        inputs.iter().filter(|input| matches!(ended.get(*input), Some(Err(_)))).count();
                    let message = format!(
                        "{count} dependencies of derivation '{}' failed to build",
                        user.to_absolute_path()
                    );
                    ended.insert(user.clone(), Err(Failure::new(BuildStatus::DependencyFailed, message)));
                    failed.push(user.clone());
                    failures += 1;
                }
            }
        }
        if stop {
            break;
        }
        while running.len() < MAX_AT_ONCE
            && let Some(drv) = ready.pop()
        {
            let node = &plan.nodes[&drv];
            let again = node.again;
            let built = |input: &StorePath| Some(&*ended.get(input)?.as_ref().ok()?.outputs);
            let unresolved = node.unresolved.clone().map(|of| (of, plan.input_paths(&drv, built)));
            let work = Work { recipe: node.recipe.clone(), unresolved };
            let context = context.clone();
            running.spawn(async move { (drv, floating::build(context, work, again).await) });
        }
        progress.report(&context, ended.len() as u64 - failures, running.len(), failures).await;
        let Some(joined) = running.join_next().await else { break };
        let Ok((drv, end)) = joined else { continue };
        let worked = end.is_ok();
        ended.insert(drv.clone(), end);
        if !worked {
            failed.push(drv);
            failures += 1;
            continue;
        }
        for user in needed_by.get(&drv).into_iter().flatten() {
            if let Some(inputs) = waiting.get_mut(user) {
                inputs.remove(&drv);
                if inputs.is_empty() {
                    waiting.remove(user);
                    ready.push(user.clone());
                }
            }
        }
    }
    // Leaves the builds that still run.
    drop(running);
    progress.report(&context, ended.len() as u64 - failures, 0, failures).await;
    progress.stop(&context).await;
    for (drv, node) in &plan.nodes {
        if node.needs_build && !ended.contains_key(drv) {
            let why = if stop {
                Failure::cancelled(drv)
            } else {
                // Real derivations cannot: their names hash their inputs. An invented one can.
                Failure::rejected(format!("derivation '{}' depends on itself", drv.to_absolute_path()))
            };
            ended.insert(drv.clone(), Err(why));
        }
    }
    ended
}

fn unknown(path: &StorePath) -> Failure {
    Failure::new(
        BuildStatus::NoSubstituters,
        format!(
            "path '{}' is not valid here and cannot be fetched from a substituter of this box; upload it first",
            path.to_absolute_path()
        ),
    )
}

/// The count of builds a client's progress bar shows.
struct Progress {
    id: u64,
    expected: u64,
}

impl Progress {
    async fn start(context: &Context, expected: u64) -> Self {
        let id = context.ids.next();
        if expected > 0 {
            context
                .show(LogEvent::StartActivity {
                    id,
                    level: Verbosity::Debug,
                    kind: ActivityKind::Builds,
                    text: String::new(),
                    fields: Vec::new(),
                    parent: 0,
                })
                .await;
        }
        Self { id, expected }
    }

    async fn report(&self, context: &Context, done: u64, running: usize, failed: u64) {
        if self.expected == 0 {
            return;
        }
        let fields = vec![done.into(), self.expected.into(), (running as u64).into(), failed.into()];
        context.show(LogEvent::Result { id: self.id, kind: ResultKind::Progress, fields }).await;
    }

    async fn stop(&self, context: &Context) {
        if self.expected > 0 {
            context.show(LogEvent::stop(self.id)).await;
        }
    }
}

/// What to tell about one target.
fn result(plan: &Plan, ended: &BTreeMap<StorePath, Ended>, target: &DerivedPath) -> BuildResult {
    let outputs = match target {
        DerivedPath::Opaque(path) => {
            return match ended.get(path) {
                Some(Err(failure)) => BuildResult::new(failure.status, failure.message.clone()),
                _ => BuildResult::new(BuildStatus::AlreadyValid, ""),
            };
        }
        DerivedPath::Built { outputs, .. } => outputs,
    };
    let drv = target.base();
    match (ended.get(drv), plan.nodes.get(drv)) {
        (Some(Err(failure)), _) => BuildResult::new(failure.status, failure.message.clone()),
        (Some(Ok(done)), _) => success(done, outputs),
        (None, Some(node)) => {
            let drv_hash = node.recipe.drv_hash;
            success(&Done { drv_hash, ..Done::already(node.outputs.clone(), false) }, outputs)
        }
        (_, None) => {
            let failure = unknown(drv);
            BuildResult::new(failure.status, failure.message)
        }
    }
}

/// How long the message about this target is.
fn message_bytes(ended: &BTreeMap<StorePath, Ended>, target: &DerivedPath) -> u64 {
    match ended.get(target.base()) {
        Some(Err(failure)) => failure.message.len() as u64,
        _ => 0,
    }
}

/// How many outputs an answer about this target names.
fn outputs_of(plan: &Plan, target: &DerivedPath) -> usize {
    match target {
        DerivedPath::Opaque(_) => 0,
        DerivedPath::Built { outputs, .. } if outputs.is_empty() => {
            plan.nodes.get(target.base()).map_or(0, |node| node.recipe.outputs.len())
        }
        DerivedPath::Built { outputs, .. } => outputs.len(),
    }
}

/// `wanted`: names of the outputs to report; none means all.
fn success(done: &Done, wanted: &[String]) -> BuildResult {
    let wanted: BTreeSet<&String> = wanted.iter().collect();
    let built_outputs = done
        .outputs
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.contains(name))
        .map(|(name, path)| {
            let built = BuiltOutput { path: path.clone(), drv_hash: done.drv_hash, signatures: Vec::new() };
            (name.clone(), built)
        })
        .collect();
    BuildResult {
        times_built: u32::from(done.status == BuildStatus::Built),
        start_time: done.start_time,
        stop_time: done.stop_time,
        built_outputs,
        ..BuildResult::new(done.status, "")
    }
}
