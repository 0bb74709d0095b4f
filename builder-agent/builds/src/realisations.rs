//! Realisations: the paths of floating outputs, as one member may know them.
//!
//! A realisation is Verified when the agent built it from Verified inputs, from derivations whose hash it computed from
//! Verified files. Every other realisation is the claim of the member whose view this is.

use std::collections::BTreeMap;

use nix::{DrvKey, DrvOutputId, Realisation};
use nix_derivation::{NixHash, StorePath};
use store::{Member, Provenance, RealisationId, View};

use super::Failure;
use super::modulo::{Hasher, Known};
use super::study::Study;

/// The valid path of an output, and whether it is Verified that this is the right one.
pub fn path(view: &View, drv_hash: &[u8; 32], output: &str) -> Option<(StorePath, bool)> {
    let id = RealisationId { drv_hash: *drv_hash, output: output.to_owned() };
    let (path, provenance, _) = view.realisation(&id)?;
    view.is_valid(&path).then_some((path, provenance == Provenance::Verified))
}

/// The paths of all these outputs, if all are known, and whether all of them are Verified.
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

/// Records the realisations of these outputs. `verified`: whether everything that led to them is Verified.
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

/// Records a realisation that a client states. It is the claim of the client's member, whatever its signatures say.
/// Blocking.
pub fn claim(view: &View, known: &Known, realisation: Realisation, study: &Study) -> Result<(), Failure> {
    let Realisation { id: DrvOutputId { drv, output }, out_path, .. } = realisation;
    let refused = |why: &dyn std::fmt::Display| {
        let path = out_path.to_absolute_path();
        Failure::rejected(format!("cannot register '{path}' as the output '{output}' of a derivation: {why}"))
    };
    let drv_hash = match drv {
        DrvKey::Hash(NixHash::Sha256(hash)) => hash,
        DrvKey::Hash(other) => {
            return Err(refused(&format!("its derivation is named by a {} hash", other.algorithm())));
        }
        DrvKey::Path(drv) => {
            let hashes = Hasher::new(view, known, study).of(&drv);
            hashes.map_err(|failure| refused(&failure.message))?.masked
        }
    };
    let id = RealisationId { drv_hash, output: output.clone() };
    if let Some((known, ..)) = view.realisation(&id) {
        if known == out_path {
            return Ok(());
        }
        // Nix refuses this too: chance would decide which of the two realisations later builds use.
        return Err(refused(&format!("it is known to be '{}' already", known.to_absolute_path())));
    }
    let provenance = Provenance::Claimed(Member::clone(view.member()));
    view.add_realisation(id, out_path.clone(), provenance).map_err(|e| refused(&e))
}
