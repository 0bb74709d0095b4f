//! Realises the targets of one request: fetches and plans them, and builds several at once, in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::derivation::BasicDerivation;
use nix::{BuildStatus, Missing};
use nix_derivation::{DerivedPath, StorePath};
use tokio::task::JoinSet;

use super::order::Order;
use super::resolving::{self, Work};
use super::results::{Results, unknown};
use super::{Context, Ended, lost, substitutes};
use crate::events::{BuildCounts, Event};
use crate::{Failure, Plan, Recipe};

/// Limit on the builds of one request that are with the scheduler at once. Each waiting build has an open log file.
const MAX_AT_ONCE: usize = 128;

/// Fetches those paths that the targets need and caches have, and plans the rest. With `check`, the targets themselves
/// are built again, and no path is fetched for them.
pub async fn plan(context: &Context, targets: &[DerivedPath], check: bool) -> Result<Plan, Failure> {
    if !check {
        substitutes::prefetch(context, targets).await?;
    }
    let (realiser, view, targets) = (context.realiser.clone(), context.views.now(), targets.to_vec());
    let planning = context.study(move |study| match check {
        true => Plan::make_again(&view, &realiser.drv_hashes, &targets, study),
        false => Plan::make(&view, &realiser.drv_hashes, &targets, study),
    });
    planning.await?
}

/// Builds all derivations that a plan needs.
pub async fn build(context: &Context, plan: Arc<Plan>) -> Results {
    let rejected = plan.rejected.iter().map(|(drv, failure)| (drv.clone(), Err(failure.clone())));
    let unknown = plan.unknown.iter().map(|path| (path.clone(), Err(unknown(path))));
    let mut ended: BTreeMap<StorePath, Ended> = rejected.chain(unknown).collect();
    let builds = plan.nodes.iter().filter(|(_, node)| node.needs_build);
    let builds = builds.map(|(drv, node)| (drv.clone(), node.after.clone()));
    let mut order = Order::new(builds, context.options.keep_going);
    report_keep_failed(context).await;
    let progress = Progress { context, expected: order.left() as u64 };
    progress.start().await;
    let failed: Vec<StorePath> = ended.keys().cloned().collect();
    fail(context, &mut order, &mut ended, failed).await;
    let mut running = JoinSet::new();
    while !order.is_stopped() {
        while running.len() < MAX_AT_ONCE
            && let Some(drv) = order.next()
        {
            running.spawn(work(context, &plan, &ended, drv));
        }
        progress.report(&order, ended.len(), running.len()).await;
        let Some(joined) = running.join_next().await else { break };
        let Ok((drv, end)) = joined else { continue };
        let worked = end.is_ok();
        ended.insert(drv.clone(), end);
        match worked {
            true => order.succeeded(&drv),
            false => fail(context, &mut order, &mut ended, vec![drv]).await,
        }
    }
    // Dropping the running builds leaves them.
    drop(running);
    progress.report(&order, ended.len(), 0).await;
    progress.stop().await;
    for (drv, node) in &plan.nodes {
        if node.needs_build && !ended.contains_key(drv) {
            let why = if order.is_stopped() {
                Failure::cancelled(drv)
            } else {
                // Real derivations cannot form a cycle: their names hash their inputs. A made-up one can.
                Failure::rejected(format!("derivation '{}' depends on itself", drv.to_absolute_path()))
            };
            ended.insert(drv.clone(), Err(why));
        }
    }
    Results::new(plan, ended)
}

/// The build of one derivation of a plan, whose inputs are in `ended`.
fn work(
    context: &Context,
    plan: &Plan,
    ended: &BTreeMap<StorePath, Ended>,
    drv: StorePath,
) -> impl Future<Output = (StorePath, Ended)> + Send + use<> {
    let node = &plan.nodes[&drv];
    let again = node.again;
    let built = |input: &StorePath| Some(&*ended.get(input)?.as_ref().ok()?.outputs);
    let unresolved = node.unresolved.clone().map(|of| (of, plan.input_paths(&drv, built)));
    let work = Work { recipe: node.recipe.clone(), unresolved };
    let context = context.clone();
    async move { (drv, resolving::build(context, work, again).await) }
}

