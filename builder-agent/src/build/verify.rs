//! Whether the output paths of a derivation are those that its contents give: the step from "a member says so" to
//! "whoever has the same derivation gets the same paths".
//!
//! An input-addressed output path is a hash over the derivation and all derivations below it, with fixed outputs
//! reduced to their hashes (Nix: `hashDerivationModulo` in src/libstore/derivations.cc; here `nix_derivation`). A
//! derivation passes when this holds for it and for everything below it, down to the last `.drv`.
//!
//! Only Verified `.drv` files are believed. They never change, so what is read here is what anybody else reads, before
//! and after, and what was computed once holds for all members. Not here: whether the inputs are what they are
//! called (`store::Provenance`), and what the result counts for (`scheduler`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix_derivation::{Derivation, InputDerivationHash, Output, StorePath};
use store::{Provenance, View};

use super::Recipe;
use super::plan::MAX_DERIVATIONS;
use super::recipe::MAX_DRV_BYTES;

/// Derivations remembered; a NixOS system has about 20,000. An entry is some 300 bytes, so 30 MB at most.
const MAX_KNOWN: usize = 100_000;

/// What was computed from a Verified `.drv` and all below it.
#[derive(Debug)]
pub struct Known {
    /// By which other derivations name this one when their own paths are computed.
    pub hash: InputDerivationHash,
    /// Output paths; `None` where only a build can tell.
    pub outputs: BTreeMap<String, Option<StorePath>>,
}

/// A `.drv` path and its NAR hash: a name that cannot come to mean something else.
type Identity = (StorePath, [u8; 32]);

/// Computes output paths, and remembers them for all sessions.
#[derive(Debug, Default)]
pub struct Verifier {
    known: Mutex<HashMap<Identity, Arc<Known>>>,
}

impl Verifier {
    /// Whether `recipe` is exactly what the Verified `.drv` at its path says, with the output paths that follow from
    /// it, and with the input paths that follow from all derivations below. Reads files.
    #[must_use]
    pub fn recomputed(&self, view: &View, recipe: &Recipe) -> bool {
        let Some(known) = self.known(view, &recipe.drv_path) else { return false };
        // Read again instead of handed over: what `recipe` was made from may not have been Verified then.
        let Some((_, drv)) = read(view, &recipe.drv_path) else { return false };
        self.is_recipe_of(view, recipe, &drv, &known)
    }

    /// What follows from the `.drv` at `path`; `None` unless it and all below it are Verified and state the paths that
    /// they should. Reads files.
    #[must_use]
    pub fn known(&self, view: &View, path: &StorePath) -> Option<Arc<Known>> {
        // Depth first on a list of our own: depth is the client's choice.
        let mut todo = vec![path.clone()];
        let mut open: HashMap<StorePath, (Identity, Derivation)> = HashMap::new();
        let mut done: HashMap<StorePath, Arc<Known>> = HashMap::new();
        while let Some(path) = todo.last().cloned() {
            if done.contains_key(&path) {
                todo.pop();
                continue;
            }
            let (identity, drv) = match open.remove(&path) {
                Some(opened) => opened,
                None => {
                    if let Some(known) = self.remembered(view, &path) {
                        done.insert(path, known);
                        continue;
                    }
                    if open.len() + done.len() >= MAX_DERIVATIONS {
                        return None;
                    }
                    let opened = read(view, &path)?;
                    let missing: Vec<_> =
                        opened.1.input_derivations().keys().filter(|i| !done.contains_key(*i)).collect();
                    if !missing.is_empty() {
                        todo.extend(missing.into_iter().cloned());
                        open.insert(path, opened);
                        continue;
                    }
                    opened
                }
            };
            // Fails if an input is not done, which at this point means that derivations go in a circle.
            let known = Arc::new(compute(&drv, &done)?);
            self.remember(identity, known.clone());
            done.insert(path, known);
        }
        done.remove(path)
    }

    fn is_recipe_of(&self, view: &View, recipe: &Recipe, drv: &Derivation, known: &Known) -> bool {
        let outputs_equal = recipe.outputs.len() == known.outputs.len()
            && recipe.outputs.iter().all(|(name, output)| known.outputs.get(name) == Some(&output.path));
        let mut inputs: BTreeSet<StorePath> = drv.input_sources().clone();
        for (path, input) in drv.input_derivations() {
            let Some(of) = self.known(view, path) else { return false };
            for name in input.outputs() {
                let Some(Some(output)) = of.outputs.get(name) else { return false };
                inputs.insert(output.clone());
            }
        }
        let raw = |attrs: Option<&nix_derivation::StructuredAttrs>| attrs.map(|a| a.raw_json().to_vec());
        outputs_equal
            && recipe.inputs == inputs
            && recipe.system == drv.system()
            && recipe.builder == drv.builder()
            && recipe.args == drv.arguments()
            && recipe.env == *drv.environment()
            && raw(recipe.structured.as_ref()) == raw(drv.structured_attrs())
    }

    fn remembered(&self, view: &View, path: &StorePath) -> Option<Arc<Known>> {
        let (info, provenance) = view.info_with_provenance(path)?;
        if provenance != Provenance::Verified {
            return None;
        }
        self.lock().get(&(path.clone(), info.nar_hash)).cloned()
    }

    fn remember(&self, identity: Identity, known: Arc<Known>) {
        let mut all = self.lock();
        if all.len() >= MAX_KNOWN {
            // Rare and cheap to make up for; not worth an order of use.
            all.clear();
        }
        all.insert(identity, known);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Arc<Known>>> {
        // Only whole entries are ever put in.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A Verified `.drv`.
fn read(view: &View, path: &StorePath) -> Option<(Identity, Derivation)> {
    let (info, provenance) = view.info_with_provenance(path)?;
    if provenance != Provenance::Verified {
        return None;
    }
    let name = path.name().strip_suffix(".drv")?;
    let bytes = view.read_file(path, MAX_DRV_BYTES).ok()?;
    let drv = Derivation::from_aterm_bytes(&bytes, name).ok()?;
    Some(((path.clone(), info.nar_hash), drv))
}

/// Computes a derivation's hash and checks the paths it states, for whose inputs that has been done.
fn compute(drv: &Derivation, done: &HashMap<StorePath, Arc<Known>>) -> Option<Known> {
    let of = |path: &StorePath| done.get(path).map(|known| known.hash).ok_or(());
    // Two inputs may have the same hash (they differ in how some fixed output is fetched), and only one of them takes
    // part in ours. Should they be used for different outputs, then ours would also be that of a derivation which
    // lacks some of these inputs, and whose builder would do something else.
    let mut used: BTreeMap<[u8; 32], &BTreeSet<String>> = BTreeMap::new();
    for (path, input) in drv.input_derivations() {
        if let InputDerivationHash::Regular(hash) = of(path).ok()?
            && *used.entry(hash.into_bytes()).or_insert(input.outputs()) != input.outputs()
        {
            return None;
        }
    }
    // This also checks the variables that name the outputs. They are left out of the hash, so a derivation with other
    // values there would have the same output paths and another result.
    drv.try_validate_with_input_hashes(of).ok()?;
    let hash = drv.try_hash_input_derivation_modulo(of).ok()?;
    let path = |(name, output): (&String, &Output)| Some((name.clone(), output.path(drv.name(), name).ok()?));
    Some(Known { hash, outputs: drv.outputs().iter().map(path).collect::<Option<_>>()? })
}

#[cfg(test)]
#[path = "verify_test.rs"]
mod verify_test;
