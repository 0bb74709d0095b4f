//! The workflow files in `examples/roster-ci` do what they say: their own lines run here, with a real git, on a repository
//! that has a pull request as the forge would have it.
//!
//! Not here: the forges themselves, and building `access-manager` from its repository, which needs the network.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::*;

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/roster-ci").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of the block after the comment that says that they are run here.
fn tested_lines(workflow: &str) -> String {
    let mut lines =
        workflow.lines().skip_while(|line| !line.contains("tests/workflows.rs runs these lines")).skip(1);
    let opening = lines.next().expect("a block after the comment");
    assert!(matches!(opening.trim(), "run: |" | "- |"), "{opening}");
    let indent = |line: &str| line.len() - line.trim_start().len();
    let block: Vec<&str> = lines.take_while(|line| indent(line) > indent(opening)).collect();
    let margin = indent(block.first().expect("a line"));
    block.iter().map(|line| format!("{}\n", &line[margin..])).collect()
}

struct Forge {
    dir: tempfile::TempDir,
}

impl Forge {
    /// `owner/roster.git` with a branch and a pull request 7.
    fn new(main: &[(&str, &str)], change: &[(&str, &str)], main_after: &[(&str, &str)]) -> Forge {
        let forge = Forge { dir: tempfile::tempdir().unwrap() };
        let work = forge.dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        forge.git(&["init", "--quiet", "--initial-branch=main"]);
        forge.commit(main);
        forge.git(&["checkout", "--quiet", "-b", "change"]);
        forge.commit(change);
        forge.git(&["checkout", "--quiet", "main"]);
        forge.commit(main_after);
        forge.git(&["clone", "--quiet", "--bare", ".", "../owner/roster.git"]);
        for place in ["refs/pull/7/head", "refs/merge-requests/7/head"] {
            forge.git(&["push", "--quiet", "../owner/roster.git", &format!("change:{place}")]);
        }
        forge.git(&["push", "--quiet", "../owner/roster.git", ":refs/heads/change"]);
        forge
    }

    fn git(&self, arguments: &[&str]) {
        let mut command = Command::new("git");
        command.current_dir(self.dir.path().join("work")).args(arguments);
        for (name, value) in clean_environment(self.dir.path()) {
            command.env(name, value);
        }
        for who in ["GIT_AUTHOR", "GIT_COMMITTER"] {
            command.env(format!("{who}_NAME"), "t").env(format!("{who}_EMAIL"), "t@example.org");
        }
        let output = command.output().expect("git");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn commit(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.dir.path().join("work").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "change"]);
    }

    /// Runs the lines as the runner of the forge would: in an empty folder, with its variables.
    fn run(&self, workflow: &str) -> (Output, String) {
        let folder = tempfile::tempdir_in(self.dir.path()).unwrap();
        let summary = folder.path().join("roster-check.md");
        let server = format!("file://{}", self.dir.path().display());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_access-manager"));
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .current_dir(folder.path())
            .env_clear()
            .envs(clean_environment(self.dir.path()))
            .env("PATH", path)
            .env("GITHUB_SERVER_URL", &server)
            .env("GITHUB_REPOSITORY", "owner/roster")
            .env("GITHUB_STEP_SUMMARY", &summary)
            .env("NUMBER", "7")
            .env("CI_MERGE_REQUEST_PROJECT_URL", format!("{server}/owner/roster"))
            .env("CI_MERGE_REQUEST_IID", "7")
            .env("CI_PROJECT_DIR", folder.path())
            .args(["-e", "-c", &tested_lines(&example(workflow))])
            .output()
            .unwrap();
        let report = std::fs::read_to_string(summary).unwrap_or_default();
        let report = report + &String::from_utf8_lossy(&output.stdout);
        (output, report)
    }
}

/// No configuration of the machine takes part.
fn clean_environment(home: &Path) -> [(&'static str, std::ffi::OsString); 3] {
    [("HOME", home.into()), ("GIT_CONFIG_NOSYSTEM", "1".into()), ("XDG_CONFIG_HOME", home.into())]
}

const WORKFLOWS: [&str; 3] = ["github.yml", "forgejo.yml", "gitlab.yml"];

fn alice() -> String {
    format!("{{\n  alice.keys = \"{A} alice\";\n}}\n")
}

#[test]
fn a_sound_change_passes_and_the_report_says_what_it_does() {
    let both = format!("{{\n  alice.keys = \"{A} alice\";\n  bob.keys = ./keys/bob.pub;\n}}\n");
    let forge = Forge::new(
        &[("users.nix", &alice())],
        &[("users.nix", &both), ("keys/bob.pub", B)],
        &[("README.md", "main went on meanwhile")],
    );
    for workflow in WORKFLOWS {
        let (output, report) = forge.run(workflow);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{workflow}: {errors}{report}");
        let said = report.to_lowercase();
        assert!(
            said.contains("grants `bob` 1 key, with the limits of the box: sha256:"),
            "{workflow}: {report}"
        );
        assert!(!said.contains("alice`"), "{workflow}: {report}");
    }
}

#[test]
fn a_mistake_fails_the_job_and_is_shown_with_its_line() {
    let wrong = "{\n  alice.key = \"x\";\n}\n";
    let forge = Forge::new(&[("users.nix", &alice())], &[("users.nix", wrong)], &[]);
    for workflow in WORKFLOWS {
        let (output, report) = forge.run(workflow);
        assert_eq!(output.status.code(), Some(1), "{workflow}: {report}");
        assert!(report.contains("did you mean `keys`?"), "{workflow}: {report}");
        assert!(report.contains("users.nix:2:9"), "{workflow}: {report}");
    }
}

#[test]
fn what_is_wrong_only_after_the_merge_fails_the_job() {
    let entries = |names: &[&str]| -> Vec<(String, String)> {
        names
            .iter()
            .map(|name| (format!("members/{name}.nix"), format!("{{ keys = \"{A} {name}\"; }}")))
            .collect()
    };
    let users = "{ lib, ... }: lib.mapAttrs' (file: _: lib.nameValuePair (lib.removeSuffix \".nix\" file) \
                 (import (./members + \"/${file}\"))) (builtins.readDir ./members)";
    let files = |entries: &[(String, String)]| -> Vec<(String, String)> {
        let mut all = vec![("users.nix".to_owned(), users.to_owned())];
        all.extend_from_slice(entries);
        all
    };
    fn borrowed(files: &[(String, String)]) -> Vec<(&str, &str)> {
        files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }
    let (main, change, after) =
        (files(&entries(&["alice"])), files(&entries(&["Bob"])), files(&entries(&["bob"])));
    let forge = Forge::new(&borrowed(&main), &borrowed(&change), &borrowed(&after));
    for workflow in WORKFLOWS {
        let (output, report) = forge.run(workflow);
        assert_eq!(output.status.code(), Some(1), "{workflow}: {report}");
        assert!(report.contains("there are two members named `bob`"), "{workflow}: {report}");
    }
}

#[test]
fn the_jobs_ask_for_no_secrets_and_no_rights() {
    for workflow in WORKFLOWS {
        let text = example(workflow);
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        for word in ["secrets", "pull_request_target", "write", "TOKEN", "uses:"] {
            assert!(!code.contains(word), "{workflow} has {word}");
        }
    }
    assert!(example("github.yml").contains("\npermissions:\n  contents: read\njobs:"));
}
