//! The result of each target of a request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::{BuildResult, BuildStatus, BuiltOutput};
use nix_derivation::{DerivedPath, StorePath};

use super::{Done, Ended};
use crate::{Failure, Plan};

/// The results of the derivations of a plan.
#[derive(Debug)]
pub struct Results {
    plan: Arc<Plan>,
    /// Includes derivations that are not built: unknown paths and rejected derivations.
    ended: BTreeMap<StorePath, Ended>,
}

impl Results {
    pub(super) fn new(plan: Arc<Plan>, ended: BTreeMap<StorePath, Ended>) -> Self {
        Self { plan, ended }
    }

    /// The result of one target.
    #[must_use]
    pub fn of(&self, target: &DerivedPath) -> BuildResult {
        let outputs = match target {
            DerivedPath::Opaque(path) => {
                return match self.ended.get(path) {
                    Some(Err(failure)) => failed(failure),
                    _ => BuildResult::new(BuildStatus::AlreadyValid, ""),
                };
            }
            DerivedPath::Built { outputs, .. } => outputs,
        };
        let drv = target.base();
        match (self.ended.get(drv), self.plan.nodes.get(drv)) {
            (Some(ended), _) => result_of(ended, outputs),
            (None, Some(node)) => {
                let drv_hash = node.recipe.drv_hash;
                success(&Done { drv_hash, ..Done::already(node.outputs.clone(), false) }, outputs)
            }
            (None, None) => failed(&unknown(drv)),
        }
    }

    /// Length of the message about this target.
    #[must_use]
    pub fn message_bytes(&self, target: &DerivedPath) -> u64 {
        match self.ended.get(target.base()) {
            Some(Err(failure)) => failure.message.len() as u64,
            _ => 0,
        }
    }
}

/// The result of one derivation. `wanted`: names of the outputs to report; none means all.
#[must_use]
pub fn result_of(ended: &Ended, wanted: &[String]) -> BuildResult {
    match ended {
        Ok(done) => success(done, wanted),
        Err(failure) => failed(failure),
    }
}

fn failed(failure: &Failure) -> BuildResult {
    BuildResult::new(failure.status, failure.message.clone())
}

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

/// The failure for a target, or a derivation that a target needs, that is not valid.
pub(super) fn unknown(path: &StorePath) -> Failure {
    Failure::new(
        BuildStatus::NoSubstituters,
        format!(
            "path '{}' is not valid here and cannot be fetched from a substituter of this box; upload it first",
            path.to_absolute_path()
        ),
    )
}
