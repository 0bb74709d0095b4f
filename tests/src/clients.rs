//! Stock Nix clients: three versions, each with a store and a home of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::agent::Agent;
use crate::keys::Key;
use crate::process::{self, Running, Transcript};
use crate::{place, suite};

/// The versions Debian ships, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian bookworm; worker protocol 1.34.
    V2_8,
    /// Debian trixie; worker protocol 1.38.
    V2_26,
    /// Debian sid; worker protocol 1.38.
    V2_34,
}

impl Version {
    pub const ALL: [Version; 3] = [Version::V2_8, Version::V2_26, Version::V2_34];

    /// The name in `tests/scripts/nix-client`.
    pub fn name(self) -> &'static str {
        match self {
            Version::V2_8 => "2.8",
            Version::V2_26 => "2.26",
            Version::V2_34 => "2.34",
        }
    }
}

/// The two kinds of stores behind ssh in stock Nix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `ssh-ng://`: the worker protocol, behind `nix-daemon --stdio`.
    SshNg,
    /// `ssh://`: the serve protocol, behind `nix-store --serve --write`.
    Ssh,
}

impl Protocol {
    pub fn scheme(self) -> &'static str {
        match self {
            Protocol::SshNg => "ssh-ng",
            Protocol::Ssh => "ssh",
        }
    }
}

/// A version of Nix with a protocol. Every rule for stock clients is tested with each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    pub version: Version,
    pub protocol: Protocol,
}

impl Stock {
    /// The newest client with the protocol that has all operations.
    pub const NEWEST: Stock = Stock { version: Version::V2_34, protocol: Protocol::SshNg };

    /// Whether it can build in the box's own store (`nix build --store`). No stock client can over `ssh://`:
    /// it would need operations that the protocol does not have (see [`UNSUPPORTED_BY_CLIENT`]).
    pub fn builds_at_the_box(self) -> bool {
        self.protocol == Protocol::SshNg
    }
}

/// Stock Nix's error for a build in an `ssh://` store, before it sends the box a request.
pub const UNSUPPORTED_BY_CLIENT: &str = "nable to build with a primary store that isn't a local store";

/// A client machine of one member: private `/nix`, private home, the member's key, and the box's port.
pub struct Nix {
    pub version: Version,
    pub protocol: Protocol,
    tree: PathBuf,
    dir: Arc<TempDir>,
    keys: PathBuf,
    port: u16,
    /// Additional lines of `nix.conf`.
    more_config: String,
    /// Whether there is a configuration of ssh, see [`Nix::set_env`].
    ssh_config: bool,
    /// Variables that its ssh client sets for the box.
    variables: Vec<String>,
    /// The token with which this machine logs in, and how ssh brings it.
    ticket: Option<(String, Bringing)>,
}

/// The ways in which OpenSSH brings the token of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bringing {
    /// As the answer to a prompt, from a program (`SSH_ASKPASS`).
    Askpass,
    /// In the environment of the ssh session (`SetEnv`).
    Environment,
}

impl Nix {
    /// The key must live as long as the client.
    pub fn new(version: Version, agent: &Agent, key: &Key) -> Self {
        Self::at(version, agent.port(), key)
    }

    /// As [`Nix::new`], over this protocol.
    pub fn over(stock: Stock, agent: &Agent, key: &Key) -> Self {
        Self { protocol: stock.protocol, ..Self::new(stock.version, agent, key) }
    }

    /// A client of any ssh server on this port of the loopback interface, over `ssh-ng://`.
    pub fn at(version: Version, port: u16, key: &Key) -> Self {
        let tree = suite::tree(version.name());
        let dir = place::scratch("client");
        for sub in ["nix", "root"] {
            std::fs::create_dir(dir.path().join(sub)).expect("a folder");
        }
        Self {
            version,
            protocol: Protocol::SshNg,
            tree,
            dir: Arc::new(dir),
            keys: key.dir().to_owned(),
            port,
            more_config: String::new(),
            ssh_config: false,
            variables: Vec::new(),
            ticket: None,
        }
    }

