//! A box with several members; each has machines with stock Nix, and raw sessions for messages that no stock
//! client sends.
//!
//! One member attacks, and the others check their own results. Every login is a real one: the OpenSSH client
//! of this machine with that member's key. Not here: the messages (`hostile`), and stock Nix (`clients`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::derivation::BasicDerivation;
use nix_derivation::{Output, StorePath};
use tempfile::TempDir;

use crate::agent::{Agent, Setup};
use crate::clients::{Nix, Stock};
use crate::hostile::{MINOR, Session, until};
use crate::keys::Key;
use crate::{PATIENCE, place, process};

/// The remote command for the worker protocol.
pub const WORKER: &[&str] = &["nix-daemon", "--stdio"];
/// The remote command for the serve protocol.
pub const SERVE: &[&str] = &["nix-store", "--serve", "--write"];

/// A box and its members.
pub struct SharedBox {
    pub agent: Agent,
    keys: BTreeMap<String, Key>,
    /// The folder of known hosts and of the lines' sockets.
    dir: TempDir,
}

impl SharedBox {
    /// A box with the default configuration.
    pub fn of(names: &[&str]) -> Self {
        Self::with(names, Setup::default())
    }

    pub fn with(names: &[&str], setup: Setup) -> Self {
        let keys: BTreeMap<String, Key> =
            names.iter().map(|name| ((*name).to_owned(), Key::new(name))).collect();
        let members: Vec<(&str, &Key)> = keys.iter().map(|(name, key)| (name.as_str(), key)).collect();
        let agent = setup.start(&members);
        Self { agent, keys, dir: place::scratch("shared-box") }
    }

    #[track_caller]
    pub fn key(&self, who: &str) -> &Key {
        self.keys.get(who).unwrap_or_else(|| panic!("{who} is no member"))
    }

    /// A new machine of this member, with an empty store.
    pub fn machine(&self, who: &str, stock: Stock) -> Nix {
        Nix::over(stock, &self.agent, self.key(who))
    }

    /// Sets the roster to these members only.
    pub fn keep_only(&self, names: &[&str]) {
        let members: Vec<(&str, &Key)> = names.iter().map(|name| (*name, self.key(name))).collect();
        self.agent.set_roster(&members);
    }

    /// Sets the roster with these `shareWith` lists; returns when the agent uses it.
    pub async fn share(&self, shares: &[(&str, &[&str])]) {
        let members: Vec<(&str, &Key)> = shares.iter().map(|(name, _)| (*name, self.key(name))).collect();
        let mut roster = crate::roster::roster(&members);
        for (n, (_, with)) in shares.iter().enumerate() {
            roster["members"][n]["share-with"] = serde_json::json!(with);
        }
        let before = self.agent.count("roster loaded");
        self.agent.set_roster_to(&roster);
        until("the roster to be loaded", || self.agent.count("roster loaded") > before).await;
    }

    /// Sets the roster with limits for this member, as in `roster.json`; returns when the agent uses it.
    pub async fn limit(&self, who: &str, limits: serde_json::Value) {
        let members: Vec<(&str, &Key)> = self.keys.iter().map(|(name, key)| (name.as_str(), key)).collect();
        let at = members.iter().position(|(name, _)| *name == who).expect("a member");
        let mut roster = crate::roster::roster(&members);
        roster["members"][at]["limits"] = limits;
        let before = self.agent.count("roster loaded");
        self.agent.set_roster_to(&roster);
        until("the roster to be loaded", || self.agent.count("roster loaded") > before).await;
    }

    /// A login of this member with `words` as the remote command.
    pub fn ssh(&self, who: &str, words: &[&str]) -> Command {
        self.ssh_at(who, self.agent.port(), words)
    }

    /// As [`SharedBox::ssh`], through the server on this port.
    pub fn ssh_at(&self, who: &str, port: u16, words: &[&str]) -> Command {
        self.key(who).ssh(port, &self.dir.path().join("known_hosts"), words)
    }

    /// A worker session of this member.
    pub async fn session(&self, who: &str) -> Session {
        Session::over(self.ssh(who, WORKER), MINOR).await
    }

    /// One connection that any number of sessions share, as with `ControlMaster`.
    pub fn line(&self, who: &str) -> Line {
        let socket = self.dir.path().join(format!("line-{who}"));
        let mut master = self.ssh(who, &[]);
        // The client accepts options after the host, too.
        master.args(["-M", "-N", "-S"]).arg(&socket).stdin(Stdio::null());
        let master = master.spawn().expect("ssh");
        let line = Line { socket, master };
        let deadline = std::time::Instant::now() + PATIENCE;
        while !process::run(&mut line.command(&["-O", "check"])).ok_or_not() {
            assert!(std::time::Instant::now() < deadline, "{who} cannot connect");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        line
    }
}

/// A connection kept open by an ssh master process. Dropping it closes the connection.
pub struct Line {
    socket: PathBuf,
    master: Child,
}

impl Line {
    /// One more session on this connection, with `words` as the remote command.
    pub fn ssh(&self, words: &[&str]) -> Command {
        // If the master is gone the session must fail, and not open a connection of its own.
        let mut ssh = self.command(&["-o", "ProxyCommand=false"]);
        ssh.args(words);
        ssh
    }

    fn command(&self, options: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-S"])
            .arg(&self.socket)
            .args(options)
            .arg("anyone@127.0.0.1")
            .env_remove("SSH_AUTH_SOCK");
        ssh
    }

    /// The process that owns the connection.
    pub fn pid(&self) -> u32 {
        self.master.id()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

/// A derivation without its input derivations, as `--builders` sends it: the sandbox's shell runs `script`,
/// and each output has the path that the client chose.
pub fn recipe(
    drv: &StorePath,
    outputs: &[(&str, &StorePath)],
    inputs: &[&StorePath],
    script: &str,
) -> (StorePath, BasicDerivation) {
    let paths =
        outputs.iter().map(|(name, path)| (name.as_bytes().to_vec(), path.to_absolute_path().into_bytes()));
    let derivation = BasicDerivation {
        outputs: outputs
            .iter()
            .map(|(name, path)| ((*name).to_owned(), Output::InputAddressed { path: (*path).clone() }))
            .collect(),
        input_sources: inputs.iter().map(|path| (*path).clone()).collect::<BTreeSet<_>>(),
        system: format!("{}-linux", std::env::consts::ARCH).into(),
        builder: "/bin/sh".into(),
        args: vec!["-ec".into(), script.into()],
        env: paths.collect(),
    };
    (drv.clone(), derivation)
}
