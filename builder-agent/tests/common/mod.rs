//! A real agent process on a free port, and the real OpenSSH client.

// Each test file uses its own part of this.
#![allow(dead_code)]

pub mod beside;
pub mod cache;
pub mod client;
pub mod homes;
pub mod http;
pub mod internet;
pub mod scripted;
pub mod served;
pub mod world;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Upper bound for steps that take milliseconds, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds, which another thread or process makes true.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(becomes_true(is_so), "waited in vain for {what}");
}

/// The same, for a failure with a message of its own.
pub fn becomes_true(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// An agent that serves until dropped.
pub struct Agent {
    pub dir: TempDir,
    pub port: u16,
    child: Child,
    log: Log,
}

impl Agent {
    /// Starts an agent whose roster has the members by name, each with a key in `<name>` and `<name>.pub`.
    /// `config` goes before the first section.
    pub fn start(members: &[&str], config: &str) -> Agent {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        // The front door needs no working sandbox: any readable file is sufficient.
        let file = dir.path().join("roster.json");
        Self::start_in(dir, members, config, [&file, &file])
    }

    /// The same with real builds, under bubblewrap.
    pub fn start_to_build(members: &[&str], config: &str) -> Agent {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let named = |variable: &str, usual: PathBuf| std::env::var_os(variable).map_or(usual, PathBuf::from);
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        let guest = named("BARNRAISER_GUEST", target.join("x86_64-unknown-linux-gnu/release/guest"));
        let shell = named("BARNRAISER_SHELL", "/bin/busybox".into());
        for file in [&guest, &shell] {
            assert!(file.exists(), "{} is needed: see sandbox/src/namespace_test.rs", file.display());
        }
        Self::start_in(dir, members, config, [&guest, &shell])
    }

    fn start_in(dir: TempDir, members: &[&str], config: &str, [guest, shell]: [&Path; 2]) -> Agent {
        for name in members {
            make_key(&dir.path().join(name));
        }
        write_roster(dir.path(), members);
        let path = dir.path().display();
        let text = format!(
            "name = \"testbox\"\nlisten = [\"127.0.0.1:0\"]\nroster = \"{path}/roster.json\"\nstate-dir = \"{path}/state\"\n\
             {config}\n[sandbox]\nbackend = \"namespace\"\nguest = {guest:?}\nshell = {shell:?}\n"
        );
        fs::write(dir.path().join("agent.toml"), text).expect("config");
        let (child, log) = launch(dir.path());
        let mut agent = Agent { dir, port: 0, child, log };
        agent.find_port();
        agent
    }

    /// Starts the agent again, with the state that it has left.
    pub fn start_again(&mut self) {
        self.wait();
        (self.child, self.log) = launch(self.path());
        self.find_port();
    }

    fn find_port(&mut self) {
        let listening = self.wait_for("listening");
        let address = listening["address"].as_str().expect("an address").to_owned();
        self.port = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log events with this message so far.
    pub fn events(&self, message: &str) -> Vec<serde_json::Value> {
        let log = self.log.lock().expect("log");
        log.iter().filter(|event| event["message"] == message).cloned().collect()
    }

    /// Waits for the log event with this message and this number among those.
    pub fn wait_for_nth(&self, message: &str, number: usize) -> serde_json::Value {
        let there = becomes_true(|| self.events(message).len() > number);
        assert!(there, "no {message:?} number {number} in the log:\n{}", self.log_text());
        self.events(message).swap_remove(number)
    }

    /// Changes the roster, and waits until the agent has loaded it.
    pub fn edit_roster(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let path = self.path().join("roster.json");
        let mut roster = serde_json::from_str(&fs::read_to_string(&path).expect("a roster")).expect("JSON");
        edit(&mut roster);
        let loaded =
            || self.log.lock().expect("log").iter().filter(|e| e["message"] == "roster loaded").count();
        let before = loaded();
        put_roster(self.path(), &roster);
        let is_loaded = becomes_true(|| loaded() > before);
        assert!(is_loaded, "the roster is not loaded:\n{}", self.log_text());
    }

    /// The first log event with this message; fails if there is none in time.
    pub fn wait_for(&self, message: &str) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found =
                self.log.lock().expect("log").iter().find(|event| event["message"] == message).cloned();
            if let Some(event) = found {
                return event;
            }
            assert!(Instant::now() < deadline, "no {message:?} in the log:\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The log so far. The agent writes it on a thread of its own, so a line can come after the client has the answer
    /// that the line is about. Therefore this waits until no line comes for a moment.
    pub fn log_text(&self) -> String {
        let lines = || self.log.lock().expect("log").len();
        for _ in 0..10 {
            let before = lines();
            std::thread::sleep(Duration::from_millis(25));
            if lines() == before {
                break;
            }
        }
        self.log.lock().expect("log").iter().map(|event| format!("{event}\n")).collect()
    }

    /// Nobody reads the agent's log while the returned guard lives.
    pub fn unread_log(&self) -> MutexGuard<'_, Vec<serde_json::Value>> {
        self.log.lock().expect("log")
    }

    /// The stock client with the key in `key`, ready for a command.
    pub fn ssh(&self, key: &str) -> Command {
        ssh(self.path(), key, self.port)
    }

    /// A worker session of this member.
    pub fn open_session(&self, who: &str) -> Child {
        open_session(self.ssh(who))
    }

    /// Runs a command and returns the transcript that a user would see, without the lines that differ each
    /// time.
    pub fn transcript(&self, key: &str, args: &[&str]) -> String {
        let output = self.ssh(key).args(args).output().expect("ssh");
        transcript(args, &output, self)
    }

    pub fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill");
        assert!(status.success());
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent does not end:\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Log = Arc<Mutex<Vec<serde_json::Value>>>;

/// Starts the agent whose configuration is in this folder, and collects its log.
fn launch(dir: &Path) -> (Child, Log) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_builder-agent"))
        .args(["serve", "--config"])
        .arg(dir.join("agent.toml"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let log = Log::default();
    let lines = log.clone();
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let event = serde_json::from_str(&line).unwrap_or_else(|_| serde_json::json!({ "text": line }));
            lines.lock().expect("log").push(event);
        }
    });
    (child, log)
}

/// The stock client with the key `key` of this folder, ready for a command.
pub fn ssh(dir: &Path, key: &str, port: u16) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=30"])
        .args(["-o", &format!("UserKnownHostsFile={}", dir.join("known_hosts").display())])
        .arg("-i")
        .arg(dir.join(key))
        .args(["-p", &port.to_string(), "anyone@127.0.0.1"])
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null());
    ssh
}

