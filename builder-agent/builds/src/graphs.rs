//! `exportReferencesGraph`: writes the closures of some inputs into files for the builder.
//!
//! Sources: Nix, `Store::exportReferences` and `Store::makeValidityRegistration` (src/libstore/store-api.cc), and
//! `pathInfoToJSON` (src/libstore/parsed-derivations.cc).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use nix::PathInfo;
use nix::derivation::Derivation;
use nix_derivation::{StorePath, nixbase32};
use serde_json::{Value, json};
use store::{Closure, ClosureInfo};

use super::recipe::MAX_DRV_BYTES;
use super::watch::{Steps, Watch};
use super::{Failure, Recipe};

/// Limit on the steps for all graphs of one derivation, some seconds of work: references followed, and again to add up
/// the sizes of closures. A NixOS system takes a tenth of it.
const MAX_STEPS: u64 = 500_000_000;
/// Cost of a path that is found for a graph, in steps.
const STEPS_PER_PATH: usize = 50;
/// Bytes of all graphs of one derivation together. They are sent into the sandbox and kept in its memory; the graph of
/// a NixOS system has some megabytes.
const MAX_BYTES: usize = 64 << 20;

/// By name: the text of a file in `/build`, or, with structured attributes, the JSON of an attribute.
pub(super) type Graphs = BTreeMap<String, Vec<u8>>;

/// The graphs that a recipe asks for. `inputs` is the snapshot that its builder sees; nothing else can be exported. The
/// references come from that snapshot, which the build key covers: those that an uploader states for a claim can change
/// meanwhile.
pub(super) fn of(recipe: &Recipe, inputs: &Closure, watch: &Watch<'_>) -> Result<Graphs, Failure> {
    let mut export = Export { recipe, inputs, steps: Steps::new(watch), bytes: 0 };
    let mut graphs = Graphs::new();
    for (name, texts) in wanted(recipe).map_err(|why| export.refused(why))? {
        let roots = texts.iter().map(|text| input(inputs.info(), text)).collect::<Result<Vec<_>, _>>();
        let roots = roots.map_err(|why| export.refused(why))?;
        let paths = export.closure(roots)?;
        let graph = match recipe.structured {
            Some(_) => export.described(&paths)?,
            None => export.registration(&paths)?,
        };
        graphs.insert(name, graph.into_bytes());
    }
    Ok(graphs)
}

/// Names, and the paths wanted under each.
fn wanted(recipe: &Recipe) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    if let Some(attrs) = &recipe.structured {
        // Like Nix, ignores a value that is not an object.
        let graphs = attrs.get("exportReferencesGraph").and_then(Value::as_object).into_iter().flatten();
        return graphs
            .map(|(name, value)| {
                let mut texts = BTreeSet::new();
                flatten(value, &mut texts)?;
                Ok((name.clone(), texts))
            })
            .collect();
    }
    let words = recipe.words("exportReferencesGraph").unwrap_or_default();
    if !words.len().is_multiple_of(2) {
        return Err("odd number of tokens in 'exportReferencesGraph'".into());
    }
    let mut wanted = BTreeMap::new();
    for pair in words.chunks_exact(2) {
        let name = &pair[0];
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b));
        if !plain || name.starts_with('.') || name.len() > 200 {
            return Err(format!("invalid file name '{name}' in 'exportReferencesGraph'"));
        }
        wanted.insert(name.clone(), BTreeSet::from([pair[1].clone()]));
    }
    Ok(wanted)
}

/// A path, or lists of them. The JSON parser bounds how deep they nest.
fn flatten(value: &Value, texts: &mut BTreeSet<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            texts.insert(text.clone());
            Ok(())
        }
        Value::Array(values) => values.iter().try_for_each(|value| flatten(value, texts)),
        _ => Err("'exportReferencesGraph' value is not an array or a string".into()),
    }
}

/// The input that `text` names, or the input that contains the file at `text`.
fn input(inputs: &ClosureInfo, text: &str) -> Result<StorePath, String> {
    let end = text.match_indices('/').nth(3).map_or(text.len(), |(at, _)| at);
    let path = StorePath::from_absolute_path(&text.as_bytes()[..end])
        .map_err(|_| format!("'{text}' in 'exportReferencesGraph' is not a store path"))?;
    if inputs.paths.contains_key(&path) {
        return Ok(path);
    }
    Err(format!(
        "cannot export references of path '{}' because it is not in the input closure of the derivation",
        path.to_absolute_path()
    ))
}

/// Approximate bytes of a path in a graph with its references: their names, and the syntax around each.
fn length(info: &PathInfo) -> usize {
    const AROUND: usize = 64;
    let names = info.references.iter().map(|path| path.name().len() + AROUND);
    4 * AROUND + 2 * info.path.name().len() + names.sum::<usize>()
}

/// The data needed to write graphs, and the cost so far.
struct Export<'a> {
    recipe: &'a Recipe,
    inputs: &'a Closure,
    steps: Steps<'a>,
    bytes: usize,
}

