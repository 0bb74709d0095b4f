//! Hashes of derivations modulo fixed outputs: what input-addressed paths and realisations are made of.
//!
//! Source: Nix, `hashDerivationModulo` and `Derivation::unparse` (src/libstore/derivations.cc, 2.8 to 2.34).
//! Not here: which derivations are read, in which order, and whose hashes are kept (`builds::modulo`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix_derivation::store_path::{build_output_path, hash_placeholder};
use nix_derivation::{DerivationModuloHash, Output, StorePath};
use sha2::{Digest, Sha256};

use crate::derivation::{BasicDerivation, Derivation, aterm, prefixed};

/// The hashes of one derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// Stands for the derivation in those that use it.
    pub input: [u8; 32],
    /// Without its own output paths: what those, and names of realisations, are made of.
    pub masked: [u8; 32],
    /// An output path below is known only once it is built; so are input-addressed paths made of this hash.
    pub deferred: bool,
    /// This derivation and all below it name their own outputs as they should. A caller that reads files clears it if a file
    /// is not Verified.
    pub verified: bool,
}

/// Hashes of a derivation without input derivations, which is all that `verified` has to go by.
pub fn of_basic(name: &str, basic: &BasicDerivation) -> Result<Hashes, String> {
    of_parts(name, basic, &BTreeMap::new(), false)
}

/// Hashes of a derivation whose input derivations have the hashes that `hashes_of` returns.
pub fn of(drv: &Derivation, hashes_of: impl Fn(&StorePath) -> Option<Arc<Hashes>>) -> Result<Hashes, String> {
    let mut inputs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut deferred, mut verified) = (false, true);
    for (input, wanted) in &drv.inputs {
        let Some(hashes) = hashes_of(input) else {
            return Err(format!("nothing is known about '{}'", input.to_absolute_path()));
        };
        deferred |= hashes.deferred;
        verified &= hashes.verified;
        inputs.entry(hex::encode(&hashes.input)).or_default().extend(wanted.iter().cloned());
    }
    let mut hashes = of_parts(&drv.name, &drv.basic, &inputs, deferred)?;
    hashes.verified &= verified;
    Ok(hashes)
}

fn of_parts(
    name: &str,
    drv: &BasicDerivation,
    inputs: &BTreeMap<String, BTreeSet<String>>,
    mut deferred: bool,
) -> Result<Hashes, String> {
    // The only output of a fixed-output derivation stands for it, whatever it was made from.
    if let (1, Some(Output::Fixed { ca })) = (drv.outputs.len(), drv.outputs.get("out")) {
        let path = Output::Fixed { ca: ca.clone() }.path(name, "out").map_err(|e| e.to_string())?;
        let path = path.map(|path| path.to_absolute_path()).unwrap_or_default();
        let (method, hash) = (prefixed(ca.method(), ca.hash().algorithm()), ca.hash());
        let text = format!("fixed:out:{method}:{}:{path}", hex::encode(hash.digest_as_bytes()));
        let hash = Sha256::digest(text.as_bytes()).into();
        return Ok(Hashes { input: hash, masked: hash, deferred: false, verified: true });
    }
    let masked: [u8; 32] = Sha256::digest(aterm(name, drv, inputs, true)).into();
    let input = Sha256::digest(aterm(name, drv, inputs, false)).into();
    let mut verified = true;
    for (output, spec) in &drv.outputs {
        let named = match spec {
            Output::InputAddressed { path } => {
                let right = build_output_path(DerivationModuloHash::new(masked), output, name)
                    .map_err(|e| e.to_string())?;
                verified &= !deferred && right == *path;
                path.to_absolute_path()
            }
            Output::Floating { .. } => hash_placeholder(output),
            Output::Deferred => String::new(),
            Output::Fixed { .. } | Output::Impure { .. } => continue,
        };
        // The masked hash leaves the variables of outputs out. With anything else in them a derivation would have the
        // hash of another one, and might do something else.
        verified &= drv.env.get(output.as_bytes()).is_none_or(|value| *value == named.as_bytes());
    }
    deferred |= drv.outputs.values().any(|o| matches!(o, Output::Floating { .. } | Output::Impure { .. }));
    Ok(Hashes { input, masked, deferred, verified })
}

#[cfg(test)]
#[path = "modulo_test.rs"]
mod modulo_test;
