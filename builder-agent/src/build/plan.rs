//! What has to be built for some targets, and in which order.
//!
//! Walks `.drv` files of the member's view. They are the member's own, and may name anything, so the walk has bounds
//! and never recurses. Blocking: reads files. Not here: running the plan (`daemon::realise`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix_derivation::{DerivedPath, SingleDerivedPath, StorePath};
use store::View;

use super::Failure;
use super::recipe::{MAX_DRV_BYTES, Recipe};

/// Derivations looked at for one request. A NixOS system with everything from source has about 20,000.
pub const MAX_DERIVATIONS: usize = 200_000;

/// One derivation of a plan.
#[derive(Debug)]
pub struct Node {
    pub recipe: Arc<Recipe>,
    /// Whether an output that somebody wants is missing.
    pub needs_build: bool,
    /// Whether it is to be built although it is valid, and compared (`--check`).
    pub again: bool,
    /// Derivations of this plan that must be built before. Only those that need it.
    pub after: BTreeSet<StorePath>,
}

/// What to do for the targets of one request.
#[derive(Debug, Default)]
pub struct Plan {
    pub nodes: BTreeMap<StorePath, Node>,
    /// Targets and derivations that are not valid, so that nothing is known about them.
    pub unknown: BTreeSet<StorePath>,
    /// Derivations that cannot be understood or are not supported, with the reason.
    pub rejected: BTreeMap<StorePath, Failure>,
    /// Targets to be built even if they are valid.
    again: BTreeSet<StorePath>,
}

impl Plan {
    /// Looks at everything the targets need.
    pub fn make(view: &View, targets: &[DerivedPath]) -> Result<Self, Failure> {
        Self::make_with(view, targets, false)
    }

    /// As [`Plan::make`], with the targets themselves to be built again.
    pub fn make_again(view: &View, targets: &[DerivedPath]) -> Result<Self, Failure> {
        Self::make_with(view, targets, true)
    }

    fn make_with(view: &View, targets: &[DerivedPath], again: bool) -> Result<Self, Failure> {
        let mut plan = Self::default();
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
                        "cannot build outputs of '{}': dynamic derivations are not supported by this box yet",
                        drv_path.base().to_absolute_path()
                    )));
                }
            }
        }
        while let Some((drv, outputs)) = todo.pop() {
            plan.look(view, &drv, &outputs, &mut wanted, &mut todo)?;
        }
        plan.link();
        Ok(plan)
    }

    fn look(
        &mut self,
        view: &View,
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
                self.unknown.insert(drv.clone());
                return Ok(());
            }
            let read = view.read_file(drv, MAX_DRV_BYTES).map_err(|e| Failure::rejected(e.to_string()));
            match read.and_then(|bytes| Recipe::from_drv(drv, &bytes)) {
                Ok(recipe) => {
                    let recipe = Arc::new(recipe);
                    self.nodes.insert(
                        drv.clone(),
                        Node { recipe, needs_build: false, again: false, after: BTreeSet::new() },
                    );
                }
                Err(failure) => {
                    self.rejected.insert(drv.clone(), failure);
                    return Ok(());
                }
            }
        }
        let Some(node) = self.nodes.get_mut(drv) else { return Ok(()) };
        let all = wanted.entry(drv.clone()).or_default();
        let named: Vec<&String> =
            if outputs.is_empty() { node.recipe.outputs.keys().collect() } else { outputs.iter().collect() };
        for name in named {
            let Some(output) = node.recipe.outputs.get(name) else {
                let path = drv.to_absolute_path();
                return Err(Failure::rejected(format!(
                    "derivation '{path}' does not have wanted outputs '{name}'"
                )));
            };
            if all.insert(name.clone())
                && !node.needs_build
                && (self.again.contains(drv) || !output.path.as_ref().is_some_and(|path| view.is_valid(path)))
            {
                node.needs_build = true;
                node.again = self.again.contains(drv);
                for (input, outputs) in &node.recipe.input_derivations {
                    todo.push((input.clone(), outputs.iter().cloned().collect()));
                }
            }
        }
        Ok(())
    }

    /// Fills in, for what is built, the paths of its inputs and what it waits for.
    fn link(&mut self) {
        let mut found: BTreeMap<StorePath, (BTreeSet<StorePath>, BTreeSet<StorePath>)> = BTreeMap::new();
        for (drv, node) in self.nodes.iter().filter(|(_, node)| node.needs_build) {
            let (mut after, mut inputs) = (BTreeSet::new(), BTreeSet::new());
            for (input, outputs) in &node.recipe.input_derivations {
                match self.nodes.get(input) {
                    Some(other) => {
                        let paths = outputs.iter().filter_map(|name| other.recipe.outputs.get(name));
                        inputs.extend(paths.filter_map(|output| output.path.clone()));
                        if other.needs_build {
                            after.insert(input.clone());
                        }
                    }
                    // Unknown or rejected: whoever runs the plan reports that for `input`.
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

    pub fn will_build(&self) -> Vec<StorePath> {
        self.nodes.iter().filter(|(_, node)| node.needs_build).map(|(drv, _)| drv.clone()).collect()
    }
}
