//! Root file systems with stock Nix clients, made once by `tests/scripts/nix-client` and shared read-only.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lock::locked;
use crate::{place, process};

/// The shared tree of this version of Nix; made if it does not exist.
pub fn tree(version: &str) -> PathBuf {
    let clients = place::target().join("cache/clients");
    let tree = clients.join(version);
    locked(&clients.join(format!("{version}.lock")), || {
        // The script creates this file last.
        if !tree.join(".complete").exists() {
            eprintln!("making the client tree of Nix {version} (about half a minute)");
            let script = place::project().join("tests/scripts/nix-client");
            process::run(Command::new(script).args([Path::new("make"), Path::new(version)])).ok();
        }
    });
    tree
}
