//! Checks what a derivation demands of its own outputs: `allowedReferences` and its relatives.
//!
//! Source: Nix, `checkOutputs` in src/libstore/build/local-derivation-goal.cc. With structured attributes the
//! demands are per output, in `outputChecks`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nix_derivation::StorePath;
use serde_json::Value;
use store::ClosureInfo;

use super::outputs::Settled;
use super::watch::{Steps, Watch};
use super::{Failure, Recipe};

/// Limit on the paths visited by the checks of one derivation: some seconds of work. The paths of a NixOS system, as
/// one output, take some thousand.
const MAX_STEPS: u64 = 20_000_000;

/// The demands on one output. Lists hold store paths or output names.
#[derive(Debug, Default)]
struct Checks {
    allowed_references: Option<BTreeSet<StorePath>>,
    allowed_requisites: Option<BTreeSet<StorePath>>,
    disallowed_references: BTreeSet<StorePath>,
    disallowed_requisites: BTreeSet<StorePath>,
    ignore_self: bool,
    max_size: Option<u64>,
    max_closure_size: Option<u64>,
}

/// Refuses outputs that break a demand of the derivation. No output of the build is kept then.
pub(super) fn check(
    recipe: &Recipe,
    inputs: &ClosureInfo,
    outputs: &BTreeMap<String, Settled>,
    watch: &Watch<'_>,
) -> Result<(), Failure> {
    let mut steps = Steps::new(watch);
    let new: HashMap<&StorePath, &Settled> = outputs.values().map(|output| (&output.path, output)).collect();
    // Without structured attributes all outputs have the same demands. Those can be long lists, so they are read once.
    let mut same = None;
    for (name, output) in outputs {
        let own;
        let checks = match recipe.structured {
            Some(_) => {
                own = demands(recipe, name, outputs)?;
                &own
            }
            None => match &mut same {
                Some(same) => &*same,
                none => &*none.insert(demands(recipe, name, outputs)?),
            },
        };
        check_one(inputs, &new, output, checks, &mut |n| {
            steps.take(n)?;
            match steps.taken() > MAX_STEPS {
                true => Err(Failure::rejected(format!(
                    "cannot build '{}': the closures of its outputs are too large for all that it wants checked",
                    recipe.drv_path.to_absolute_path()
                ))),
                false => Ok(()),
            }
        })?;
    }
    Ok(())
}

fn demands(recipe: &Recipe, output: &str, outputs: &BTreeMap<String, Settled>) -> Result<Checks, Failure> {
    let set =
        |words: Option<Vec<String>>| words.map(|words| paths(recipe, output, outputs, &words)).transpose();
    let Some(attrs) = &recipe.structured else {
        return Ok(Checks {
            allowed_references: set(recipe.words("allowedReferences"))?,
            allowed_requisites: set(recipe.words("allowedRequisites"))?,
            disallowed_references: set(recipe.words("disallowedReferences"))?.unwrap_or_default(),
            disallowed_requisites: set(recipe.words("disallowedRequisites"))?.unwrap_or_default(),
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
        allowed_references: set(list("allowedReferences")?)?,
        allowed_requisites: set(list("allowedRequisites")?)?,
        disallowed_references: set(list("disallowedReferences")?)?.unwrap_or_default(),
        disallowed_requisites: set(list("disallowedRequisites")?)?.unwrap_or_default(),
        ignore_self: of.get("ignoreSelfRefs").and_then(Value::as_bool).unwrap_or(false),
        max_size: number("maxSize")?,
        max_closure_size: number("maxClosureSize")?,
    })
}

/// Counts visited paths.
type Count<'a> = &'a mut dyn FnMut(usize) -> Result<(), Failure>;

fn check_one(
    inputs: &ClosureInfo,
    new: &HashMap<&StorePath, &Settled>,
    output: &Settled,
    checks: &Checks,
    count: Count<'_>,
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
    let closure = if needs_closure { closure(inputs, new, own, count)? } else { BTreeMap::new() };
    if let Some(max) = checks.max_closure_size {
        let size = closure.values().fold(0u64, |sum, size| sum.saturating_add(*size));
        if size > max {
            return Err(Failure::output(format!(
                "closure of path '{shown}' is too large at {size} bytes; limit is {max} bytes"
            )));
        }
    }
    let bad = |used: Vec<&StorePath>| {
        if used.is_empty() {
            return Ok(());
        }
        let list: String = used.iter().map(|path| format!("\n  {}", path.to_absolute_path())).collect();
        Err(Failure::output(format!(
            "output '{shown}' is not allowed to refer to the following paths:{list}"
        )))
    };
    // Only requisites skip the output itself: as a direct reference, it has to be allowed by name.
    let skip = |path: &&StorePath| !(checks.ignore_self && *path == own);
    let references = &output.references;
    let requisites = || closure.keys().filter(skip);
    count(references.len())?;
    if let Some(allowed) = &checks.allowed_references {
        bad(references.iter().filter(|path| !allowed.contains(path)).collect())?;
    }
    if let Some(allowed) = &checks.allowed_requisites {
        bad(requisites().filter(|path| !allowed.contains(path)).collect())?;
    }
    bad(references.iter().filter(|path| checks.disallowed_references.contains(path)).collect())?;
    bad(requisites().filter(|path| checks.disallowed_requisites.contains(path)).collect())
}

/// All paths reachable from a new output, with NAR sizes.
fn closure(
    inputs: &ClosureInfo,
    new: &HashMap<&StorePath, &Settled>,
    own: &StorePath,
    count: Count<'_>,
) -> Result<BTreeMap<StorePath, u64>, Failure> {
    let mut known = BTreeMap::new();
    let mut todo = vec![own.clone()];
    while let Some(path) = todo.pop() {
        if known.contains_key(&path) {
            continue;
        }
        let (size, references) = match (new.get(&path), inputs.get(&path)) {
            (Some(new), _) => (new.ingested.nar_size, &new.references),
            (None, Some(info)) => (info.nar_size, &info.references),
            (None, None) => {
                let path = path.to_absolute_path();
                // An output can contain only paths that its builder could see.
                return Err(Failure::transient(format!(
                    "path '{path}' is not an input; this is a bug of the box"
                )));
            }
        };
        count(1 + references.len())?;
        todo.extend(references.iter().filter(|path| !known.contains_key(*path)).cloned());
        known.insert(path, size);
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
