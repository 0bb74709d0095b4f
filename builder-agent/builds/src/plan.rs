//! The plan: which derivations have to be built for some targets, and in which order.
//!
//! The plan walks `.drv` files of the member's view. The member wrote them and they may name anything, so the walk has
//! bounds and never recurses; see `study` for the limits of the whole request. Blocking: reads files. Not here: running
//! the plan (`realise`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::derivation::Derivation;
use nix_derivation::{DerivedPath, Output, SingleDerivedPath, StorePath};
use store::View;

use super::modulo::{self, Hasher, Known};
use super::resolve::InputPaths;
use super::study::{KEPT_BESIDE, Study};
use super::{Failure, Recipe, realisations};
use shares::budget::Charge;

/// Limit on derivations read for one request. A NixOS system with everything from source has about 20,000.
pub const MAX_DERIVATIONS: usize = 200_000;

/// Memory of one more input derivation while a plan is made and carried out: places in the lists of derivations to
/// read, of those that wait, and of their users.
const INPUT_BYTES: u64 = 640;
/// Memory of an output: its name, its path, and both again in the list of valid outputs.
const OUTPUT_BYTES: u64 = 512;
/// Memory of an unknown path: its place, and the message about it, for every target and user.
const UNKNOWN_BYTES: u64 = 1024;

/// One derivation of a plan.
#[derive(Debug)]
pub struct Node {
    pub recipe: Arc<Recipe>,
    /// Paths of the outputs: those that the derivation states, and the realised ones of the others.
    pub outputs: BTreeMap<String, StorePath>,
    /// Whether the derivation was read from a Verified path.
    verified: bool,
    /// The derivation, if it has to be resolved before it is built (see [`super::resolve`]).
    pub unresolved: Option<Arc<Derivation>>,
    /// Whether an output that somebody wants is missing.
    pub needs_build: bool,
    /// Whether the derivation is to be built although it is valid, to compare the outputs (`--check`).
    pub again: bool,
    /// Derivations of this plan that must be built before; only those that need to be built.
    pub after: BTreeSet<StorePath>,
}

/// The builds for the targets of one request.
#[derive(Debug, Default)]
pub struct Plan {
    pub nodes: BTreeMap<StorePath, Node>,
    /// Targets and derivations that are not valid, so that their contents are unknown.
    pub unknown: BTreeSet<StorePath>,
    /// Derivations that cannot be understood or are not supported, with the reason.
    pub rejected: BTreeMap<StorePath, Failure>,
    /// Targets to be built even if they are valid.
    again: BTreeSet<StorePath>,
    /// The charge for the nodes; held as long as the plan.
    memory: Option<Charge>,
}

impl Plan {
    /// Reads all derivations that the targets need.
    pub fn make(view: &View, known: &Known, targets: &[DerivedPath], study: &Study) -> Result<Self, Failure> {
        Self::make_with(view, known, targets, false, study)
    }

    /// As [`Plan::make`], but the targets themselves are built again.
    pub fn make_again(
        view: &View,
        known: &Known,
        targets: &[DerivedPath],
        study: &Study,
    ) -> Result<Self, Failure> {
        Self::make_with(view, known, targets, true, study)
    }

