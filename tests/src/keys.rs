//! Ssh keys of members.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{place, process};

/// An ed25519 key pair in a folder of its own.
pub struct Key {
    dir: TempDir,
    /// One line: type, base64 and comment.
    pub public: String,
}

impl Key {
    /// `owner` becomes the key's comment.
    pub fn new(owner: &str) -> Self {
        let dir = place::scratch("key");
        process::run(
            Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", owner, "-f"])
                .arg(dir.path().join("key")),
        )
        .ok();
        let public = std::fs::read_to_string(dir.path().join("key.pub")).expect("the public key");
        Self { dir, public: public.trim().to_owned() }
    }

    /// The folder of `key` and `key.pub`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn private(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// The OpenSSH client of this machine, which logs in with this key to a port of the loopback interface
    /// and runs `words` there. The key of a host that is known already must be the same.
    pub fn ssh(&self, port: u16, known_hosts: &Path, words: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "StrictHostKeyChecking=accept-new"])
            .args(["-o", &format!("UserKnownHostsFile={}", known_hosts.display())])
            .arg("-i")
            .arg(self.private())
            .args(["-p", &port.to_string(), "anyone@127.0.0.1"])
            .args(words)
            .env_remove("SSH_AUTH_SOCK");
        ssh
    }
}
