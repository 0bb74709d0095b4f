//! Values that both protocols write in the same form; the mirror of `read`.

use nix::{BuildResult, BuiltOutput, PathInfo};
use nix_derivation::{DerivedPath, SingleDerivedPath};

use crate::output::Encode;

/// A path info without the path itself (Nix: `UnkeyedValidPathInfo`).
pub(crate) fn path_info(out: &mut Vec<u8>, info: &PathInfo) {
    out.maybe_path(info.deriver.as_ref());
    out.str(&hex::encode(info.nar_hash));
    out.paths(&info.references);
    out.u64(info.registration_time as u64);
    out.u64(info.nar_size);
    out.bool(info.ultimate);
    out.strings(&info.signatures);
    out.str(&info.ca.as_ref().map(|ca| ca.to_nix_string()).unwrap_or_default());
}

/// The outputs of a build, by name (worker with `realisation-with-path-not-hash`, serve from 2.8).
pub(crate) fn built_outputs(out: &mut Vec<u8>, result: &BuildResult) {
    out.u64(result.built_outputs.len() as u64);
    for (name, output) in &result.built_outputs {
        out.str(name);
        out.path(&output.path);
        out.strings(&output.signatures);
    }
}

/// The same in the older form: ids and realisations as JSON.
pub(crate) fn built_outputs_json(out: &mut Vec<u8>, result: &BuildResult) {
    out.u64(result.built_outputs.len() as u64);
    for (name, output) in &result.built_outputs {
        let id = built_id(name, output);
        let json = serde_json::json!({
            "dependentRealisations": {},
            "id": id,
            "outPath": output.path.to_basename(),
            "signatures": output.signatures,
        });
        out.str(&id);
        out.str(&json.to_string());
    }
}

fn built_id(name: &str, output: &BuiltOutput) -> String {
    format!("sha256:{}!{name}", hex::encode(output.drv_hash.unwrap_or_default()))
}

/// A derived path with `!` between its steps, which every version can read.
pub(crate) fn derived_path(out: &mut Vec<u8>, path: &DerivedPath) {
    match path {
        DerivedPath::Opaque(path) => out.path(path),
        DerivedPath::Built { drv_path, outputs } => {
            let mut text = single_derived_path(drv_path);
            text.push('!');
            match outputs.is_empty() {
                true => text.push('*'),
                false => text.push_str(&outputs.join(",")),
            }
            out.str(&text);
        }
    }
}

fn single_derived_path(path: &SingleDerivedPath) -> String {
    let (base, steps) = path.components();
    steps.iter().fold(base.to_absolute_path(), |text, step| text + "!" + step)
}
