//! Structured attributes: `.attrs.json` and `.attrs.sh`.
//!
//! The library makes both from the attributes and the output paths. What it cannot know are the graphs of
//! `exportReferencesGraph`, so that attribute passes it under another name, and comes out under its own again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nix_derivation::{Derivation, StorePath, StructuredAttrs, StructuredAttrsFiles};
use serde_json::value::RawValue;

use super::graphs::Graphs;

const GRAPH: &str = "exportReferencesGraph";

/// Attributes, in the order in which Nix writes them.
type Attrs = BTreeMap<String, Box<RawValue>>;

/// The two files for these attributes and output paths.
pub(super) fn files(
    attrs: &StructuredAttrs,
    graphs: &Graphs,
    places: &BTreeMap<String, StorePath>,
) -> Result<StructuredAttrsFiles, String> {
    if attrs.get(GRAPH).is_none() {
        return plain_files(attrs.canonical_json(), places).map_err(|e| e.to_string());
    }
    let failed = |e: serde_json::Error| format!("its structured attributes: {e}");
    let mut all: Attrs = serde_json::from_slice(attrs.canonical_json()).map_err(failed)?;
    // A graph replaces an attribute of the same name.
    graphs.keys().for_each(|name| drop(all.remove(name)));
    let mut alias = format!("{GRAPH}_");
    while all.contains_key(&alias) {
        alias.push('_');
    }
    if let Some(graph) = all.remove(GRAPH) {
        all.insert(alias.clone(), graph);
    }
    let text = serde_json::to_vec(&all).map_err(failed)?;
    let StructuredAttrsFiles { json, shell } = plain_files(&text, places).map_err(|e| e.to_string())?;

    let mut all: Attrs = serde_json::from_slice(&json).map_err(failed)?;
    if let Some(graph) = all.remove(&alias) {
        all.insert(GRAPH.to_owned(), graph);
    }
    for (name, graph) in graphs {
        all.insert(name.clone(), serde_json::from_slice(graph).map_err(failed)?);
    }
    let shell = String::from_utf8_lossy(&shell).replacen(&format!(" {alias}="), &format!(" {GRAPH}="), 1);
    Ok(StructuredAttrsFiles { json: serde_json::to_vec(&all).map_err(failed)?, shell: shell.into_bytes() })
}

/// The library makes the files for a whole derivation only, so it gets the smallest one with these parts.
fn plain_files(
    attrs: &[u8],
    places: &BTreeMap<String, StorePath>,
) -> Result<StructuredAttrsFiles, nix_derivation::Error> {
    let mut aterm = String::from("Derive([");
    for (i, (name, place)) in places.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(aterm, "{comma}(\"{name}\",\"{}\",\"\",\"\")", place.to_absolute_path());
    }
    aterm.push_str("],[],[],\"x\",\"/x\",[],[(\"__json\",\"");
    for c in String::from_utf8_lossy(attrs).chars() {
        match c {
            '"' => aterm.push_str("\\\""),
            '\\' => aterm.push_str("\\\\"),
            '\n' => aterm.push_str("\\n"),
            '\r' => aterm.push_str("\\r"),
            '\t' => aterm.push_str("\\t"),
            c => aterm.push(c),
        }
    }
    aterm.push_str("\")])");
    let drv = Derivation::from_aterm_bytes(aterm.as_bytes(), "x")?;
    let files = drv.structured_attrs_files_with_output_paths(places)?;
    Ok(files.unwrap_or_else(|| unreachable!("the derivation above has __json")))
}
