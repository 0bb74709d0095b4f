//! Builds of derivations whose output paths are not known before the build: resolved first, realised afterwards.
//!
//! Source: Nix, `DerivationGoal::resolvedFinished` and `DerivationResolutionGoal` (src/libstore/build).

use std::sync::Arc;

use nix::BuildStatus;
use nix::derivation::Derivation;
use nix_derivation::{ContentAddressMethod, HashAlgorithm};
use store::View;

use super::one::build_one;
use super::{Context, Done, Ended};
use crate::events::Event;
use crate::resolve::{InputPaths, Resolved, resolve};
use crate::{Failure, Recipe, plan, realisations};
use shares::threads::Task;

/// One derivation of a plan whose inputs are all valid.
pub(super) struct Work {
    pub recipe: Arc<Recipe>,
    /// The derivation to resolve, and the paths of its inputs.
    pub unresolved: Option<(Arc<Derivation>, InputPaths)>,
}

/// Resolves the derivation if needed, builds it if needed, and records the realisations of floating outputs.
pub(super) async fn build(context: Context, work: Work, check: bool) -> Ended {
    let Some((derivation, inputs)) = work.unresolved else {
        return build_plain(context, work.recipe, check).await;
    };
    let drv = &work.recipe.drv_path;
    let (realiser, view) = (context.realiser.clone(), context.views.now());
    let original = work.recipe.clone();
    let resolving = context.study(move |study| {
        let sure = plan::inputs_verified(&view, &realiser.drv_hashes, &original, &inputs, study);
        if study.is_over() {
            // The check did not end, so its answer means nothing: going on would make a claim of a Verified result.
            return Err(Failure::transient(
                "the box has no room to look at the inputs again; try it again later",
            ));
        }
        resolve(&original.drv_path, &derivation, &inputs).map(|resolved| (resolved, sure))
    });
    let (resolved, inputs_verified) = resolving.await.unwrap_or_else(|_| Err(bug()))?;
    let Resolved { recipe, text } = resolved;
    let recipe = Arc::new(recipe);
    let (from, to) = (drv.clone(), recipe.drv_path.clone());
    context.reporter.report(Event::Resolved { from, to }).await;
    {
        // Nix keeps the `.drv` too: it is the deriver of the outputs built now.
        let (view, recipe) = (context.views.now(), recipe.clone());
        done(context.workers.commit(move || keep(&view, &recipe, &text))).await?;
    }
    let mut done = build_plain(context.clone(), recipe.clone(), check).await?;
    if done.status == BuildStatus::AlreadyValid {
        done.status = BuildStatus::ResolvesToAlreadyValid;
    }
    let Some(drv_hash) = work.recipe.drv_hash else { return Ok(done) };
    done.proven &= inputs_verified && work.recipe.verified_paths;
    remember(&context, drv_hash, &done).await?;
    done.drv_hash = Some(drv_hash);
    Ok(done)
}

/// Realises a derivation whose inputs are paths: from known outputs, or through the scheduler.
pub(super) async fn build_plain(context: Context, recipe: Arc<Recipe>, check: bool) -> Ended {
    let mut done = build_one(context.clone(), recipe.clone(), check).await?;
    let Some(drv_hash) = recipe.drv_hash else { return Ok(done) };
    done.drv_hash = Some(drv_hash);
    if done.status == BuildStatus::AlreadyValid || check {
        return Ok(done);
    }
    remember(&context, drv_hash, &done).await?;
    Ok(done)
}

async fn remember(context: &Context, drv_hash: [u8; 32], done: &Done) -> Result<(), Failure> {
    let (view, outputs, proven) = (context.views.now(), done.outputs.clone(), done.proven);
    let work = move || realisations::record(&view, &drv_hash, &outputs, proven);
    self::done(context.workers.commit(work)).await
}

async fn done<T>(work: Task<Result<T, Failure>>) -> Result<T, Failure> {
    work.await.unwrap_or_else(|error| {
        tracing::error!(%error, "resolving a derivation was lost");
        Err(bug())
    })
}

fn bug() -> Failure {
    Failure::transient("resolving a derivation failed because of a bug of the box")
}

/// Registers the `.drv` of a resolved derivation.
fn keep(view: &View, recipe: &Recipe, text: &[u8]) -> Result<(), Failure> {
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    view.add_ca(recipe.drv_path.name(), method, algorithm, &recipe.inputs, &mut &*text).map(|_| ()).map_err(
        |e| {
            Failure::rejected(format!(
                "cannot keep the derivation '{}': {e}",
                recipe.drv_path.to_absolute_path()
            ))
        },
    )
}
