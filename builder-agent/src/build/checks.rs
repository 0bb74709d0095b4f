//! What a derivation demands of its own outputs: `allowedReferences` and its relatives.
//!
//! Source: Nix, `checkOutputs` in src/libstore/build/local-derivation-goal.cc. With structured attributes the
//! demands are per output, in `outputChecks`.

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::StorePath;
use serde_json::Value;
use store::Closure;

use super::outputs::Settled;
use super::{Failure, Recipe};

/// The demands on one output. Lists hold store paths or output names.
#[derive(Debug, Default)]
struct Checks {
    allowed_references: Option<Vec<String>>,
    allowed_requisites: Option<Vec<String>>,
    disallowed_references: Vec<String>,
    disallowed_requisites: Vec<String>,
    ignore_self: bool,
    max_size: Option<u64>,
    max_closure_size: Option<u64>,
}

/// Refuses outputs that are not as the derivation wants them. Nothing of the build is kept then.
pub(super) fn check(
    recipe: &Recipe,
    inputs: &Closure,
    outputs: &BTreeMap<String, Settled>,
) -> Result<(), Failure> {
    for (name, output) in outputs {
        let checks = demands(recipe, name)?;
        check_one(recipe, inputs, name, outputs, output, &checks)?;
    }
    Ok(())
}

fn demands(recipe: &Recipe, output: &str) -> Result<Checks, Failure> {
    let Some(attrs) = &recipe.structured else {
        return Ok(Checks {
            allowed_references: recipe.words("allowedReferences"),
            allowed_requisites: recipe.words("allowedRequisites"),
            disallowed_references: recipe.words("disallowedReferences").unwrap_or_default(),
            disallowed_requisites: recipe.words("disallowedRequisites").unwrap_or_default(),
            ignore_self: true,
            ..Checks::default()
        });
    };
    let Some(of) = attrs.get("outputChecks").and_then(|all| all.get(output)) else {
        return Ok(Checks::default());
    };
    let wrong = |name: &str, wanted: &str| {
        let path = recipe.drv_path.to_absolute_path();
        Failure::rejected(format!(
            "attribute '{name}' in 'outputChecks.{output}' of '{path}' must be {wanted}"
        ))
    };
    let list = |name: &str| -> Result<Option<Vec<String>>, Failure> {
        let Some(value) = of.get(name) else { return Ok(None) };
        let strings = value.as_array().and_then(|list| {
            list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        strings.map(Some).ok_or_else(|| wrong(name, "a list of strings"))
    };
    let number = |name: &str| match of.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(name, "a number of bytes")),
    };
    Ok(Checks {
        allowed_references: list("allowedReferences")?,
        allowed_requisites: list("allowedRequisites")?,
        disallowed_references: list("disallowedReferences")?.unwrap_or_default(),
        disallowed_requisites: list("disallowedRequisites")?.unwrap_or_default(),
        ignore_self: of.get("ignoreSelfRefs").and_then(Value::as_bool).unwrap_or(false),
        max_size: number("maxSize")?,
        max_closure_size: number("maxClosureSize")?,
    })
}

fn check_one(
    recipe: &Recipe,
    inputs: &Closure,
    name: &str,
    outputs: &BTreeMap<String, Settled>,
    output: &Settled,
    checks: &Checks,
) -> Result<(), Failure> {
    let own = &output.path;
    let shown = own.to_absolute_path();
    if let Some(max) = checks.max_size.filter(|max| output.ingested.nar_size > *max) {
        let size = output.ingested.nar_size;
        return Err(Failure::output(format!(
            "path '{shown}' is too large at {size} bytes; limit is {max} bytes"
        )));
    }
    let needs_closure = checks.allowed_requisites.is_some()
        || !checks.disallowed_requisites.is_empty()
        || checks.max_closure_size.is_some();
    let closure = if needs_closure { closure(inputs, outputs, own)? } else { BTreeMap::new() };
    if let Some(max) = checks.max_closure_size {
        let size = closure.values().fold(0u64, |sum, size| sum.saturating_add(*size));
        if size > max {
            return Err(Failure::output(format!(
                "closure of path '{shown}' is too large at {size} bytes; limit is {max} bytes"
            )));
        }
    }
    let set = |words: &[String]| paths(recipe, name, outputs, words);
    let bad = |used: BTreeSet<StorePath>| {
        if used.is_empty() {
            return Ok(());
        }
        let list: String = used.iter().map(|path| format!("\n  {}", path.to_absolute_path())).collect();
        Err(Failure::output(format!(
            "output '{shown}' is not allowed to refer to the following paths:{list}"
        )))
    };
    // Only here: a direct reference to itself has to be allowed by name.
    let skip = |path: &&StorePath| !(checks.ignore_self && *path == own);
    let references = &output.references;
    let requisites: BTreeSet<StorePath> = closure.keys().filter(skip).cloned().collect();
    if let Some(allowed) = &checks.allowed_references {
        bad(references.difference(&set(allowed)?).cloned().collect())?;
    }
    if let Some(allowed) = &checks.allowed_requisites {
        bad(requisites.difference(&set(allowed)?).cloned().collect())?;
    }
    bad(references.intersection(&set(&checks.disallowed_references)?).cloned().collect())?;
    bad(requisites.intersection(&set(&checks.disallowed_requisites)?).cloned().collect())
}

/// Everything reachable from a new output, with NAR sizes.
fn closure(
    inputs: &Closure,
    outputs: &BTreeMap<String, Settled>,
    own: &StorePath,
) -> Result<BTreeMap<StorePath, u64>, Failure> {
    let mut known = BTreeMap::new();
    let mut todo = vec![own.clone()];
    while let Some(path) = todo.pop() {
        if known.contains_key(&path) {
            continue;
        }
        let new = outputs.values().find(|output| output.path == path);
        let (size, references) = match (new, inputs.info(&path)) {
            (Some(new), _) => (new.ingested.nar_size, new.references.clone()),
            (None, Some(info)) => (info.nar_size, info.references.clone()),
            (None, None) => {
                let path = path.to_absolute_path();
                // Only what a builder could see can be found in what it made.
                return Err(Failure::transient(format!(
                    "path '{path}' is not an input; this is a bug of the box"
                )));
            }
        };
        known.insert(path, size);
        todo.extend(references);
    }
    Ok(known)
}

/// Output names and store paths, as paths.
fn paths(
    recipe: &Recipe,
    name: &str,
    outputs: &BTreeMap<String, Settled>,
    words: &[String],
) -> Result<BTreeSet<StorePath>, Failure> {
    words
        .iter()
        .map(|word| match outputs.get(word) {
            Some(output) => Ok(output.path.clone()),
            None => StorePath::from_absolute_path(word.as_bytes()).map_err(|_| {
                let drv = recipe.drv_path.to_absolute_path();
                let names: Vec<&str> = outputs.keys().map(String::as_str).collect();
                Failure::output(format!(
                    "derivation '{drv}' output check for '{name}' contains output name '{word}', but this is not a \
                     valid output of this derivation. (Valid outputs are [{}].)",
                    names.join(", ")
                ))
            }),
        })
        .collect()
}
