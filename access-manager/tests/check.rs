//! `access-manager check` and `export` through the program, on real repositories: what is compared, exit codes, formats.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::*;
use serde_json::Value;

struct Repo {
    dir: tempfile::TempDir,
}

impl Repo {
    fn new() -> Repo {
        let repo = Repo { dir: tempfile::tempdir().unwrap() };
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        repo
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn git(&self, arguments: &[&str]) {
        let mut command = Command::new("git");
        command.current_dir(self.path()).args(arguments);
        command.env("HOME", self.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["GIT_AUTHOR", "GIT_COMMITTER"] {
            command.env(format!("{who}_NAME"), "t").env(format!("{who}_EMAIL"), "t@example.org");
        }
        let output = command.output().expect("git");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn commit(&self, files: &[(&str, &str)]) {
        files.iter().for_each(|(name, text)| self.write(name, text));
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "change"]);
    }

    /// Exit code, stdout, stderr.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_access-manager"))
            .current_dir(self.path())
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn check(&self, more: &[&str]) -> (i32, String, String) {
        self.run(&[&["check"], more].concat())
    }

    fn json(&self, more: &[&str]) -> (i32, Value) {
        let (code, out, errors) = self.check(&[&["--format", "json"], more].concat());
        let json = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{errors}"));
        (code, json)
    }
}

fn alice() -> String {
    format!("{{\n  alice.keys = \"{A} alice@laptop\";\n}}\n")
}

fn kinds(json: &Value) -> Vec<&str> {
    json["changes"].as_array().unwrap().iter().map(|change| change["kind"].as_str().unwrap()).collect()
}

#[test]
fn the_change_is_what_happened_since_the_branch_left_its_base() {
    let repo = Repo::new();
    repo.commit(&[("users.nix", &alice())]);
    repo.git(&["checkout", "--quiet", "-b", "change"]);
    let both = format!("{{\n  alice.keys = \"{A} alice@laptop\";\n  bob.keys = \"{B}\";\n}}\n");
    repo.commit(&[("users.nix", &both)]);
    // What others merged meanwhile is not part of it.
    repo.git(&["checkout", "--quiet", "main"]);
    let carol = format!("{{\n  alice.keys = \"{A} alice@laptop\";\n  carol.keys = \"{ECDSA_256}\";\n}}\n");
    repo.commit(&[("users.nix", &carol)]);
    repo.git(&["tag", "v1"]);
    repo.git(&["checkout", "--quiet", "change"]);
    for base in ["main", "v1", "main~1"] {
        let (code, json) = repo.json(&["--base", base]);
        assert_eq!((code, kinds(&json)), (0, vec!["adds-member"]), "{base}: {json:#}");
        assert_eq!(json["changes"][0]["member"], "bob");
        assert_eq!(json["base"]["problem"], Value::Null);
    }
    // Changes that are not committed yet count, too.
    repo.write("users.nix", &both.replace("bob.keys", "bob.limits.maxJobs = 3;\n  bob.keys"));
    let (_, text, _) = repo.check(&["--base", "main"]);
    assert!(text.contains("  - grants `bob` 1 key, up to 3 builds at a time: SHA256:"), "{text}");
    let (code, text, errors) = repo.check(&["--base", "HEAD~1", "--bound", "maxJobs=2"]);
    assert_eq!(code, 1, "{text}{errors}");
    assert!(
        text.starts_with("error: `maxJobs` of `bob` is 3; at most 2 builds are given to one member here"),
        "{text}"
    );
    repo.write("users.nix", &alice());
    let (code, text, _) = repo.check(&["--base", "main"]);
    assert_eq!(code, 0);
    assert!(text.contains("\n  changes nobody's access.\n\n`users.nix`: fine (1 member)\n"), "{text}");
    // Without a base there is nothing to compare.
    let (code, json) = repo.json(&["users.nix"]);
    assert_eq!(
        (code, &json["changes"], &json["base"], &json["verdict"]),
        (0, &Value::Null, &Value::Null, &"fine".into())
    );
}

#[test]
fn a_base_without_a_roster_that_can_be_read_makes_everybody_new() {
    let repo = Repo::new();
    repo.commit(&[("README", "x")]);
    repo.commit(&[("users.nix", "{ alice.keys = \n")]);
    repo.commit(&[("users.nix", &alice())]);
    for (base, problem) in
        [("HEAD~2", "there is no `users.nix` in it"), ("HEAD~1", "its roster is refused: ")]
    {
        let (code, json) = repo.json(&["--base", base]);
        assert_eq!((code, kinds(&json)), (0, vec!["adds-member"]), "{json:#}");
        assert!(json["base"]["problem"].as_str().unwrap().starts_with(problem), "{json:#}");
    }
}

#[test]
fn a_mistake_is_refused_and_what_was_there_before_is_told_apart() {
    let repo = Repo::new();
    let unsorted = format!("{{\n  bob.keys = \"{B}\";\n  alice.keys = \"{A}\";\n}}\n");
    repo.commit(&[("users.nix", &unsorted)]);
    let wrong = unsorted.replace("alice.keys", "alice.expires = \"2027-02-30\";\n  alice.keys");
    repo.commit(&[("users.nix", &wrong), ("keys/carol.pub", ECDSA_256)]);
    let (code, json) = repo.json(&["--base", "HEAD~1"]);
    assert_eq!((code, kinds(&json), &json["verdict"]), (1, vec!["leaves-out-member"], &"refused".into()));
    let findings: Vec<(&str, bool)> = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| (finding["kind"].as_str().unwrap(), finding["old"].as_bool().unwrap()))
        .collect();
    // Nobody knows where `alice` belongs while her entry is wrong.
    assert_eq!(findings, [("roster", false), ("unused-key-file", false)], "{json:#}");
    repo.commit(&[("users.nix", "{ alice.keys = ")]);
    let (code, text, _) = repo.check(&["--base", "HEAD~2"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains(
            "  is refused, so the box would keep the roster it has.\n\n`users.nix`: refused (1 error)\n"
        ),
        "{text}"
    );
    repo.commit(&[("users.nix", &unsorted)]);
    repo.commit(&[("users.nix", &unsorted.replace("bob.keys", "bob.role = \"maintainer\";\n  bob.keys"))]);
    let (code, json) = repo.json(&["--base", "HEAD~1"]);
    assert_eq!((code, kinds(&json)), (0, vec!["changes-role"]));
    assert_eq!(
        (&json["findings"][0]["kind"], &json["findings"][0]["old"]),
        (&"order".into(), &true.into()),
        "{json:#}"
    );
}

#[test]
fn what_cannot_be_checked_is_no_verdict() {
    let repo = Repo::new();
    for (arguments, said) in [
        (&["nowhere.nix"][..], "cannot open nowhere.nix"),
        (&["--format", "yaml"], "invalid value 'yaml'"),
        (&["--bound", "maxJob=1"], "did you mean `maxJobs`?"),
    ] {
        let (code, out, errors) = repo.check(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{errors}");
        assert!(errors.contains(said), "{errors}");
    }
    repo.write("users.nix", &alice());
    let (code, _, errors) = repo.check(&["--base", "main"]);
    assert!(code == 2 && errors.contains("there is no commit `main`"), "{errors}");
    repo.commit(&[]);
    let (code, _, errors) = repo.check(&["--base", "origin/main"]);
    assert!(code == 2 && errors.contains("fetch-depth: 0"), "{errors}");
    repo.git(&["checkout", "--quiet", "--orphan", "other"]);
    repo.commit(&[("README", "another history")]);
    let (code, _, errors) = repo.check(&["--base", "main"]);
    assert!(code == 2 && errors.contains("have no common ancestor here"), "{errors}");
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("users.nix"), alice()).unwrap();
    let file = outside.path().join("users.nix");
    let (code, _, errors) = repo.check(&["--base", "main", file.to_str().unwrap()]);
    assert!(code == 2 && errors.contains("--base needs a git repository around the roster"), "{errors}");
    assert_eq!(repo.check(&[file.to_str().unwrap()]).0, 0);
}

#[test]
fn thousands_of_new_members_are_reported_within_the_size_of_a_comment() {
    let repo = Repo::new();
    repo.commit(&[("users.nix", &alice())]);
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let entries: String = (0..7_000usize)
        .map(|i| {
            let digit = |shift: usize| digits[(i >> shift) & 63] as char;
            let key = A.replace("CZColV", &format!("CZC{}{}{}", digit(12), digit(6), digit(0)));
            format!("  m{i:04}.keys = \"{key} @everyone https://evil.example\";\n")
        })
        .collect();
    repo.commit(&[("users.nix", &format!("{{\n{entries}}}\n"))]);
    let (code, text, errors) = repo.check(&["--base", "HEAD~1", "--format", "markdown"]);
    assert_eq!(code, 0, "{errors}");
    assert!(text.len() < 60_000 && text.contains("- … and 6941 more\n"), "{}", text.len());
}

#[test]
fn a_site_may_ask_for_a_member_who_vouches_for_each_newcomer() {
    let repo = Repo::new();
    repo.commit(&[("users.nix", &alice())]);
    let with = |bob: &str| {
        format!("{{\n  alice.keys = \"{A} alice@laptop\";\n  bob = {{\n    keys = \"{B}\";{bob}\n  }};\n}}\n")
    };
    repo.commit(&[("users.nix", &with(""))]);
    let rule = ["--base", "HEAD~1", "--require-vouch"];
    let (code, text, _) = repo.check(&rule);
    assert!(
        code == 1 && text.starts_with("error: `bob` is new, and nobody vouches for them\n    hint: "),
        "{text}"
    );
    assert_eq!(repo.check(&rule[..2]).0, 0, "no site asks for it unless it says so");
    repo.commit(&[("users.nix", &with("\n    vouchedBy = \"alice\";"))]);
    let (code, text, _) = repo.check(&["--base", "HEAD~2", "--require-vouch"]);
    assert!(
        code == 0 && text.contains("with the limits of the box, vouched for by `alice`: SHA256:"),
        "{text}"
    );
    // Who is new cannot be seen without a base.
    assert_eq!(repo.check(&rule[2..]).0, 2);
}

#[test]
fn members_for_other_boxes_are_left_out_where_the_box_is_named() {
    let repo = Repo::new();
    let users = format!("{{ alice = {{ keys = \"{A}\"; hosts = [ \"mac\" ]; }}; bob.keys = \"{B}\"; }}");
    repo.commit(&[("users.nix", &users)]);
    let export = |more: &[&str]| repo.run(&[&["export", "--format", "authorized-keys"], more].concat());
    let (code, keys, errors) = export(&["--host", "box"]);
    assert!(code == 0 && !keys.contains(A) && keys.contains(B) && errors.is_empty(), "{keys}{errors}");
    let (_, keys, errors) = export(&["--host", "mac"]);
    assert!(keys.contains(A) && keys.contains(B) && errors.is_empty(), "{keys}{errors}");
    let (_, keys, errors) = export(&[]);
    assert!(keys.contains(A) && errors.contains("for some boxes only: `alice`"), "{errors}");
    let (_, json, _) = repo.run(&["eval", "--json", "--host", "box", "users.nix"]);
    assert!(!json.contains("alice") && json.contains("bob"), "{json}");
    let out = repo.path().join("roster.json");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (top, file, state) = (path(repo.path()), path(&out), path(&repo.path().join("state")));
    let sync = ["sync", "--repo", &top, "--out", &file, "--state-dir", &state];
    assert_eq!(repo.run(&[&sync[..], &["--host", "box"]].concat()).0, 0);
    assert!(!std::fs::read_to_string(&out).unwrap().contains("alice"));
    assert_eq!(repo.run(&sync).0, 0);
    assert!(std::fs::read_to_string(&out).unwrap().contains("alice"));
}

// --- export ------------------------------------------------------------------------------------------------------

#[test]
fn openssh_reads_every_exported_key() {
    let repo = Repo::new();
    let users = format!(
        "{{ a = {{ keys = [ \"{A} x\" \"{SK_ED25519}\" \"{SK_ECDSA}\" ]; expires = \"2040-01-31\"; }}; b.keys = [ \"{B}\" \
         \"from=\\\"192.0.2.0/24,!192.0.2.1\\\" {RSA_3072}\" ]; c.keys = \"cert-authority,principals=\\\"x,y\\\" {ECDSA_256}\"; }}"
    );
    repo.write("users.nix", &users);
    let (code, keys, errors) = repo.run(&["export", "--format", "authorized-keys"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    repo.write("authorized_keys", &keys);
    let Ok(output) = Command::new("ssh-keygen")
        .args(["-l", "-f"])
        .arg(repo.path().join("authorized_keys"))
        .stderr(Stdio::inherit())
        .output()
    else {
        println!("skipped: no ssh-keygen in PATH");
        return;
    };
    let listed = String::from_utf8(output.stdout).unwrap();
    let owners: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(owners, ["a", "a", "a", "b", "b", "c"], "{listed}");
}

#[test]
fn an_exported_module_is_a_roster_again_and_nix_reads_it() {
    let repo = Repo::new();
    let users = format!(
        "{{ a.keys = \"{A} x\"; b.keys = \"cert-authority,principals=\\\"\\${{x}}\\\" {B}\"; c.key = 1; }}"
    );
    repo.write("users.nix", &users);
    for format in ["nixos", "nix-darwin"] {
        let (code, module, errors) =
            repo.run(&["export", "--format", format, "--user", "builder", "users.nix"]);
        assert!(code == 0 && errors.contains("`c` has an unknown attribute `key`"), "{errors}");
        repo.write("module.nix", &module);
        let (code, table, errors) = repo.run(&["eval", "--strict", "module.nix"]);
        assert_eq!((code, errors.as_str()), (0, ""), "{module}");
        assert!(table.contains("\nbuilder ") && table.contains("1 member"), "{table}");
        let program = std::env::var_os("NIX_INSTANTIATE").unwrap_or_else(|| "nix-instantiate".into());
        match Command::new(program).args(["--parse", "module.nix"]).current_dir(repo.path()).output() {
            Ok(parsed) => assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr)),
            Err(_) => println!("skipped: no nix-instantiate in PATH and NIX_INSTANTIATE is not set"),
        }
    }
    assert_eq!(repo.run(&["export", "--format", "nixos", "--strict"]).0, 5);
    assert_eq!(repo.run(&["export", "--format", "nixos", "--user", "a b"]).0, 2);
    assert_eq!(repo.run(&["export", "--format", "nixos", "nowhere.nix"]).0, 1);
}
