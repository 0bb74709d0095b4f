//! `access-manager import` through the program: what it prints and writes, and that it overwrites nothing.

mod common;

use std::path::Path;
use std::process::Command;

use common::*;

fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_access-manager"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const MODULE: &str = r#"{ config, pkgs, ... }:
let users = [
  { name = "carol"; trusted = true; shell = pkgs.zsh; keys = ./keys/carol; }
  { name = "dora"; keys = ./keys/dora; }
  { name = "dora-untrusted"; keys = ./keys/dora; }
]; in {
  users.users = builtins.listToAttrs (map (u: { inherit (u) name; value = {
    extraGroups = if u.trusted or false then [ "trusted" ] else [ ];
    shell = u.shell or config.users.defaultUserShell;
    openssh.authorizedKeys.keyFiles = [ u.keys ];
  }; }) users);
}
"#;

fn community() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("keys")).unwrap();
    for (name, text) in
        [("users.nix", MODULE), ("keys/carol", A), ("keys/dora", &*format!("# two\n{B} d\n{ECDSA_256}"))]
    {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// `roster.json` without the name of the file.
fn roster(folder: &Path, file: &str) -> serde_json::Value {
    let (code, json, errors) = run(folder, &["eval", "--json", "--strict", file]);
    assert_eq!(code, 0, "{errors}");
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["source"] = "".into();
    json
}

#[test]
fn a_communitys_module_becomes_a_set_of_members_with_the_same_key_files() {
    let folder = community();
    let before = roster(folder.path(), "users.nix");
    let (code, printed, errors) = run(folder.path(), &["import"]);
    assert_eq!(code, 0, "{errors}");
    assert!(printed.contains("  carol = {\n    keys = ./keys/carol;\n  };\n\n  dora = {\n"), "{printed}");
    assert!(errors.contains("`dora` and `dora-untrusted` have the same key"), "{errors}");
    assert_eq!(
        std::fs::read_to_string(folder.path().join("users.nix")).unwrap(),
        MODULE,
        "printing changes nothing"
    );

    let (code, _, errors) = run(folder.path(), &["import", "--out", "new"]);
    assert!(code == 0 && errors.contains("the same 3 members"), "{errors}");
    let copy = std::fs::read_to_string(folder.path().join("new/keys/dora-untrusted.pub")).unwrap();
    assert_eq!(copy, format!("# two\n{B} d\n{ECDSA_256}"));
    assert_eq!(roster(&folder.path().join("new"), "users.nix"), before);
    let (code, _, errors) = run(folder.path(), &["import", "--out", "new"]);
    assert!(code == 1 && errors.contains("choose a new folder for --out"), "{errors}");

    assert_eq!(run(folder.path(), &["import", "--write", "users.nix"]).0, 0);
    assert_eq!(std::fs::read_to_string(folder.path().join("users.nix")).unwrap(), printed);
    assert_eq!(roster(folder.path(), "users.nix"), before);
    let (code, text, _) = run(folder.path(), &["check", "users.nix"]);
    assert!(code == 0 && text.matches("warning").count() == 2, "only the key of two members is told: {text}");
}

#[test]
fn a_roster_with_a_mistake_is_left_as_it_is() {
    let folder = community();
    let wrong = format!("{{ a.keys = \"{A}\"; b.key = \"{B}\"; }}");
    std::fs::write(folder.path().join("users.nix"), &wrong).unwrap();
    let (code, out, errors) = run(folder.path(), &["import", "--write"]);
    assert_eq!((code, out.as_str()), (5, ""));
    assert!(errors.contains("did you mean `keys`?") && errors.contains("correct them first"), "{errors}");
    assert_eq!(std::fs::read_to_string(folder.path().join("users.nix")).unwrap(), wrong);
    assert_eq!(run(folder.path(), &["import", "--write", "--out", "x"]).0, 2);
    assert_eq!(run(folder.path(), &["import", "nowhere.nix"]).0, 1);
}
