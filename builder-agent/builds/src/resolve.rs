//! Resolving: a derivation whose inputs have been built becomes one that names their paths and nothing else.
//!
//! Two derivations that differ only in how their inputs were made resolve to the same one, which is built once: early
//! cut-off. Source: Nix, `Derivation::tryResolve` and `shouldResolve` (src/libstore/derivations.cc).

use std::collections::BTreeMap;

use nix::derivation::{Derivation, aterm};
use nix::modulo::{self, Hashes};
use nix::placeholders::Placeholders;
use nix_derivation::store_path::{build_output_path, build_text_path, downstream_placeholder};
use nix_derivation::{DerivationModuloHash, Output, StorePath};

use super::{Failure, Recipe};

/// Paths of the outputs of input derivations, by derivation and output name.
pub type InputPaths = BTreeMap<(StorePath, String), StorePath>;

/// A resolved derivation.
#[derive(Debug)]
pub struct Resolved {
    pub recipe: Recipe,
    /// The text of its `.drv`, which belongs at `recipe.drv_path`.
    pub text: Vec<u8>,
}

/// Replaces the derivation's placeholders by the paths of `inputs` (derivation, output name).
pub fn resolve(drv_path: &StorePath, drv: &Derivation, inputs: &InputPaths) -> Result<Resolved, Failure> {
    let full = drv_path.to_absolute_path();
    let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot resolve '{full}': {why}"));
    let mut basic = drv.basic.clone();
    let mut placeholders = Placeholders::default();
    for (input, wanted) in &drv.inputs {
        for output in wanted {
            let path = inputs.get(&(input.clone(), output.clone())).ok_or_else(|| {
                bad(&format!("output '{output}' of its input '{}' is not known", input.to_absolute_path()))
            })?;
            let placeholder = downstream_placeholder(input, [output]).map_err(|e| bad(&e))?;
            placeholders.insert(&placeholder, path.to_absolute_path());
            basic.input_sources.insert(path.clone());
        }
    }
    let filled = |text| placeholders.filled(text);
    basic.builder = filled(basic.builder);
    basic.args = basic.args.into_iter().map(filled).collect();
    basic.env = basic.env.into_iter().map(|(name, value)| (filled(name), filled(value))).collect();

    // All inputs are known now, so the paths of input-addressed outputs can be computed.
    let name = &drv.name;
    let Hashes { masked, .. } = modulo::of_basic(name, &basic).map_err(|e| bad(&e))?;
    for (output, spec) in &mut basic.outputs {
        if *spec == Output::Deferred {
            let path =
                build_output_path(DerivationModuloHash::new(masked), output, name).map_err(|e| bad(&e))?;
            basic.env.insert(output.clone().into_bytes(), path.to_absolute_path().into_bytes());
            *spec = Output::InputAddressed { path };
        }
    }
    let text = aterm(name, &basic, &BTreeMap::new(), false);
    let path = build_text_path(drv_path.name(), &text, &basic.input_sources).map_err(|e| bad(&e))?;
    Ok(Resolved { recipe: Recipe::from_basic(&path, basic)?, text })
}