impl Export<'_> {
    fn refused(&self, why: impl std::fmt::Display) -> Failure {
        let drv = self.recipe.drv_path.to_absolute_path();
        Failure::rejected(format!("cannot build '{drv}': {why}"))
    }

    fn step(&mut self, steps: usize) -> Result<(), Failure> {
        self.steps.take(steps)?;
        match self.steps.taken() > MAX_STEPS {
            true => Err(self.refused("the closures in its 'exportReferencesGraph' are too large")),
            false => Ok(()),
        }
    }

    /// The caller must call this before it writes that many bytes.
    fn room_for(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes += bytes;
        match self.bytes > MAX_BYTES {
            true => Err(self.refused(format!(
                "what its 'exportReferencesGraph' asks for is larger than {} MiB, the limit of this box for all graphs \
                 of one derivation; ask for fewer or smaller closures",
                MAX_BYTES >> 20
            ))),
            false => Ok(()),
        }
    }

    /// `roots`, all paths they refer to, and the outputs of the derivations among those.
    fn closure(&mut self, roots: Vec<StorePath>) -> Result<BTreeSet<StorePath>, Failure> {
        let mut found = BTreeSet::new();
        self.reach(roots, &mut found)?;
        for drv in found.iter().filter(|path| path.is_derivation()).cloned().collect::<Vec<_>>() {
            let bad = |export: &Self, why: &dyn std::fmt::Display| {
                export.refused(format!("cannot export '{}': {why}", drv.to_absolute_path()))
            };
            let bytes =
                self.inputs.read_file(&drv, MAX_DRV_BYTES).map_err(|e| match e.is_the_boxs_fault() {
                    true => Failure::of_contents(format!("cannot read '{}'", drv.to_absolute_path()), &e),
                    false => bad(self, &e),
                })?;
            self.step(bytes.len())?;
            let name = drv.name().strip_suffix(".drv").unwrap_or_default();
            let parsed = Derivation::parse(&bytes, name).map_err(|e| bad(self, &e))?;
            for (output, spec) in &parsed.basic.outputs {
                let path = spec.path(&parsed.name, output).map_err(|e| bad(self, &e))?;
                let there =
                    path.filter(|path| self.inputs.info().paths.contains_key(path)).ok_or_else(|| {
                        let why =
                            format!("its output '{output}' is not in the input closure of the derivation");
                        bad(self, &why)
                    })?;
                self.reach(vec![there], &mut found)?;
            }
        }
        Ok(found)
    }

    /// Adds `todo` and all paths it refers to.
    fn reach(&mut self, mut todo: Vec<StorePath>, found: &mut BTreeSet<StorePath>) -> Result<(), Failure> {
        while let Some(path) = todo.pop() {
            if found.contains(&path) {
                continue;
            }
            let inputs = self.inputs.info();
            if let Some(info) = inputs.get(&path) {
                self.step(STEPS_PER_PATH * (1 + info.references.len()))?;
                todo.extend(info.references.iter().filter(|path| !found.contains(path)).cloned());
            }
            found.insert(path);
        }
        Ok(())
    }

    /// Per path: itself, an empty deriver, the number of references, the references.
    fn registration(&mut self, paths: &BTreeSet<StorePath>) -> Result<String, Failure> {
        let (inputs, mut text) = (self.inputs.info(), String::new());
        for path in paths {
            let Some(info) = inputs.get(path) else { continue };
            self.room_for(length(info))?;
            self.step(STEPS_PER_PATH * info.references.len())?;
            let _ = write!(text, "{}\n\n{}\n", path.to_absolute_path(), info.references.len());
            for reference in &info.references {
                let _ = writeln!(text, "{}", reference.to_absolute_path());
            }
        }
        Ok(text)
    }

    /// Per path: its path info as Nix exports it, without deriver, registration time and signatures.
    fn described(&mut self, paths: &BTreeSet<StorePath>) -> Result<String, Failure> {
        let inputs = self.inputs.info();
        let infos: Vec<_> = paths.iter().filter_map(|path| inputs.get(path)).collect();
        let sizes = self.closure_sizes(&infos)?;
        let mut text = String::from("[");
        for (i, (info, size)) in infos.iter().zip(sizes).enumerate() {
            self.room_for(length(info))?;
            self.step(STEPS_PER_PATH * info.references.len())?;
            let mut object = json!({
                "closureSize": size,
                "narHash": format!("sha256:{}", nixbase32::encode(&info.nar_hash)),
                "narSize": info.nar_size,
                "path": info.path.to_absolute_path(),
                "references": info.references.iter().map(StorePath::to_absolute_path).collect::<Vec<_>>(),
                "valid": true,
            });
            if let Some(ca) = &info.ca {
                object["ca"] = json!(ca.to_nix_string());
            }
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(text, "{comma}{object}");
        }
        text.push(']');
        Ok(text)
    }

    /// For each path the sum of the NAR sizes of all it refers to. Claims may refer to each other in circles.
    fn closure_sizes(&mut self, infos: &[&Arc<PathInfo>]) -> Result<Vec<u64>, Failure> {
        let places: HashMap<&StorePath, usize> =
            infos.iter().enumerate().map(|(i, info)| (&info.path, i)).collect();
        let references: Vec<Vec<usize>> = infos
            .iter()
            .map(|info| info.references.iter().filter_map(|path| places.get(path).copied()).collect())
            .collect();
        // Per path: the last path in whose closure it was found.
        let mut seen = vec![usize::MAX; infos.len()];
        let mut todo = Vec::new();
        let mut sizes = Vec::with_capacity(infos.len());
        for root in 0..infos.len() {
            let mut size = 0_u64;
            todo.push(root);
            while let Some(at) = todo.pop() {
                if std::mem::replace(&mut seen[at], root) == root {
                    continue;
                }
                size = size.saturating_add(infos[at].nar_size);
                self.step(references[at].len() + 1)?;
                todo.extend(references[at].iter().filter(|at| seen[**at] != root));
            }
            sizes.push(size);
        }
        Ok(sizes)
    }
}
