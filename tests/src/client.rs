//! A stock Nix of one version, with its own home, store and ssh configuration. The agent is `ssh-ng://box`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::agent::Agent;
use crate::places;
use crate::process::Ran;
use crate::roster::Key;

/// The versions we promise, as `tests/scripts/nix-client` names them.
pub const VERSIONS: [&str; 3] = ["2.8", "2.26", "2.34"];
/// Upper bound for one command, so that a hanging one names itself. The box under emulation is slow.
const PATIENCE: &str = "1500";

pub struct Client {
    pub version: &'static str,
    home: TempDir,
}

impl Client {
    /// A client that logs in as alice.
    pub fn of(version: &'static str, agent: &Agent) -> Client {
        Client::with_key(version, agent.address, &agent.alice)
    }

    pub fn with_key(version: &'static str, address: SocketAddr, key: &Key) -> Client {
        let home = places::scratch("client");
        let ssh = home.path().join(".ssh");
        std::fs::create_dir(&ssh).expect("scratch space is writable");
        std::fs::copy(&key.private, ssh.join("id_ed25519")).expect("the key can be read");
        let config = format!(
            "Host box\n  HostName {}\n  Port {}\n  User anybody\n  IdentityFile /root/.ssh/id_ed25519\n  IdentitiesOnly yes\n  \
             StrictHostKeyChecking accept-new\n  BatchMode yes\n",
            address.ip(),
            address.port()
        );
        std::fs::write(ssh.join("config"), config).expect("scratch space is writable");
        Client { version, home }
    }

    /// The folder that is /root inside.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Any command of the tree, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", PATIENCE]).arg(places::script("nix-client"));
        command.arg("run").arg(self.version).arg(self.home.path()).args(args);
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::run(&mut self.command(args))
    }

    pub fn nix(&self, args: &[&str]) -> Ran {
        self.run(&[&["nix"], args].concat())
    }

    /// Builds an expression on the box's own store and returns the output path.
    pub fn build_on_box(&self, expr: &str) -> Ran {
        self.nix(&[
            "build", "-L", "--no-link", "--json", "--impure", "--store", "ssh-ng://box", "--eval-store", "auto", "--expr", expr,
        ])
    }

    /// Builds an expression for the local store, on the box as a remote builder.
    pub fn build_with_builder(&self, expr: &str) -> Ran {
        self.nix(&[
            "build", "-L", "--no-link", "--json", "--impure", "--max-jobs", "0", "--builders", "ssh-ng://box x86_64-linux",
            "--expr", expr,
        ])
    }

    /// Does the box answer this client? The sign of life after each attack.
    #[track_caller]
    pub fn ping(&self) {
        self.nix(&["store", "ping", "--store", "ssh-ng://box"]).ok();
    }

    /// Is this path valid on the box?
    pub fn is_valid(&self, path: &str) -> bool {
        self.nix(&["path-info", "--store", "ssh-ng://box", path]).status.success()
    }

    /// Sends bytes to `nix-daemon --stdio` on the box over real ssh, closes stdin, and returns all it answered.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut command = self.command(&["ssh", "box", "nix-daemon", "--stdio"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ssh starts");
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let bytes = bytes.to_owned();
        let writer = std::thread::spawn(move || {
            // The box may hang up in the middle: that is an answer too.
            drop(stdin.write_all(&bytes));
        });
        let output = child.wait_with_output().expect("ssh can be waited for");
        writer.join().expect("the writer does not panic");
        output.stdout
    }
}

/// The output path in what `nix build --json` prints.
#[track_caller]
pub fn out_path(json: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("not JSON ({e}): {json}"));
    value[0]["outputs"]["out"].as_str().unwrap_or_else(|| panic!("no output in {json}")).to_owned()
}

/// A derivation that runs this shell script with the sandbox's own `/bin/sh`, which knows builtins only.
pub fn shell_derivation(name: &str, script: &str) -> String {
    let script = script.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!(
        "derivation {{ name = \"{name}\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" \"{script}\" ]; }}"
    )
}
