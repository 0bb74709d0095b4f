//! Which paths floating outputs turned out to have, as one member may know it.
//!
//! A realisation is Verified when we built it ourselves from Verified inputs, out of derivations whose hash we computed
//! ourselves from Verified files. Everything else is the claim of the member whose view this is.

use std::collections::BTreeMap;

use nix_derivation::StorePath;
use store::{Member, Provenance, RealisationId, View};

use super::Failure;

/// The valid path of an output, and whether it is Verified that this is the right one.
pub fn path(view: &View, drv_hash: &[u8; 32], output: &str) -> Option<(StorePath, bool)> {
    let id = RealisationId { drv_hash: *drv_hash, output: output.to_owned() };
    let (path, provenance, _) = view.realisation(&id)?;
    view.is_valid(&path).then_some((path, provenance == Provenance::Verified))
}

/// The paths of all these outputs, if every one is known, and whether all of them are Verified.
pub fn paths<'a>(
    view: &View,
    drv_hash: &[u8; 32],
    outputs: impl IntoIterator<Item = &'a String>,
) -> Option<(BTreeMap<String, StorePath>, bool)> {
    let mut paths = BTreeMap::new();
    let mut all_verified = true;
    for output in outputs {
        let (path, verified) = path(view, drv_hash, output)?;
        all_verified &= verified;
        paths.insert(output.clone(), path);
    }
    Some((paths, all_verified))
}

/// Remembers what the outputs turned out to be. `verified` is the caller's word for all that led here.
pub fn record(
    view: &View,
    drv_hash: &[u8; 32],
    outputs: &BTreeMap<String, StorePath>,
    verified: bool,
) -> Result<(), Failure> {
    for (output, path) in outputs {
        let provenance = match verified {
            true => Provenance::Verified,
            false => Provenance::Claimed(Member::clone(view.member())),
        };
        let id = RealisationId { drv_hash: *drv_hash, output: output.clone() };
        view.add_realisation(id, path.clone(), provenance).map_err(|e| {
            let path = path.to_absolute_path();
            Failure::transient(format!("cannot register '{path}' as the output '{output}': {e}"))
        })?;
    }
    Ok(())
}
