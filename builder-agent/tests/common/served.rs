//! A scripted agent behind the real front door: OpenSSH, logins, protocols and the scheduler are real, and a script plays
//! the builders.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::derivation::BasicDerivation;
use nix::{BuildMode, BuildStatus};
use nix_derivation::StorePath;
use serde_json::Value;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_util::sync::CancellationToken;
use wire::client::Client;
use wire::worker::Request;

use super::scripted::Scripted;
use super::{PATIENCE, ssh};

/// A scripted agent behind the real front door.
pub struct Served {
    pub scripted: Scripted,
    port: u16,
    stop: CancellationToken,
}

/// `nix-daemon --stdio` through OpenSSH, and the client that speaks with it.
pub struct Session {
    pub client: Client<ChildStdout, ChildStdin>,
    /// Killed when it is dropped.
    _ssh: Child,
}

impl Served {
    pub async fn open(config: &str) -> Self {
        let scripted = Scripted::open(config);
        let listeners = ::ssh::bind(&["127.0.0.1:0".parse().expect("an address")]).expect("a free port");
        let port = listeners[0].local_addr().expect("bound").port();
        let key =
            builder_agent::host_key::load_or_create(&scripted.dir.path().join("host-key")).expect("a key");
        let stop = CancellationToken::new();
        tokio::spawn(::ssh::serve(scripted.agent.clone(), key, listeners, stop.clone()));
        Self { scripted, port, stop }
    }

    pub fn dir(&self) -> &Path {
        self.scripted.dir.path()
    }

    pub async fn session(&self, member: &str) -> Session {
        let mut command = Command::from(ssh(self.dir(), member, self.port));
        command
            .args(["nix-daemon", "--stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut ssh = command.kill_on_drop(true).spawn().expect("ssh");
        let (reader, writer) = (ssh.stdout.take().expect("piped"), ssh.stdin.take().expect("piped"));
        let client = Client::connect(reader, writer, 35, &[]).await.expect("a handshake");
        Session { client, _ssh: ssh }
    }

    pub async fn run(&self, member: &str, words: &[&str]) -> Output {
        Command::from(ssh(self.dir(), member, self.port)).args(words).output().await.expect("ssh")
    }

    pub async fn output(&self, member: &str, words: &[&str]) -> String {
        let output = self.run(member, words).await;
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The line of this month in `usage --json`.
    pub async fn used(&self, member: &str) -> Value {
        let report: Value =
            serde_json::from_str(&self.output(member, &["usage", "--json"]).await).expect("JSON");
        let lines = report["usage"].as_array().expect("lines");
        assert_eq!(lines.len(), 1, "{report}");
        assert_eq!(lines[0]["member"], member);
        lines[0].clone()
    }

    pub async fn until_runs(&self, count: usize) {
        let started = async {
            while self.scripted.script.runs.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, started).await.expect("a builder never ran");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub type Drv = (StorePath, BasicDerivation);

impl Session {
    pub async fn send(&mut self, (drv_path, derivation): Drv) {
        let mode = BuildMode::Normal;
        self.client.request(&Request::BuildDerivation { drv_path, derivation, mode }).await.expect("sent");
    }

    /// The status and the message of the answer.
    pub async fn told(&mut self) -> (u64, String) {
        self.client.done().await.expect("an answer");
        let (status, message) = (self.client.u64().await, self.client.string().await);
        for _ in 0..4 {
            self.client.u64().await.expect("times and counts");
        }
        for _ in 0..self.client.u64().await.expect("outputs") {
            self.client.string().await.expect("id");
            self.client.string().await.expect("realisation");
        }
        (status.expect("a status"), message.expect("a message"))
    }

    pub async fn is(&mut self, status: BuildStatus) {
        let told = self.told().await;
        assert_eq!(told.0, status as u64, "{told:?}");
    }

    pub async fn build(&mut self, drv: Drv, status: BuildStatus) {
        self.send(drv).await;
        self.is(status).await;
    }

    pub async fn refused(&mut self, drv: Drv) -> String {
        self.send(drv).await;
        let (status, message) = self.told().await;
        assert_eq!(status, BuildStatus::TransientFailure as u64, "{message}");
        message
    }
}
