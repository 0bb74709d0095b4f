//! What a builder finds around it: variables, arguments and files, as Nix makes them.
//!
//! Source: Nix, src/libstore/build/local-derivation-goal.cc (2.8 to 2.26) and src/libstore/unix/build/
//! derivation-builder.cc (later): `initEnv`, `initTmpDir`, `writeStructuredAttrs`.

use std::collections::BTreeMap;

use nix_derivation::store_path::hash_placeholder;
use nix_derivation::{StructuredAttrsFiles, nixbase32};
use sha2::{Digest, Sha256};

use super::Failure;
use super::graphs::Graphs;
use super::recipe::{Recipe, replace};
use super::structured;

/// Where a build happens inside the sandbox.
const BUILD_DIR: &str = "/build";

/// What the sandbox puts in front of the builder.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Written into `/build`.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Computes all of it. `cores` is what the builder may use at once (`NIX_BUILD_CORES`).
pub(super) fn surroundings(recipe: &Recipe, graphs: Graphs, cores: u32) -> Result<Surroundings, Failure> {
    let places = recipe.places();
    let rewrites: Vec<(String, String)> =
        places.iter().map(|(name, place)| (hash_placeholder(name), place.to_absolute_path())).collect();
    let mut env = BTreeMap::new();
    let mut files = Vec::new();
    let mut set = |name: &str, value: &str| {
        env.insert(name.to_owned(), value.to_owned());
    };
    // A derivation may override these...
    set("PATH", "/path-not-set");
    set("HOME", "/homeless-shelter");
    set("NIX_STORE", "/nix/store");
    set("NIX_BUILD_CORES", &cores.to_string());

    let refused = |why: String| {
        Failure::rejected(format!("cannot build '{}': {why}", recipe.drv_path.to_absolute_path()))
    };
    if let Some(attrs) = &recipe.structured {
        let made = structured::files(attrs, &graphs, &places).map_err(refused)?;
        for (variable, name, bytes) in [
            ("NIX_ATTRS_SH_FILE", StructuredAttrsFiles::SHELL_FILE_NAME, made.shell),
            ("NIX_ATTRS_JSON_FILE", StructuredAttrsFiles::JSON_FILE_NAME, made.json),
        ] {
            set(variable, &format!("{BUILD_DIR}/{name}"));
            files.push((name.to_owned(), bytes));
        }
    } else {
        files.extend(graphs);
        let as_file = recipe.words("passAsFile").unwrap_or_default();
        for (name, value) in &recipe.env {
            if as_file.contains(name) {
                let file = format!(".attr-{}", nixbase32::encode(&Sha256::digest(name.as_bytes())));
                set(&format!("{name}Path"), &format!("{BUILD_DIR}/{file}"));
                files.push((file, replace(value.clone(), &rewrites)));
            } else {
                let value = std::str::from_utf8(value).map_err(|_| {
                    refused(format!("its variable '{name}' is not UTF-8, which this box needs"))
                })?;
                set(name, value);
            }
        }
    }

    // ...but not these.
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        set(name, BUILD_DIR);
    }
    if recipe.is_fixed() {
        set("NIX_OUTPUT_CHECKED", "1");
        // The box has no proxies or tokens to hand out: every impure variable is empty, as on a clean machine.
        for name in recipe.words("impureEnvVars").unwrap_or_default() {
            set(&name, "");
        }
    }
    set("NIX_LOG_FD", "2");
    set("TERM", "xterm-256color");

    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(refused(format!(
                "its variable '{}' cannot be passed to a program",
                name.escape_debug()
            )));
        }
    }
    if let Some(arg) = recipe.args.iter().find(|arg| arg.contains('\0')) {
        return Err(refused(format!("its argument '{}' contains a NUL", arg.escape_debug())));
    }
    Ok(Surroundings {
        args: recipe.args.iter().map(|arg| rewrite(arg.clone(), &rewrites)).collect(),
        env: env.into_iter().map(|(name, value)| (name, rewrite(value, &rewrites))).collect(),
        files,
    })
}

fn rewrite(text: String, rewrites: &[(String, String)]) -> String {
    // Placeholders and paths are ASCII, so what was UTF-8 stays it.
    String::from_utf8(replace(text.into_bytes(), rewrites)).unwrap_or_default()
}

#[cfg(test)]
#[path = "environment_test.rs"]
mod environment_test;