    fn make_with(
        view: &View,
        known: &Known,
        targets: &[DerivedPath],
        again: bool,
        study: &Study,
    ) -> Result<Self, Failure> {
        let mut plan = Self::default();
        let mut hasher = Hasher::new(view, known, study);
        let mut wanted: BTreeMap<StorePath, BTreeSet<String>> = BTreeMap::new();
        let mut todo: Vec<(StorePath, Vec<String>)> = Vec::new();
        for target in targets {
            match target {
                DerivedPath::Opaque(path) if view.is_valid(path) => {}
                DerivedPath::Opaque(path) => {
                    plan.unknown.insert(path.clone());
                }
                DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv), outputs } => {
                    if again {
                        plan.again.insert(drv.clone());
                    }
                    todo.push((drv.clone(), outputs.clone()));
                }
                DerivedPath::Built { drv_path, .. } => {
                    return Err(Failure::rejected(format!(
                        "cannot build outputs of '{}': dynamic derivations (outputOf) are not supported by this box",
                        drv_path.base().to_absolute_path()
                    )));
                }
            }
        }
        while let Some((drv, outputs)) = todo.pop() {
            plan.look(view, &mut hasher, study, &drv, &outputs, &mut wanted, &mut todo)?;
        }
        drop((wanted, hasher));
        plan.link();
        plan.memory = study.memory();
        let left = plan.bytes();
        if let Some(memory) = &mut plan.memory
            && left < memory.bytes()
        {
            // Reducing a charge cannot fail.
            let _ = memory.set(left);
        }
        Ok(plan)
    }

    /// Approximate memory of the plan once it is made.
    fn bytes(&self) -> u64 {
        let nodes: u64 = self.nodes.values().map(|node| KEPT_BESIDE + node.memory()).sum();
        let rejected: u64 = self.rejected.values().map(rejected_bytes).sum();
        nodes + rejected + self.unknown.len() as u64 * UNKNOWN_BYTES
    }

    #[allow(clippy::too_many_arguments)]
    fn look(
        &mut self,
        view: &View,
        hasher: &mut Hasher<'_>,
        study: &Study,
        drv: &StorePath,
        outputs: &[String],
        wanted: &mut BTreeMap<StorePath, BTreeSet<String>>,
        todo: &mut Vec<(StorePath, Vec<String>)>,
    ) -> Result<(), Failure> {
        if self.unknown.contains(drv) || self.rejected.contains_key(drv) {
            return Ok(());
        }
        if !self.nodes.contains_key(drv) {
            if self.nodes.len() >= MAX_DERIVATIONS {
                return Err(Failure::rejected(format!(
                    "the targets depend on more than {MAX_DERIVATIONS} derivations; build them in parts"
                )));
            }
            if !view.is_valid(drv) {
                study.note(UNKNOWN_BYTES)?;
                self.unknown.insert(drv.clone());
                return Ok(());
            }
            match node(view, hasher, drv, study) {
                Ok((node, text)) => {
                    study.keep(text, node.memory())?;
                    self.nodes.insert(drv.clone(), node);
                }
                // A limit of the whole request, or a client that left, is not the fault of this derivation.
                Err(failure) if study.is_over() => return Err(failure),
                Err(failure) => {
                    study.note(rejected_bytes(&failure))?;
                    self.rejected.insert(drv.clone(), failure);
                    return Ok(());
                }
            }
        }
        study.go_on(drv)?;
        let Some(node) = self.nodes.get_mut(drv) else { return Ok(()) };
        let all = wanted.entry(drv.clone()).or_default();
        if outputs.is_empty() && all.len() == node.recipe.outputs.len() {
            return Ok(());
        }
        let named: Vec<String> = match outputs.is_empty() {
            true => node.recipe.outputs.keys().cloned().collect(),
            false => outputs.to_vec(),
        };
        for name in &named {
            if !node.recipe.outputs.contains_key(name) {
                let path = drv.to_absolute_path();
                return Err(Failure::rejected(format!(
                    "derivation '{path}' does not have wanted outputs '{name}'"
                )));
            }
            let there = || node.outputs.get(name).is_some_and(|path| view.is_valid(path));
            if all.insert(name.clone()) && !node.needs_build && (self.again.contains(drv) || !there()) {
                node.needs_build = true;
                if node.verified
                    && let Some(recipe) = Arc::get_mut(&mut node.recipe)
                {
                    recipe.verified_paths = match hasher.of(drv) {
                        Ok(hashes) => hashes.verified,
                        // A study that ran out of time or memory must not end here: a Verified result would become a
                        // claim.
                        Err(failure) if study.is_over() => return Err(failure),
                        Err(_) => false,
                    };
                }
                node.again = self.again.contains(drv);
                for (input, outputs) in &node.recipe.input_derivations {
                    todo.push((input.clone(), outputs.iter().cloned().collect()));
                }
            }
        }
        Ok(())
    }

    /// Adds, for derivations to build, the paths of their inputs and the derivations they wait for. Of the others only
    /// the outputs are kept.
    fn link(&mut self) {
        for node in self.nodes.values_mut().filter(|node| !node.needs_build) {
            node.unresolved = None;
            if let Some(recipe) = Arc::get_mut(&mut node.recipe) {
                (recipe.args, recipe.env, recipe.structured) = Default::default();
                recipe.inputs.clear();
                recipe.input_derivations.clear();
                recipe.weight = recipe.outputs.len() as u64 * OUTPUT_BYTES;
            }
        }
        let mut found: BTreeMap<StorePath, (BTreeSet<StorePath>, BTreeSet<StorePath>)> = BTreeMap::new();
        for (drv, node) in self.nodes.iter().filter(|(_, node)| node.needs_build) {
            let (mut after, mut inputs) = (BTreeSet::new(), BTreeSet::new());
            for (input, outputs) in &node.recipe.input_derivations {
                match self.nodes.get(input) {
                    Some(other) => {
                        inputs.extend(outputs.iter().filter_map(|name| other.outputs.get(name)).cloned());
                        if other.needs_build {
                            after.insert(input.clone());
                        }
                    }
                    // The input is unknown or rejected. The code that runs the plan reports that for `input`.
                    None => {
                        after.insert(input.clone());
                    }
                }
            }
            found.insert(drv.clone(), (after, inputs));
        }
        for (drv, (after, inputs)) in found {
            let Some(node) = self.nodes.get_mut(&drv) else { continue };
            node.after = after;
            if let Some(recipe) = Arc::get_mut(&mut node.recipe) {
                recipe.inputs.extend(inputs);
            }
        }
    }

    /// The known paths of the outputs that `drv` uses of its input derivations. `built` gives the outputs that this
    /// plan has built.
    pub fn input_paths<'a>(
        &'a self,
        drv: &StorePath,
        built: impl Fn(&StorePath) -> Option<&'a BTreeMap<String, StorePath>>,
    ) -> InputPaths {
        let mut paths = BTreeMap::new();
        let Some(node) = self.nodes.get(drv) else { return paths };
        for (input, outputs) in &node.recipe.input_derivations {
            let Some(known) = built(input).or_else(|| Some(&self.nodes.get(input)?.outputs)) else {
                continue;
            };
            let named = outputs.iter().filter_map(|name| Some((name, known.get(name)?)));
            paths.extend(named.map(|(name, path)| ((input.clone(), name.clone()), path.clone())));
        }
        paths
    }

    /// Number of outputs that an answer about this target names.
    #[must_use]
    pub fn outputs_of(&self, target: &DerivedPath) -> usize {
        match target {
            DerivedPath::Opaque(_) => 0,
            DerivedPath::Built { outputs, .. } if outputs.is_empty() => {
                self.nodes.get(target.base()).map_or(0, |node| node.recipe.outputs.len())
            }
            DerivedPath::Built { outputs, .. } => outputs.len(),
        }
    }

    pub fn will_build(&self) -> Vec<StorePath> {
        self.nodes.iter().filter(|(_, node)| node.needs_build).map(|(drv, _)| drv.clone()).collect()
    }
}

