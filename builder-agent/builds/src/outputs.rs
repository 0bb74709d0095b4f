//! From built outputs to valid paths: their provenance, and the views in which they become visible.
//!
//! Several members can ask for one run. Each gets the outputs in their own view, with the provenance that follows from
//! their own derivation and their own inputs; only the contents are shared.

use std::collections::{BTreeMap, BTreeSet};

use nix::PathInfo;
use nix_derivation::{CAHash, StorePath};
use store::{Ingested, Member, Provenance, RecordedOutput, RegisterError, View};

use super::recipe::OutputSpec;
use super::{Failure, Recipe};
use crate::failure::{Cause, Limit};
use crate::kept::{KeptLogs, Reader};

/// An output that has been checked and has its path. It is visible in no view yet.
#[derive(Debug)]
pub struct Settled {
    pub path: StorePath,
    pub ingested: Ingested,
    pub references: BTreeSet<StorePath>,
    /// The content address of fixed and floating outputs.
    pub ca: Option<CAHash>,
}

impl Settled {
    /// The part of it that the build's record keeps.
    #[must_use]
    pub fn record(&self) -> RecordedOutput {
        RecordedOutput {
            path: self.path.clone(),
            nar_hash: self.ingested.nar_hash,
            nar_size: self.ingested.nar_size,
            references: self.references.clone(),
            ca: self.ca.clone(),
        }
    }
}

/// Makes the outputs of a run visible, all together and durably. `proven`: see [`super::Request::proven`].
pub fn register(
    recipe: &Recipe,
    view: &View,
    proven: bool,
    outputs: BTreeMap<String, Settled>,
) -> Result<(), Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    let mut batch = Vec::new();
    for (name, settled) in outputs {
        let Some(spec) = recipe.outputs.get(&name) else { continue };
        let recorded = settled.record();
        let (info, provenance) = info(recipe, view, proven, spec, &recorded);
        let staged = view.stage_built(settled.ingested, info, provenance);
        let staged =
            staged.map_err(|e| Failure::transient(format!("cannot keep the outputs of '{drv}': {e}")))?;
        batch.push(staged.known_from(&recipe.drv_path));
    }
    // A path that is valid stays as it is, unless it is a claim and the new output is more.
    view.register_many(batch).map_err(|e| not_kept(format!("cannot register the outputs of '{drv}'"), &e))?;
    Ok(())
}

/// The store does not take outputs. `what` is a clause without an end.
pub fn not_kept(what: String, error: &RegisterError) -> Failure {
    let failure = Failure::transient(format!("{what}: {error}"));
    match error {
        RegisterError::Quota { .. } => failure.because(Cause::Limit(Limit::Store)),
        _ => failure,
    }
}

/// Makes the outputs of another run with the same build key visible in `view`. Blocking. Writes nothing if they are
/// visible already. Fails if the contents are gone.
pub fn adopt(
    recipe: &Recipe,
    view: &View,
    proven: bool,
    outputs: &BTreeMap<String, RecordedOutput>,
) -> Result<(), RegisterError> {
    let batch = recipe.outputs.iter().filter_map(|(name, spec)| {
        let recorded = outputs.get(name)?;
        Some(info(recipe, view, proven, spec, recorded))
    });
    // Other members may see another deriver: each member sees the name of their own derivation.
    view.adopt(batch.collect(), Some(&recipe.drv_path)).map(|_| ())
}

/// Notes the requester's derivation as the deriver of `paths` that were valid before the request and have no deriver
/// yet. Blocking. Only `nix log` and similar commands use it.
pub fn name_deriver(recipe: &Recipe, view: &View, paths: &[StorePath]) {
    if let Err(error) = view.name_deriver(paths, &recipe.drv_path) {
        tracing::warn!(%error, drv = %recipe.drv_path.to_absolute_path(), "cannot note where outputs came from");
    }
}

/// Lets the member of `view` whose identity this is, and perhaps everybody, find the log of a build of `drv` that is kept
/// under the name `log`. Blocking.
pub fn give_log(kept: &KeptLogs, view: &View, member: &str, drv: &StorePath, proven: bool, log: &str) {
    // The member finds it in their own room in any case, where no logs of others displace it.
    let everybody = log_is_public(view, drv, proven).then_some(Reader::Everybody);
    for reader in [Some(Reader::Member(member)), everybody].into_iter().flatten() {
        if let Err(error) = kept.give(log, reader, drv) {
            tracing::warn!(%error, "cannot keep a build log");
        }
    }
}

/// Whether everybody may read the log of a build. A build from Verified paths alone has a log without secrets: everybody could
/// make it.
fn log_is_public(view: &View, drv: &StorePath, proven: bool) -> bool {
    let drv = view.info_with_provenance(drv);
    proven && drv.is_some_and(|(_, provenance)| provenance == Provenance::Verified)
}

/// Whether all that determines an output has been checked here, so that everybody may see it.
fn is_verified(proven: bool, spec: &OutputSpec, recorded: &RecordedOutput) -> bool {
    // A content address is right for any inputs. The exception: contents that contain their own hash part. Since 2.26,
    // Nix's hash does not distinguish that part from zeros, so a person who knows the path can make other contents for
    // it.
    if spec.floating.is_some() {
        return !recorded.references.contains(&recorded.path);
    }
    spec.fixed.is_some() || proven
}

fn info(
    recipe: &Recipe,
    view: &View,
    proven: bool,
    spec: &OutputSpec,
    recorded: &RecordedOutput,
) -> (PathInfo, Provenance) {
    let provenance = match is_verified(proven, spec, recorded) {
        true => Provenance::Verified,
        false => Provenance::Claimed(Member::clone(view.member())),
    };
    // Everybody will read this deriver, so it must be true, and must not name a path that only some members see.
    let for_all = || {
        let why = view.info_with_provenance(&recipe.drv_path).map(|(_, provenance)| provenance);
        let makes_it = proven || (spec.fixed.is_some() && recipe.verified_paths);
        makes_it && why == Some(Provenance::Verified)
    };
    let named = provenance != Provenance::Verified || for_all();
    let info = PathInfo {
        path: recorded.path.clone(),
        nar_hash: recorded.nar_hash,
        nar_size: recorded.nar_size,
        references: recorded.references.clone(),
        deriver: named.then(|| recipe.drv_path.clone()),
        registration_time: 0,
        ultimate: true,
        signatures: Vec::new(),
        ca: recorded.ca.clone(),
    };
    (info, provenance)
}

/// Compares the outputs of a run with the valid ones: each must be the same, byte for byte (`--check`).
///
/// The message and the status are Nix's, from `registerOutputs`.
pub fn compare(
    recipe: &Recipe,
    view: &View,
    outputs: &BTreeMap<String, RecordedOutput>,
) -> Result<(), Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    for recorded in outputs.values() {
        // A floating output with other contents has another path, where nothing may be valid.
        let valid = view.info(&recorded.path);
        if valid.is_none_or(|info| info.nar_hash != recorded.nar_hash) {
            return Err(Failure::new(
                nix::BuildStatus::NotDeterministic,
                format!(
                    "derivation '{drv}' may not be deterministic: output '{}' differs",
                    recorded.path.to_absolute_path()
                ),
            ));
        }
    }
    Ok(())
}