    /// The same machine and store, for another port.
    pub fn with_port(&self, port: u16) -> Self {
        let (version, protocol) = (self.version, self.protocol);
        let (tree, keys) = (self.tree.clone(), self.keys.clone());
        let (more_config, ticket) = (self.more_config.clone(), self.ticket.clone());
        let (ssh_config, variables) = (self.ssh_config, self.variables.clone());
        Self {
            version,
            protocol,
            tree,
            dir: self.dir.clone(),
            keys,
            port,
            more_config,
            ssh_config,
            variables,
            ticket,
        }
    }

    /// The box as a store: the value of `--store`, `--to` and `--from`.
    pub fn store(&self) -> &'static str {
        match (self.protocol, &self.ticket) {
            (Protocol::SshNg, None) => "ssh-ng://anyone@127.0.0.1",
            (Protocol::Ssh, None) => "ssh://anyone@127.0.0.1",
            (Protocol::SshNg, Some(_)) => "ssh-ng://ticket@127.0.0.1",
            (Protocol::Ssh, Some(_)) => "ssh://ticket@127.0.0.1",
        }
    }

    pub fn stock(&self) -> Stock {
        Stock { version: self.version, protocol: self.protocol }
    }

    /// The box as the value of `--builders`.
    pub fn builders(&self) -> String {
        format!("{} x86_64-linux /root/keys/key 4", self.store())
    }

    /// Enables experimental features of Nix, for all programs that this client starts (also hooks, which do
    /// not get the options of a command line).
    pub fn enable(&mut self, features: &str) {
        self.more_config = format!("extra-experimental-features = {features}\n");
    }

    /// Has ssh send these variables, `NAME=VALUE` each, to every server: `SetEnv` of a configuration file.
    pub fn set_env(&mut self, variables: &str) {
        let config = self.home().join("ssh_config");
        std::fs::write(config, format!("SetEnv {variables}\n")).expect("a configuration");
        self.ssh_config = true;
    }

    /// From now on logs in with a ticket instead of its key, which the box need not know.
    pub fn bring(&mut self, token: &str, how: Bringing) {
        use std::os::unix::fs::PermissionsExt;
        let program = self.home().join("askpass");
        std::fs::write(&program, format!("#!/bin/sh\necho '{token}'\n")).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("a mode");
        self.ticket = Some((token.to_owned(), how));
    }

    /// The folder of this machine that the client sees as `/root`, where its commands run.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Another machine of the same member, with an empty store.
    pub fn other_store(&self) -> Self {
        let dir = place::scratch("client");
        for sub in ["nix", "root"] {
            std::fs::create_dir(dir.path().join(sub)).expect("a folder");
        }
        Self { dir: Arc::new(dir), ..self.with_port(self.port) }
    }

    /// Sets a variable for the box, such as `NAME=1`, in all its connections.
    pub fn set_for_box(&mut self, variable: &str) {
        self.variables.push(variable.to_owned());
    }

    /// The file behind a path of the client's own store.
    pub fn local(&self, store_path: &str) -> PathBuf {
        self.dir.path().join(store_path.strip_prefix('/').expect("an absolute path"))
    }

    /// Runs `nix` to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Transcript {
        process::run(self.command("nix").args(args))
    }

    /// Starts `nix` and lets it run.
    #[track_caller]
    pub fn spawn<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        Running::start(self.command("nix").args(args))
    }

    /// `nix build --store` of an expression, evaluated on the client.
    pub fn build_at_box(&self, expression: &str) -> Command {
        let mut command = self.command("nix");
        command.args(["build", "--store", self.store(), "--eval-store", "auto"]);
        command.args(["--no-link", "--json", "-L", "--impure", "--expr", expression]);
        command
    }

    /// `nix build` with the box as the only builder; the client's store receives the outputs.
    pub fn build_through_builders(&self, expression: &str) -> Command {
        let mut command = self.command("nix");
        command.args(["build", "--builders", &self.builders(), "--max-jobs", "0"]);
        command.args(["--no-link", "--json", "-L", "--impure", "--expr", expression]);
        command
    }

    /// The best way to build over this protocol: in the box's store if stock Nix can, else through
    /// `--builders`.
    pub fn build(&self, expression: &str) -> Command {
        match self.stock().builds_at_the_box() {
            true => self.build_at_box(expression),
            false => self.build_through_builders(expression),
        }
    }

    /// Asks the box for the closure of a path, the path included.
    pub fn closure_at_box(&self, path: &str) -> Command {
        let mut command = self.command("nix-store");
        command.args(["--store", self.store(), "--query", "--requisites", path]);
        command
    }

    /// The NAR hash of a file or folder on the client's machine.
    #[track_caller]
    pub fn hash_path(&self, path: &str) -> String {
        self.run(["hash", "path", path]).ok().answer().to_owned()
    }

    /// The stock `ssh` with the member's key, logging in to the box; the caller adds the remote command.
    pub fn ssh(&self) -> Command {
        let mut command = self.command("ssh");
        command.args(self.ssh_options()).args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        command.arg("anyone@127.0.0.1");
        command
    }

    /// Any program of the client machine.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("bwrap");
        command.args(["--die-with-parent", "--unshare-user", "--uid", "0", "--gid", "0", "--unshare-pid"]);
        command.args(["--clearenv", "--chdir", "/root"]);
        bind(&mut command, "--ro-bind", &self.tree, "/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        for (inside, name) in [("/nix", "nix"), ("/root", "root")] {
            bind(&mut command, "--bind", &self.dir.path().join(name), inside);
        }
        bind(&mut command, "--ro-bind", &self.keys, "/root/keys");
        for (name, value) in [
            ("HOME", "/root"),
            ("PATH", "/usr/bin:/usr/sbin:/bin:/sbin"),
            // File names outside of ASCII.
            ("LC_ALL", "C.UTF-8"),
            ("NIX_CONFIG", &format!("{CONFIG}{}", self.more_config)),
            ("NIX_SSHOPTS", &self.ssh_options().join(" ")),
        ] {
            command.args(["--setenv", name, value]);
        }
        if let Some((_, Bringing::Askpass)) = self.ticket {
            command.args([
                "--setenv",
                "SSH_ASKPASS",
                "/root/askpass",
                "--setenv",
                "SSH_ASKPASS_REQUIRE",
                "force",
            ]);
        }
        command.args(["--", program]);
        command
    }

    fn ssh_options(&self) -> Vec<String> {
        let port = self.port.to_string();
        let config = if self.ssh_config { "/root/ssh_config" } else { "none" };
        ["-F", config, "-p", &port, "-i", "/root/keys/key", "-o", "IdentitiesOnly=yes"]
            .into_iter()
            .chain(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .map(str::to_owned)
            .chain(self.variables.iter().flat_map(|variable| ["-o".to_owned(), format!("SetEnv={variable}")]))
            .chain(self.ticket_options())
            .collect()
    }

    fn ticket_options(&self) -> Vec<String> {
        match &self.ticket {
            Some((token, Bringing::Environment)) => vec![
                "-o".to_owned(),
                format!("SetEnv=BARNRAISER_TICKET={token}"),
                "-o".to_owned(),
                "KbdInteractiveDevices=env".to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

/// The outputs in the answer of `nix build --json`, by output name. One derivation only.
#[track_caller]
pub fn outputs(built: &Transcript) -> BTreeMap<String, String> {
    let answer: serde_json::Value =
        serde_json::from_str(&built.stdout).unwrap_or_else(|e| panic!("no JSON ({e}):\n{built}"));
    let outputs = answer[0]["outputs"].as_object().unwrap_or_else(|| panic!("no outputs:\n{built}"));
    outputs.iter().map(|(name, path)| (name.clone(), path.as_str().expect("a path").to_owned())).collect()
}

/// Nothing is fetched except from the box, and nothing is built on the client, where Nix cannot make a
/// sandbox.
const CONFIG: &str = "experimental-features = nix-command
build-users-group =
sandbox = false
substituters =
builders =
";

fn bind(command: &mut Command, how: &str, outside: &Path, inside: &str) {
    command.arg(how).arg(outside).arg(inside);
}