/// Memory of a rejected derivation in the plan and in its answer.
fn rejected_bytes(failure: &Failure) -> u64 {
    UNKNOWN_BYTES + 2 * failure.message.len() as u64
}

impl Node {
    /// Approximate memory of this node.
    fn memory(&self) -> u64 {
        let recipe = &self.recipe;
        let inputs = recipe.input_derivations.len() as u64 * INPUT_BYTES;
        // A derivation that has to be resolved is held in both forms.
        inputs + recipe.weight * if self.unresolved.is_some() { 2 } else { 1 }
    }
}

/// Reads a derivation and the known paths of its outputs, before anything is built. Also returns the length of its
/// text.
fn node(
    view: &View,
    hasher: &mut Hasher<'_>,
    drv: &StorePath,
    study: &Study,
) -> Result<(Node, usize), Failure> {
    let verified = modulo::is_verified(view, drv);
    let modulo::Parsed { derivation, text, weight, room: _room } = modulo::read(view, drv, study)?;
    let mut recipe = Recipe::from_derivation(drv, &derivation, weight)?;
    let mut outputs: BTreeMap<String, StorePath> = BTreeMap::new();
    let mut unresolved = None;
    let mut all_stated = true;
    for (name, output) in &recipe.outputs {
        if let Some(path) = &output.path {
            outputs.insert(name.clone(), path.clone());
            continue;
        }
        all_stated = false;
        let hashes = hasher.of(drv)?;
        recipe.drv_hash = Some(hashes.masked);
        recipe.verified_paths = verified && hashes.verified;
        outputs.extend(realisations::path(view, &hashes.masked, name).map(|(path, _)| (name.clone(), path)));
    }
    if !recipe.input_derivations.is_empty() {
        // A fixed output, too, may depend on an output whose path is not known yet.
        let mut open = !all_stated;
        if recipe.is_fixed() {
            for input in recipe.input_derivations.keys() {
                // A missing input is reported under its own name.
                open |= hasher.of(input).is_ok_and(|hashes| hashes.deferred);
            }
        }
        if open {
            unresolved = Some(Arc::new(derivation));
        }
    }
    let recipe = Arc::new(recipe);
    let node = Node {
        recipe,
        outputs,
        verified,
        unresolved,
        needs_build: false,
        again: false,
        after: BTreeSet::new(),
    };
    Ok((node, text))
}

