//! The environment of a builder: variables, arguments and files, as Nix makes them.
//!
//! Source: Nix, src/libstore/build/local-derivation-goal.cc (2.8 to 2.26) and src/libstore/unix/build/
//! derivation-builder.cc (later): `initEnv`, `initTmpDir`, `writeStructuredAttrs`.

use std::collections::{BTreeMap, BTreeSet};

use nix::placeholders::Placeholders;
use nix_derivation::nixbase32;
use nix_derivation::store_path::hash_placeholder;
use sha2::{Digest, Sha256};

use super::Failure;
use super::graphs::Graphs;
use super::recipe::Recipe;
use super::structured;
use super::watch::Watch;

/// Working directory of a builder inside the sandbox.
const BUILD_DIR: &str = "/build";

/// All that the sandbox gives to the builder.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub args: Vec<Vec<u8>>,
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Written into `/build`.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Computes the environment of a builder. `cores` is the value of `NIX_BUILD_CORES`.
pub(super) fn surroundings(
    recipe: &Recipe,
    graphs: Graphs,
    cores: u32,
    watch: &Watch<'_>,
) -> Result<Surroundings, Failure> {
    let scratch_paths = recipe.scratch_paths();
    let mut placeholders = Placeholders::default();
    for (name, path) in &scratch_paths {
        placeholders.insert(&hash_placeholder(name), path.to_absolute_path());
    }
    let mut env = BTreeMap::new();
    let mut files = Vec::new();
    let mut set = |name: &str, value: &str| {
        env.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
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
        let made = structured::files(attrs, &graphs, &scratch_paths, &placeholders).map_err(refused)?;
        for (variable, name, bytes) in [
            ("NIX_ATTRS_SH_FILE", ".attrs.sh", made.shell),
            ("NIX_ATTRS_JSON_FILE", ".attrs.json", made.json),
        ] {
            set(variable, &format!("{BUILD_DIR}/{name}"));
            files.push((name.to_owned(), bytes));
        }
    } else {
        files.extend(graphs);
        let as_file: BTreeSet<Vec<u8>> =
            recipe.byte_words("passAsFile").unwrap_or_default().into_iter().collect();
        for (name, value) in &recipe.env {
            watch.go_on()?;
            let value = placeholders.filled(value.clone());
            if as_file.contains(name) {
                let file = format!(".attr-{}", nixbase32::encode(&Sha256::digest(name)));
                env.insert([name, &b"Path"[..]].concat(), format!("{BUILD_DIR}/{file}").into_bytes());
                files.push((file, value));
            } else {
                env.insert(name.clone(), value);
            }
        }
    }
    let mut set = |name: &[u8], value: &str| {
        env.insert(name.to_vec(), value.as_bytes().to_vec());
    };

    // ...but not these.
    for name in ["NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"] {
        set(name.as_bytes(), BUILD_DIR);
    }
    if recipe.is_fixed() {
        set(b"NIX_OUTPUT_CHECKED", "1");
        // The box has no proxies or tokens to give away: every impure variable is empty, as on a clean machine.
        for name in recipe.byte_words("impureEnvVars").unwrap_or_default() {
            set(&name, "");
        }
    }
    set(b"NIX_LOG_FD", "2");
    set(b"TERM", "xterm-256color");

    for (name, value) in &env {
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) || value.contains(&0) {
            return Err(refused(format!("its variable '{}' cannot be passed to a program", shown(name))));
        }
    }
    if let Some(arg) = recipe.args.iter().find(|arg| arg.contains(&0)) {
        return Err(refused(format!("its argument '{}' contains a NUL", shown(arg))));
    }
    let args = recipe.args.iter().map(|arg| placeholders.filled(arg.clone())).collect();
    Ok(Surroundings { args, env, files })
}

/// The beginning of a string, for an error.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).escape_debug().to_string()
}

#[cfg(test)]
#[path = "environment_test.rs"]
mod environment_test;
