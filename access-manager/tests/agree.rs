//! Our evaluator and real Nix give the same answer to everything in `tests/agree`.
//!
//! The recorded answers (`record.sh`) are always compared. When a Nix is here (`NIX_INSTANTIATE`, or in PATH) it is
//! asked again, so that a recording cannot go stale unnoticed.

use std::path::{Path, PathBuf};
use std::process::Command;

use access_manager::nix::{Limits, to_json};
use access_manager::source::WorkDir;
use serde_json::Value;

fn questions() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agree");
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "nix"))
        .collect();
    found.sort();
    assert!(found.len() >= 11, "the corpus is gone: {found:?}");
    found
}

fn ours(question: &Path) -> Value {
    let source = WorkDir::new(question.parent().unwrap()).unwrap();
    let file = question.file_name().unwrap().to_str().unwrap();
    to_json(source, file, Limits::default()).unwrap_or_else(|d| panic!("{d}"))
}

/// Nix 2.8 prints the float 2.0 as `2`, later ones as `2.0`; both are the same number.
fn normal(json: Value) -> Value {
    match json {
        Value::Number(n) => match n.as_f64() {
            Some(f) if f.fract() == 0.0 && f.abs() < 1e15 => Value::from(f as i64),
            // Numbers keep the digits they came in.
            Some(f) if !n.is_i64() && !n.is_u64() => Value::from(f),
            _ => Value::Number(n),
        },
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, normal(v))).collect()),
        other => other,
    }
}

#[test]
fn our_answers_are_those_recorded_from_nix() {
    for question in questions() {
        let recorded = std::fs::read_to_string(question.with_extension("json")).unwrap();
        let recorded: Value = serde_json::from_str(&recorded).unwrap();
        assert_eq!(normal(ours(&question)), normal(recorded), "{}", question.display());
    }
}

#[test]
fn our_answers_are_those_of_the_nix_installed_here() {
    let program = std::env::var_os("NIX_INSTANTIATE").unwrap_or_else(|| "nix-instantiate".into());
    if Command::new(&program).arg("--version").output().is_err() {
        println!("skipped: no nix-instantiate in PATH and NIX_INSTANTIATE is not set");
        return;
    }
    let lib = std::env::var("NIXPKGS_LIB").ok();
    for question in questions() {
        let needs_lib = std::fs::read_to_string(&question).unwrap().lines().any(|l| l.starts_with("{ lib"));
        let mut command = Command::new(&program);
        command.current_dir(question.parent().unwrap()).args(["--eval", "--strict", "--json"]);
        command.arg(format!("./{}", question.file_name().unwrap().to_str().unwrap()));
        if std::env::var_os("NIX_REMOTE").is_none() {
            command.env("NIX_REMOTE", "dummy://");
        }
        match (&lib, needs_lib) {
            (Some(lib), true) => {
                command.args(["--arg", "lib", &format!("import {lib}")]);
            }
            (None, true) => {
                println!("skipped {}: NIXPKGS_LIB is not set", question.display());
                continue;
            }
            _ => {}
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(normal(ours(&question)), normal(theirs), "{}", question.display());
    }
}
