//! Paths are copied to the box and back.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use e2e::clients::{Nix, Protocol, Stock, Version};
use e2e::process::{self, Transcript};
use serde_json::Value;

use crate::Alice;

pub fn the_store_answers_who_it_is(stock: Stock) {
    let alice = Alice::with(stock);
    let verb = if stock.version == Version::V2_8 { "ping" } else { "info" };
    let said = alice.nix.run(["store", verb, "--store", alice.nix.store()]).ok();
    // The serve protocol has no field for the version; there only the handshake is tested.
    if stock.protocol == Protocol::SshNg {
        // The versions differ in the stream that they print it to.
        assert!(format!("{said}").contains("Version: barnraiser-"), "{said}");
    }
}

pub fn a_copied_tree_comes_back_byte_for_byte(stock: Stock) {
    let alice = Alice::with(stock);
    make_tree(&alice.nix.home().join("tree"));
    let path = alice.nix.run(["store", "add-path", "./tree", "--name", "tree"]).ok().answer().to_owned();
    alice.nix.run(["copy", "--to", alice.nix.store(), &path]).ok();

    let other = alice.other_machine();
    other.run(["copy", "--from", other.store(), &path]).ok();
    assert_eq!(other.hash_path(&path), alice.nix.hash_path(&path), "the hash of {path}");
    // The hash is the proof; these checks show which kinds of files were compared.
    let copy = other.local(&path);
    assert_eq!(std::fs::read_to_string(copy.join("größe/日本語")).expect("a unicode name"), "東京");
    assert_eq!(
        std::fs::read_link(copy.join("nowhere")).expect("a dangling link"),
        Path::new("/does/not/exist")
    );
    let mode = std::fs::metadata(copy.join("bin/run")).expect("a program").permissions().mode();
    assert_ne!(mode & 0o111, 0, "bin/run can be executed");
}

pub fn a_closure_is_copied_with_its_references(stock: Stock) {
    let alice = Alice::with(stock);
    let path = three_texts(&alice.nix);
    alice.nix.run(["copy", "--to", alice.nix.store(), &path]).ok();
    let other = alice.other_machine();
    let closure = |mut ask: std::process::Command| {
        let mut paths: Vec<String> = process::run(&mut ask).ok().stdout.lines().map(str::to_owned).collect();
        paths.sort();
        paths
    };
    let local = |nix: &Nix| {
        let mut ask = nix.command("nix-store");
        ask.args(["--query", "--requisites", &path]);
        ask
    };
    let at_home = closure(local(&alice.nix));
    assert_eq!(at_home.len(), 3, "{at_home:?}");
    assert_eq!(closure(other.closure_at_box(&path)), at_home);
    other.run(["copy", "--from", other.store(), &path]).ok();
    assert_eq!(closure(local(&other)), at_home);
}

pub fn path_info_says_what_the_client_knows_about_the_same_path(stock: Stock) {
    let alice = Alice::with(stock);
    let path = three_texts(&alice.nix);
    alice.nix.run(["copy", "--to", alice.nix.store(), &path]).ok();
    let here = info(&alice.nix.run(["path-info", "--json", &path]).ok());
    let there = info(&alice.nix.run(["path-info", "--json", "--store", alice.nix.store(), &path]).ok());
    for field in ["narHash", "narSize", "references", "ca"] {
        assert_eq!(there[field], here[field], "{field} in {there}");
        assert!(!here[field].is_null(), "{field} in {here}");
    }
    assert!(there["references"].as_array().is_some_and(|paths| paths.len() == 2), "{there}");
}

/// Every kind of entry that a NAR can have, with sizes and names that are error-prone.
fn make_tree(tree: &Path) {
    for dir in ["bin", "größe", "empty", "deep/er/still"] {
        std::fs::create_dir_all(tree.join(dir)).expect("a folder");
    }
    let noise: Vec<u8> = (0u32..300_001).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (name, contents) in [
        ("bin/run", &b"#!/bin/sh\necho hello\n"[..]),
        ("größe/日本語", "東京".as_bytes()),
        ("größe/\u{65}\u{301}", b"a combining accent"),
        ("größe/\u{e9}", b"the same letter in one piece"),
        ("nothing", b""),
        ("one block", &noise[..4096]),
        ("one more", &noise[..4097]),
        ("noise.bin", &noise),
        ("deep/er/still/-dash $dollar 'quote'", b"x"),
        (".hidden", b"y"),
    ] {
        std::fs::write(tree.join(name), contents).expect("a file");
    }
    std::fs::set_permissions(tree.join("bin/run"), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    symlink("../bin/run", tree.join("deep/link")).expect("a link");
    symlink("/does/not/exist", tree.join("nowhere")).expect("a link");
}

/// A text that refers to two others.
fn three_texts(nix: &Nix) -> String {
    let expression = r#"let a = builtins.toFile "a" "first"; b = builtins.toFile "b" "second";
        in builtins.toFile "c" "${a} and ${b}""#;
    nix.run(["eval", "--raw", "--expr", expression]).ok().answer().to_owned()
}

/// The one path info in `nix path-info --json`: in a list in old versions, in an object by path in newer
/// ones.
fn info(said: &Transcript) -> Value {
    let all: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("no JSON ({e}):\n{said}"));
    match &all {
        Value::Array(list) => list[0].clone(),
        Value::Object(by_path) => by_path
            .get("info")
            .unwrap_or(&all)
            .as_object()
            .expect("an object")
            .values()
            .next()
            .expect("a path")
            .clone(),
        _ => panic!("neither a list nor an object:\n{said}"),
    }
}