/// Opens a worker session with this client, and waits for the answer to its greeting. All streams are piped.
pub fn open_session(mut ssh: Command) -> Child {
    ssh.args(["nix-daemon", "--stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ssh.spawn().expect("ssh");
    // "nixc" and version 1.18.
    let hello = [0x6e69_7863u64.to_le_bytes(), 0x112u64.to_le_bytes()].concat();
    child.stdin.as_mut().expect("piped").write_all(&hello).expect("sent");
    child.stdout.as_mut().expect("piped").read_exact(&mut [0; 8]).expect("an answer");
    child
}

fn transcript(args: &[&str], output: &Output, agent: &Agent) -> String {
    let mut text = format!("$ ssh box {}\n", args.join(" "));
    for line in String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).lines() {
        // Messages of the client itself.
        if line.starts_with("Warning: Permanently added") || line.starts_with("Pseudo-terminal") {
            continue;
        }
        let line = line.replace(&agent.port.to_string(), "[PORT]");
        text.push_str(line.trim_end_matches('\r'));
        text.push('\n');
    }
    let code = output.status.code().map_or("a signal".to_owned(), |code| code.to_string());
    text.push_str(&format!("[exit {code}]\n"));
    text
}

pub fn make_key(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status()
        .expect("ssh-keygen");
    assert!(made.success());
}

/// Puts a roster with these members in place, as `access-manager` does.
pub fn write_roster(dir: &Path, members: &[&str]) {
    let members: Vec<_> = members
        .iter()
        .map(|name| {
            let key = fs::read_to_string(dir.join(format!("{name}.pub"))).expect("a public key");
            serde_json::json!({ "name": name, "keys": [key.trim()], "role": "member", "limits": {}, "expires": null })
        })
        .collect();
    let roster = serde_json::json!({ "schema": 1, "commit": null, "source": "test", "members": members });
    put_roster(dir, &roster);
}

/// Asserts that a message has all these parts.
#[track_caller]
pub fn said(message: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(message.contains(part), "no {part:?} in: {message}"));
}

fn put_roster(dir: &Path, roster: &serde_json::Value) {
    let temp: PathBuf = dir.join("roster.new");
    fs::write(&temp, roster.to_string()).expect("roster");
    fs::rename(&temp, dir.join("roster.json")).expect("roster");
}

/// The fingerprint of a public key file, as `ssh-keygen` prints it.
pub fn fingerprint(path: &Path) -> String {
    let output = Command::new("ssh-keygen").arg("-lf").arg(path).output().expect("ssh-keygen");
    String::from_utf8_lossy(&output.stdout).split(' ').nth(1).expect("a fingerprint").to_owned()
}
