//! Questions about paths and derivations.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix_derivation::{DerivedPath, StorePath};
use store::View;
use wire::types::Missing;

use super::transfer::{Trouble, blocking};
use crate::build::Plan;
use crate::build::recipe::MAX_DRV_BYTES;

/// Info of a path that the client takes to be valid.
pub(super) fn info(view: &View, path: &StorePath) -> Result<Arc<store::PathInfo>, Trouble> {
    view.info(path)
        .ok_or_else(|| Trouble::Refused(format!("path '{}' is not valid", path.to_absolute_path())))
}

/// Output names of the `.drv` at `path`, with their paths where those are known before the build.
pub(super) async fn outputs(
    view: &View,
    path: StorePath,
) -> Result<BTreeMap<String, Option<StorePath>>, Trouble> {
    let view = view.clone();
    blocking(move || {
        let full = path.to_absolute_path();
        let bad = |error: &dyn std::fmt::Display| {
            Trouble::Refused(format!("cannot read derivation '{full}': {error}"))
        };
        let name = path.name().strip_suffix(".drv").ok_or_else(|| bad(&"its name does not end in .drv"))?;
        let bytes = view.read_file(&path, MAX_DRV_BYTES).map_err(|e| bad(&e))?;
        let drv = nix_derivation::Derivation::from_aterm_bytes(&bytes, name).map_err(|e| bad(&e))?;
        drv.outputs()
            .iter()
            .map(|(output, spec)| Ok((output.clone(), spec.path(name, output).map_err(|e| bad(&e))?)))
            .collect()
    })
    .await?
}

/// What building the targets would mean.
pub(super) async fn missing(view: &View, targets: Vec<DerivedPath>) -> Result<Missing, Trouble> {
    let view = view.clone();
    let plan = blocking(move || Plan::make(&view, &targets)).await?;
    let plan = plan.map_err(|failure| Trouble::Refused(failure.message))?;
    Ok(Missing {
        will_build: plan.will_build(),
        will_substitute: Vec::new(),
        unknown: plan.unknown.into_iter().chain(plan.rejected.into_keys()).collect(),
        download_size: 0,
        nar_size: 0,
    })
}
