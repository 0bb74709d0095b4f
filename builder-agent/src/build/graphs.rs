//! `exportReferencesGraph`: files in `/build` that list the closure of some inputs.
//!
//! Source: Nix, `Store::makeValidityRegistration` (src/libstore/store-api.cc) and `exportReferencesGraph`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use nix_derivation::StorePath;
use store::Closure;

use super::{Failure, Recipe};

/// The files a recipe asks for. `inputs` is what its builder may see; nothing else can be exported. References are
/// those of that snapshot, which the build key covers: an uploader's words about a claim can change meanwhile.
pub(super) fn files(recipe: &Recipe, inputs: &Closure) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let refused = |why: String| {
        Failure::rejected(format!("cannot build '{}': {why}", recipe.drv_path.to_absolute_path()))
    };
    if recipe.structured.is_some() {
        // `structured_files` refuses the attribute itself.
        return Ok(Vec::new());
    }
    let words = recipe.words("exportReferencesGraph").unwrap_or_default();
    if !words.len().is_multiple_of(2) {
        return Err(refused("odd number of tokens in 'exportReferencesGraph'".into()));
    }
    let mut files = Vec::new();
    for pair in words.chunks_exact(2) {
        let (name, path) = (&pair[0], &pair[1]);
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b));
        if !plain || name.starts_with('.') || name.len() > 200 {
            return Err(refused(format!("invalid file name '{name}' in 'exportReferencesGraph'")));
        }
        let path = StorePath::from_absolute_path(path.as_bytes())
            .map_err(|_| refused(format!("'{path}' in 'exportReferencesGraph' is not a store path")))?;
        if !inputs.contains(&path) {
            return Err(refused(format!(
                "cannot export references of path '{}' because it is not in the input closure of the derivation",
                path.to_absolute_path()
            )));
        }
        files.push((name.clone(), registration(inputs, &reachable(inputs, path)).into_bytes()));
    }
    Ok(files)
}

/// `path` and all it refers to.
fn reachable(inputs: &Closure, path: StorePath) -> BTreeSet<StorePath> {
    let mut found = BTreeSet::new();
    let mut todo = vec![path];
    while let Some(path) = todo.pop() {
        let references = inputs.info(&path).map(|info| info.references.clone());
        if found.insert(path) {
            todo.extend(references.into_iter().flatten());
        }
    }
    found
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