/// Records the failures in `failed`, and reports their consequences.
async fn fail(
    context: &Context,
    order: &mut Order,
    ended: &mut BTreeMap<StorePath, Ended>,
    failed: Vec<StorePath>,
) {
    let consequences = order.failed(failed);
    for path in consequences.needed {
        // The answers do not show this failure: the client asked for a derivation that needs the failed one.
        if let Some(Err(failure)) = ended.get(&path) {
            let message = failure.message.clone();
            context.reporter.report(Event::DependencyFailed { message }).await;
        }
    }
    for (drv, count) in consequences.dependents {
        let message =
            format!("{count} dependencies of derivation '{}' failed to build", drv.to_absolute_path());
        ended.insert(drv, Err(Failure::new(BuildStatus::DependencyFailed, message)));
    }
}

/// Builds one derivation that came without its inputs. Fails if the box has no room to begin.
pub async fn derivation(
    context: &Context,
    drv_path: StorePath,
    derivation: BasicDerivation,
    check: bool,
) -> Result<Ended, Failure> {
    if !check {
        substitutes::prefetch_outputs(context, &drv_path, &derivation).await?;
    }
    let reading = move || Recipe::from_basic(&drv_path, derivation);
    let recipe = match context.workers.plan(reading).await.map_err(lost)? {
        Ok(recipe) => Arc::new(recipe),
        Err(failure) => return Ok(Err(failure)),
    };
    report_keep_failed(context).await;
    Ok(resolving::build_plain(context.clone(), recipe, check).await)
}

/// Nix keeps the folder of a failed build on the machine that built it, for people who can log in there. A sandbox here
/// has no folder that outlives the build, so this option is refused; the build goes on without it, as on a stock
/// builder.
async fn report_keep_failed(context: &Context) {
    if context.options.keep_failed {
        context.reporter.report(Event::KeepFailedRefused).await;
    }
}

/// The paths to fetch and the derivations to build for these targets.
pub async fn missing(context: &Context, targets: Vec<DerivedPath>) -> Result<Missing, Failure> {
    let mut missing = without_substitutes(context, targets.clone()).await?;
    if !context.may_fetch_at_all() {
        return Ok(missing);
    }
    let fetch_plan = substitutes::fetch_plan(context, &targets).await?;
    let wanted: Vec<StorePath> = fetch_plan.fetch.into_iter().collect();
    let walk = substitutes::offered(context, &wanted).await?;
    missing.will_build.retain(|drv| fetch_plan.build.contains(drv));
    missing.unknown.retain(|path| !walk.offers.contains_key(path));
    (missing.download_size, missing.nar_size) = (walk.download_size(), walk.nar_size());
    missing.will_substitute = walk.offers.into_keys().collect();
    Ok(missing)
}

/// The answer if no path were fetched.
async fn without_substitutes(context: &Context, targets: Vec<DerivedPath>) -> Result<Missing, Failure> {
    let (realiser, view) = (context.realiser.clone(), context.views.now());
    let planning = context.study(move |study| Plan::make(&view, &realiser.drv_hashes, &targets, study));
    let plan = planning.await??;
    Ok(Missing {
        will_build: plan.will_build(),
        will_substitute: Vec::new(),
        unknown: plan.unknown.into_iter().chain(plan.rejected.into_keys()).collect(),
        download_size: 0,
        nar_size: 0,
    })
}

/// The counts of builds for a client's progress bar; no event if there is nothing to build.
struct Progress<'a> {
    context: &'a Context,
    expected: u64,
}

impl Progress<'_> {
    async fn start(&self) {
        if self.expected > 0 {
            self.context.reporter.report(Event::BuildsStarted).await;
        }
    }

    async fn report(&self, order: &Order, ended: usize, running: usize) {
        if self.expected > 0 {
            let failed = order.failures() as u64;
            let (done, running) = (ended as u64 - failed, running as u64);
            let counts = BuildCounts { done, expected: self.expected, running, failed };
            self.context.reporter.report(Event::BuildsProgress(counts)).await;
        }
    }

    async fn stop(&self) {
        if self.expected > 0 {
            self.context.reporter.report(Event::BuildsEnded).await;
        }
    }
}
