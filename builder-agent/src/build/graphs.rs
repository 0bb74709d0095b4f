//! `exportReferencesGraph`: the closures of some inputs, written down for the builder.
//!
//! Sources: Nix, `Store::exportReferences` and `Store::makeValidityRegistration` (src/libstore/store-api.cc), and
//! `pathInfoToJSON` (src/libstore/parsed-derivations.cc).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use nix_derivation::{StorePath, nixbase32};
use serde_json::{Value, json};
use store::{Closure, PathInfo};

use super::derivation::Derivation;
use super::recipe::MAX_DRV_BYTES;
use super::{Failure, Recipe};

/// References looked at to add up the sizes of closures, a second's work. A NixOS system takes a tenth of it.
const MAX_STEPS: usize = 500_000_000;

/// By name: the text of a file in `/build`, or, with structured attributes, the JSON of an attribute.
pub(super) type Graphs = BTreeMap<String, Vec<u8>>;

/// What a recipe asks for. `inputs` is what its builder may see; nothing else can be exported. References are
/// those of that snapshot, which the build key covers: an uploader's words about a claim can change meanwhile.
pub(super) fn of(recipe: &Recipe, inputs: &Closure) -> Result<Graphs, Failure> {
    let refused = |why: String| {
        Failure::rejected(format!("cannot build '{}': {why}", recipe.drv_path.to_absolute_path()))
    };
    let mut graphs = Graphs::new();
    for (name, texts) in wanted(recipe).map_err(refused)? {
        let roots = texts.iter().map(|text| input(inputs, text)).collect::<Result<Vec<_>, _>>();
        let paths = exported(inputs, roots.map_err(refused)?).map_err(refused)?;
        let graph = match recipe.structured {
            Some(_) => described(inputs, &paths).map_err(refused)?.to_string(),
            None => registration(inputs, &paths),
        };
        graphs.insert(name, graph.into_bytes());
    }
    Ok(graphs)
}

/// Names, and the paths wanted under each.
fn wanted(recipe: &Recipe) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    if let Some(attrs) = &recipe.structured {
        // Anything but an object is no request, as in Nix.
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

/// The input that `text` names, or something inside of.
fn input(inputs: &Closure, text: &str) -> Result<StorePath, String> {
    let end = text.match_indices('/').nth(3).map_or(text.len(), |(at, _)| at);
    let path = StorePath::from_absolute_path(&text.as_bytes()[..end])
        .map_err(|_| format!("'{text}' in 'exportReferencesGraph' is not a store path"))?;
    if inputs.contains(&path) {
        return Ok(path);
    }
    Err(format!(
        "cannot export references of path '{}' because it is not in the input closure of the derivation",
        path.to_absolute_path()
    ))
}

/// `roots`, all they refer to, and what the derivations among that have as outputs.
fn exported(inputs: &Closure, roots: Vec<StorePath>) -> Result<BTreeSet<StorePath>, String> {
    let mut found = BTreeSet::new();
    reach(inputs, roots, &mut found);
    for drv in found.iter().filter(|path| path.is_derivation()).cloned().collect::<Vec<_>>() {
        let bad = |why: &dyn std::fmt::Display| format!("cannot export '{}': {why}", drv.to_absolute_path());
        let bytes = inputs.read_file(&drv, MAX_DRV_BYTES).map_err(|e| bad(&e))?;
        let name = drv.name().strip_suffix(".drv").unwrap_or_default();
        let parsed = Derivation::parse(&bytes, name).map_err(|e| bad(&e))?;
        for (output, spec) in &parsed.basic.outputs {
            let path = spec.path(&parsed.name, output).map_err(|e| bad(&e))?;
            let there = path.filter(|path| inputs.contains(path)).ok_or_else(|| {
                bad(&format!("its output '{output}' is not in the input closure of the derivation"))
            })?;
            reach(inputs, vec![there], &mut found);
        }
    }
    Ok(found)
}

/// Adds `todo` and all it refers to.
fn reach(inputs: &Closure, mut todo: Vec<StorePath>, found: &mut BTreeSet<StorePath>) {
    while let Some(path) = todo.pop() {
        let references = inputs.info(&path).map(|info| info.references.clone());
        if found.insert(path) {
            todo.extend(references.into_iter().flatten());
        }
    }
}

/// Per path: itself, an empty deriver, the number of references, the references.
fn registration(inputs: &Closure, paths: &BTreeSet<StorePath>) -> String {
    let mut text = String::new();
    for path in paths {
        let references = inputs.info(path).map(|info| info.references.clone()).unwrap_or_default();
        let _ = write!(text, "{}\n\n{}\n", path.to_absolute_path(), references.len());
        for reference in references {
            let _ = writeln!(text, "{}", reference.to_absolute_path());
        }
    }
    text
}

/// Per path: what Nix knows about it, without when and by whom it was made.
fn described(inputs: &Closure, paths: &BTreeSet<StorePath>) -> Result<Value, String> {
    let infos: Vec<_> = paths.iter().filter_map(|path| inputs.info(path)).collect();
    let sizes = closure_sizes(&infos)?;
    let one = |(info, size): (&Arc<PathInfo>, u64)| {
        let mut object = json!({
            "closureSize": size,
            "narHash": format!("sha256:{}", nixbase32::encode(&info.nar_hash)),
            "narSize": info.nar_size,
            "path": info.path.to_absolute_path(),
            "references": info.references.iter().map(StorePath::to_absolute_path).collect::<Vec<_>>(),
            "valid": true,
        });
        if let Some(ca) = &info.ca {
            object["ca"] = json!(ca);
        }
        object
    };
    Ok(infos.iter().copied().zip(sizes).map(one).collect())
}

/// For each path the sum of the NAR sizes of all it refers to. Claims may refer to each other in circles.
fn closure_sizes(infos: &[&Arc<PathInfo>]) -> Result<Vec<u64>, String> {
    let places: HashMap<&StorePath, usize> =
        infos.iter().enumerate().map(|(i, info)| (&info.path, i)).collect();
    let references: Vec<Vec<usize>> = infos
        .iter()
        .map(|info| info.references.iter().filter_map(|path| places.get(path).copied()).collect())
        .collect();
    let mut steps = 0;
    // In whose closure a path was found last.
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
            steps += references[at].len() + 1;
            todo.extend(references[at].iter().filter(|at| seen[**at] != root));
        }
        if steps > MAX_STEPS {
            return Err(format!(
                "the closure of {} paths in 'exportReferencesGraph' is too large",
                infos.len()
            ));
        }
        sizes.push(size);
    }
    Ok(sizes)
}
