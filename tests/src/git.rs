//! A git repository with a roster, and the usual changes of it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::{place, process};

/// A repository whose branch is `main`.
pub struct Repository {
    dir: TempDir,
}

impl Repository {
    /// Starts with one commit that holds this `users.nix`.
    pub fn new(users: &str) -> Self {
        let repository = Self { dir: place::scratch("git") };
        repository.git(&["init", "-q", "-b", "main"]);
        repository.commit(users);
        repository
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a commit; returns its id.
    pub fn commit(&self, users: &str) -> String {
        std::fs::write(self.path().join("users.nix"), users).expect("users.nix");
        self.git(&["add", "users.nix"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "Change the roster"]);
        self.head()
    }

    /// Replaces the last commit, so that the branch no longer descends from it.
    pub fn rewrite(&self, users: &str) -> String {
        std::fs::write(self.path().join("users.nix"), users).expect("users.nix");
        self.git(&["add", "users.nix"]);
        self.git(&["commit", "-q", "--amend", "--allow-empty", "-m", "Another roster"]);
        self.head()
    }

    fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs git without the user's own configuration.
    fn git(&self, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.arg("-C").arg(self.path()).args(args);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "Test")
                .env(format!("GIT_{who}_EMAIL"), "test@example.org");
        }
        process::run(&mut command).ok().answer().to_owned()
    }
}
