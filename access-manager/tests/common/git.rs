//! A repository made with stock git, ssh-keygen and gpg, and the program that synchronises from it.
#![allow(dead_code)] // each test file uses some of it

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub struct Scene {
    pub dir: tempfile::TempDir,
}

impl Scene {
    /// A repository without commits, whose branch is main.
    pub fn new() -> Scene {
        let scene = Scene { dir: tempfile::tempdir().unwrap() };
        scene.git(&["init", "-q", "-b", "main", "."]);
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn repository(&self) -> PathBuf {
        self.path("roster")
    }

    /// Runs git without the user's own configuration; returns its output.
    pub fn git(&self, args: &[&str]) -> String {
        std::fs::create_dir_all(self.repository()).unwrap();
        let mut git = Command::new("git");
        git.arg("-C").arg(self.repository()).args(args);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        git.env("GNUPGHOME", self.path("gpg"));
        for who in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{who}_NAME"), "Test").env(format!("GIT_{who}_EMAIL"), "test@example.org");
        }
        ok(&mut git)
    }

    /// A commit with this roster, and with more options of git (before `commit`); returns its id.
    pub fn commit(&self, users: &str, options: &[&str]) -> String {
        std::fs::write(self.repository().join("users.nix"), users).unwrap();
        self.git(&["add", "users.nix"]);
        let args = [options, &["commit", "-q", "--allow-empty", "-m", "change"]].concat();
        self.git(&args);
        self.head()
    }

    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// Makes an ssh key; returns its public half.
    pub fn key(&self, name: &str, kind: &str) -> String {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", kind, "-N", "", "-C", name, "-f"]).arg(self.path(name));
        ok(&mut keygen);
        std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap().trim().to_owned()
    }

    /// Runs `access-manager sync`; returns its exit code and its messages.
    pub fn sync(&self, more: &[&str]) -> (i32, String) {
        self.sync_from(self.repository().to_str().unwrap(), more)
    }

    pub fn sync_from(&self, repo: &str, more: &[&str]) -> (i32, String) {
        let output: Output = self.command("sync", repo, more).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    pub fn command(&self, verb: &str, repo: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_access-manager"));
        command.args([verb, "--repo", repo, "--out"]).arg(self.path("roster.json"));
        command.arg("--state-dir").arg(self.path("state")).args(more);
        command
    }

    pub fn names(&self) -> Vec<String> {
        let text = std::fs::read(self.path("roster.json")).unwrap_or_else(|_| b"{\"members\":[]}".to_vec());
        let roster: serde_json::Value = serde_json::from_slice(&text).unwrap();
        roster["members"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    }
}

/// Options of git that sign with this ssh key.
pub fn signed(key: &Path) -> Vec<String> {
    let key = format!("user.signingkey={}", key.display());
    ["-c", "gpg.format=ssh", "-c", &key, "-c", "commit.gpgsign=true"].map(str::to_owned).to_vec()
}

pub fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
