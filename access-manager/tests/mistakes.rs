//! What a person sees for each class of mistake, as a transcript: `tests/mistakes.txt`.
//!
//! After a deliberate change, `UPDATE=1 cargo nextest run -p access-manager --test mistakes` rewrites it; read the
//! difference as its reader would.

mod common;

use std::fmt::Write;

use access_manager::diag::Class::{self, *};
use access_manager::nix::Limits;
use access_manager::roster::{Evaluated, evaluate};
use access_manager::source::Memory;
use common::*;

struct Mistake {
    name: &'static str,
    class: Class,
    users: String,
    files: Vec<(&'static str, String)>,
}

fn mistake(name: &'static str, class: Class, users: impl Into<String>) -> Mistake {
    Mistake { name, class, users: users.into(), files: Vec::new() }
}

fn with_file(name: &'static str, class: Class, users: &str, file: &'static str, text: &str) -> Mistake {
    Mistake { name, class, users: users.into(), files: vec![(file, text.into())] }
}

// Put together here so that no scanner takes this file for a leak.
fn private_key() -> String {
    format!(
        "-----BEGIN OPENSSH {} KEY-----\nnot really one\n-----END OPENSSH {} KEY-----\n",
        "PRIVATE", "PRIVATE"
    )
}

fn mistakes() -> Vec<Mistake> {
    let keys = "./keys/alice.pub";
    let alice = format!("{{ alice.keys = {keys}; }}\n");
    let key = |text: &str| format!("{{\n  alice.keys = \"{text}\";\n}}\n");
    vec![
        mistake("missing semicolon", Syntax, "{\n  alice.keys = \"x\"\n  bob.keys = \"y\";\n}\n"),
        mistake("bracket never closed", Syntax, "{\n  alice = {\n    keys = [ \"x\" ;\n  };\n"),
        mistake("string never closed", Syntax, "{\n  alice.keys = \"ssh-ed25519 AAAA;\n}\n"),
        mistake("text after the end", Syntax, format!("{{ alice.keys = \"{A}\"; }}\n}}\n").replace(A, "x")),
        mistake("empty file", Syntax, "# nothing yet\n"),
        mistake("same member twice", Syntax, "{\n  alice.keys = \"x\";\n  alice.keys = \"y\";\n}\n"),
        mistake("unknown attribute", Roster, format!("{{\n  alice = {{\n    key = \"{A}\";\n  }};\n}}\n")),
        mistake(
            "right of an ordinary machine",
            Roster,
            format!("{{\n  alice = {{\n    keys = \"{A}\";\n    sudo = true;\n  }};\n}}\n"),
        ),
        mistake("unknown limit", Roster, "{\n  alice.limits.max-jobs = 2;\n}\n"),
        mistake("limit out of range", Roster, "{\n  alice.limits.maxJobs = 0;\n}\n"),
        mistake("limit of wrong type", Roster, "{\n  alice.limits.maxJobs = \"many\";\n}\n"),
        mistake("unknown setting", Roster, "{\n  alice.settings.keepGoing = true;\n}\n"),
        mistake("setting without effect", Roster, "{\n  alice.settings.cache-build-failures = true;\n}\n"),
        mistake("setting of wrong type", Roster, "{\n  alice.settings.timeout = \"1h\";\n}\n"),
        mistake("setting out of range", Roster, "{\n  alice.settings.timeout = -5;\n}\n"),
        mistake("names that no path has", Roster, "{\n  alice.settings.never-substitute = [ \"a/b\" ];\n}\n"),
        mistake(
            "settings of a key that is not there",
            Roster,
            format!(
                "{{\n  alice = {{\n    keys = \"{A}\";\n    keySettings.\"SHA256:x\".allow-shell = false;\n  }};\n}}\n"
            ),
        ),
        mistake("unknown role", Roster, "{\n  alice.role = \"admin\";\n}\n"),
        mistake("day that does not exist", Roster, "{\n  alice.expires = \"2027-02-30\";\n}\n"),
        mistake(
            "shares with nobody",
            Roster,
            format!(
                "{{\n  alice = {{\n    keys = \"{A}\";\n    shareWith = [ \"bbo\" ];\n  }};\n  bob.keys = \"{B}\";\n}}\n"
            ),
        ),
        mistake(
            "shares with somebody who left",
            Roster,
            format!("{{\n  alice = {{\n    keys = \"{A}\";\n    shareWith = [ \"carol\" ];\n  }};\n}}\n"),
        ),
        mistake("shares with itself", Roster, "{\n  alice.shareWith = [ \"alice\" ];\n}\n"),
        mistake("shareWith is no list", Roster, "{\n  alice.shareWith = \"bob\";\n}\n"),
        mistake(
            "unknown attribute of a roster",
            Roster,
            "{\n  users.alice.keys = \"x\";\n  group.ci.limits.maxJobs = 2;\n}\n",
        ),
        mistake("groups beside members", Roster, "{\n  groups.ci.limits.maxJobs = 2;\n}\n"),
        mistake(
            "unknown group",
            Roster,
            format!(
                "{{\n  users.alice = {{\n    keys = \"{A}\";\n    groups = [ \"cii\" ];\n  }};\n  groups.ci = {{ }};\n}}\n"
            ),
        ),
        mistake(
            "a limit that nobody can share",
            Roster,
            format!("{{\n  users.alice.keys = \"{A}\";\n  groups.ci.limits.maxBuildSeconds = 60;\n}}\n"),
        ),
        mistake(
            "unknown attribute of a group",
            Roster,
            format!("{{\n  users.alice.keys = \"{A}\";\n  groups.ci.member = [ \"alice\" ];\n}}\n"),
        ),
        mistake(
            "another unknown attribute of a group",
            Roster,
            format!("{{\n  users.alice.keys = \"{A}\";\n  groups.ci.weight = 3;\n}}\n"),
        ),
        mistake(
            "stranger in a group",
            Roster,
            format!("{{\n  users.alice.keys = \"{A}\";\n  groups.ci.members = [ \"alcie\" ];\n}}\n"),
        ),
        mistake(
            "unknown box",
            Roster,
            format!(
                "{{\n  hosts = [ \"box\" ];\n  users.alice = {{\n    keys = \"{A}\";\n    hosts = [ \"boxx\" ];\n  }};\n}}\n"
            ),
        ),
        mistake("no box at all", Roster, "{\n  alice.hosts = [ ];\n}\n"),
        mistake("vouches for itself", Roster, "{\n  alice.vouchedBy = \"alice\";\n}\n"),
        mistake("keys of wrong type", Roster, "{\n  alice.keys = 5;\n}\n"),
        mistake("member is a path", Roster, "{\n  alice = ./keys/alice.pub;\n}\n"),
        mistake("member without keys", Roster, "{\n  alice = { role = \"member\"; };\n}\n"),
        mistake("empty list of keys", Roster, "{\n  alice.keys = [ ];\n}\n"),
        mistake("not a roster", Roster, "42\n"),
        mistake("invalid name", Roster, "{\n  \"alice smith\" = { };\n}\n"),
        mistake("name too long", Roster, format!("{{\n  {} = {{ }};\n}}\n", "a".repeat(33))),
        mistake(
            "names that differ in case",
            Roster,
            format!("{{\n  Alice.keys = \"{A}\";\n  alice.keys = \"{B}\";\n}}\n"),
        ),
        mistake("listed member without name", Roster, "[\n  { keys = ./keys/alice.pub; }\n]\n"),
        mistake("key file missing", File, &*alice),
        with_file("key file is a directory", File, "{ alice.keys = ./keys; }\n", "keys/alice.pub", A),
        with_file("key file empty", Key, &alice, "keys/alice.pub", "# no key yet\n"),
        with_file("key cut off", Key, &alice, "keys/alice.pub", &format!("# laptop\n{}\n", &A[..50])),
        mistake(
            "path leaves the repository",
            Outside,
            "{\n  alice.keys = ../../home/alice/.ssh/id_ed25519.pub;\n}\n",
        ),
        mistake(
            "space in a path",
            Syntax,
            "{ lib, ... }:\nlib.genAttrs [ \"alice\" ] (name: {\n  keys = ./keys ${name}.pub;\n})\n",
        ),
        mistake("absolute path", Outside, "{\n  alice.keys = /etc/ssh/alice.pub;\n}\n"),
        mistake("path in home", Unsupported, "{\n  alice.keys = ~/.ssh/id_ed25519.pub;\n}\n"),
        mistake(
            "absolute path as text",
            Outside,
            "{\n  alice.keys = builtins.readFile \"/etc/passwd\";\n}\n",
        ),
        mistake(
            "infinite recursion",
            Recursion,
            "rec {\n  alice.keys = bob.keys;\n  bob.keys = alice.keys;\n}\n",
        ),
        mistake(
            "too many steps",
            Limit,
            "let\n  big = builtins.genList (x: x) 5000;\nin\n{\n  alice.keys = builtins.any (x: builtins.elem (-1 - x) big) big;\n}\n",
        ),
        mistake("member of a list is a path", Roster, "[\n  ./keys/alice.pub\n]\n"),
        mistake("too deep", Limit, "let f = n: f (n + 1) + 1; in { alice.keys = f 0; }\n"),
        mistake(
            "too much text",
            Limit,
            "let f = n: s: if n == 0 then s else f (n - 1) (s + s); in { alice.keys = f 60 \"ssh-ed25519\"; }\n",
        ),
        mistake("too many values", Limit, "{ alice.keys = builtins.genList (x: \"x\") 1000000000000; }\n"),
        mistake("nested too deeply", Limit, format!("{}{}\n", "[".repeat(5000), "]".repeat(5000))),
        mistake(
            "undefined name",
            Undefined,
            "let\n  alicesKey = \"x\";\nin\n{\n  alice.keys = aliceKey;\n}\n",
        ),
        mistake(
            "undefined attribute",
            Undefined,
            "let\n  keys = { alice = \"x\"; };\nin\n{\n  alice.keys = keys.alise;\n}\n",
        ),
        mistake("lib without argument", Undefined, "{\n  alice.keys = lib.concatStrings [ ];\n}\n"),
        mistake("calls a string", Type, "{\n  alice.keys = \"x\" \"y\";\n}\n"),
        mistake("wrong type to lib", Type, "{ lib, ... }:\n{\n  alice.keys = lib.splitString \",\" 5;\n}\n"),
        mistake("search path", Unsupported, "with import <nixpkgs/lib>;\n{ }\n"),
        mistake(
            "fetches",
            Unsupported,
            "{\n  alice.keys = builtins.fetchurl \"https://example.org/alice.keys\";\n}\n",
        ),
        mistake("environment", Unsupported, "{\n  alice.keys = builtins.getEnv \"KEY\";\n}\n"),
        mistake("a package", Undefined, "{ pkgs, ... }:\n{\n  alice.keys = pkgs.hello;\n}\n"),
        mistake(
            "the system's configuration",
            Unsupported,
            "{ config, ... }:\n{\n  alice.keys = config.x;\n}\n",
        ),
        mistake("throws", Thrown, "{\n  alice.keys = throw \"alice has left\";\n}\n"),
        mistake("assertion", Thrown, "{\n  alice.keys = assert 1 > 2; \"x\";\n}\n"),
        mistake(
            "private key",
            Key,
            format!("{{\n  alice.keys = ''\n    {}  '';\n}}\n", private_key().replace('\n', "\n    ")),
        ),
        with_file("private key in a file", Key, &alice, "keys/alice.pub", &private_key()),
        mistake("weak rsa", Key, key(RSA_1024)),
        mistake("dsa", Key, key(DSA)),
        mistake(
            "unknown key type",
            Key,
            key("ssh-ed25591 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl"),
        ),
        mistake("key type missing", Key, key(A.split(' ').nth(1).unwrap())),
        mistake("key missing", Key, key("ssh-ed25519")),
        mistake("certificate", Key, key("ssh-ed25519-cert-v01@openssh.com AAAA")),
        mistake("option for one command", Key, key(&format!("command=\\\"make\\\",no-pty {A}"))),
        mistake("host names in from", Key, key(&format!("from=\\\"*.example.org\\\" {A}"))),
        mistake("time that does not exist", Key, key(&format!("expiry-time=\\\"20270230\\\" {A}"))),
        mistake("principals of no authority", Key, key(&format!("principals=\\\"alice\\\" {A}"))),
        mistake("two keys on one line", Key, key(&format!("{A} alice@home{B} alice@work"))),
        mistake("path put into a string", Unsupported, "{\n  alice.keys = \"${./keys/alice.pub}\";\n}\n"),
    ]
}

#[test]
fn every_mistake_is_told_with_its_place_and_a_way_out() {
    let mut transcript = String::new();
    for m in mistakes() {
        let mut files = Memory::with(&[("users.nix", &m.users)]);
        for (name, text) in &m.files {
            files.0.insert((*name).into(), text.clone().into_bytes());
        }
        let refused = evaluate(files, "users.nix", Limits::default()).and_then(Evaluated::strict);
        let error = refused.expect_err(m.name);
        assert_eq!(error.class, m.class, "{}: {error}", m.name);
        if !matches!(m.name, "not a roster" | "empty file") {
            assert!(error.at.is_some(), "{} has no position: {error}", m.name);
        }
        writeln!(transcript, "## {}\n{error}\n", m.name).unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mistakes.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &transcript).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    for (ours, theirs) in transcript.split("## ").zip(recorded.split("## ")) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(transcript.len(), recorded.len());
}

#[test]
fn a_private_key_is_never_repeated_in_the_message() {
    for m in mistakes().iter().filter(|m| m.name.starts_with("private key")) {
        let mut files = Memory::with(&[("users.nix", &m.users)]);
        files.0.extend(m.files.iter().map(|(n, t)| ((*n).into(), t.clone().into_bytes())));
        let text = evaluate(files, "users.nix", Limits::default()).unwrap_err().to_string();
        assert!(text.contains("PRIVATE") && !text.contains("not really one"), "{text}");
    }
}