/// Whether these paths of the inputs are Verified. A path that a derivation states needs no proof beyond its own
/// provenance.
pub fn inputs_verified(
    view: &View,
    known: &Known,
    recipe: &Recipe,
    inputs: &InputPaths,
    study: &Study,
) -> bool {
    let mut hasher = Hasher::new(view, known, study);
    recipe.input_derivations.iter().all(|(drv, outputs)| {
        let (Ok(hashes), Ok(parsed)) = (hasher.of(drv), modulo::read(view, drv, study)) else {
            return false;
        };
        let derivation = &parsed.derivation;
        outputs.iter().all(|output| {
            let Some(spec) = derivation.basic.outputs.get(output) else { return false };
            let path = inputs.get(&(drv.clone(), output.clone()));
            match spec.path(&derivation.name, output) {
                Ok(Some(stated)) => path == Some(&stated),
                Ok(None) => realisations::path(view, &hashes.masked, output)
                    .is_some_and(|(realised, verified)| verified && path == Some(&realised)),
                Err(_) => false,
            }
        })
    })
}

/// The outputs of the valid derivation at `drv` with their paths: those that it states, and those that have been
/// realised.
pub fn outputs(
    view: &View,
    known: &Known,
    drv: &StorePath,
    study: &Study,
) -> Result<BTreeMap<String, Option<StorePath>>, Failure> {
    let parsed = modulo::read(view, drv, study)?;
    let derivation = &parsed.derivation;
    let mut hasher = Hasher::new(view, known, study);
    let path = |(name, output): (&String, &Output)| {
        let stated = output.path(&derivation.name, name);
        let path = match stated.map_err(|e| Failure::rejected(e.to_string()))? {
            Some(path) => Some(path),
            None => realisations::path(view, &hasher.of(drv)?.masked, name).map(|(path, _)| path),
        };
        Ok((name.clone(), path))
    };
    derivation.basic.outputs.iter().map(path).collect()
}
