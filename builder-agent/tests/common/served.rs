//! A scripted agent behind the real front door: OpenSSH, logins, protocols and the scheduler are real, and a script plays
//! the builders.

use std::path::Path;
use std::process::{Output, Stdio};

use ::ssh::Stop;
use nix::BuildStatus;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use wire::client::{Client, encode_file_nar};
use wire::{serve, serve_client};

use super::client::{self, Drv, Told};
use super::scripted::{Scripted, info_of, path};
use super::{PATIENCE, ssh};

/// A scripted agent behind the real front door.
pub struct Served {
    pub scripted: Scripted,
    pub port: u16,
    stop: Stop,
}

/// `nix-daemon --stdio` through OpenSSH, and the client that speaks with it.
pub struct Session {
    pub client: Client<ChildStdout, ChildStdin>,
    /// Killed when it is dropped.
    ssh: Child,
}

/// `nix-store --serve --write` through OpenSSH.
pub struct ServeSession {
    pub client: serve_client::Client<ChildStdout, ChildStdin>,
    stderr: BufReader<ChildStderr>,
    /// Killed when it is dropped.
    _ssh: Child,
}

impl Served {
    pub async fn open(config: &str) -> Self {
        Self::serve(Scripted::open(config))
    }

    /// The same, with tickets. See [`Scripted::open_with_tickets`].
    pub async fn open_with_tickets(config: &str) -> Self {
        Self::serve(Scripted::open_with_tickets(config))
    }

    pub fn serve(scripted: Scripted) -> Self {
        let listeners = ::ssh::bind(&["127.0.0.1:0".parse().expect("an address")]).expect("a free port");
        let port = listeners[0].local_addr().expect("bound").port();
        let key =
            builder_agent::host_key::load_or_create(&scripted.dir.path().join("host-key")).expect("a key");
        let stop = Stop::default();
        tokio::spawn(::ssh::serve(scripted.agent.clone(), key, listeners, stop.clone()));
        Self { scripted, port, stop }
    }

    pub fn dir(&self) -> &Path {
        self.scripted.dir.path()
    }

    pub async fn session(&self, member: &str) -> Session {
        let mut ssh = ssh(self.dir(), member, self.port);
        ssh.args(["nix-daemon", "--stdio"]);
        Session::over(ssh).await
    }

    /// The same for a client with these variables in its ssh environment.
    pub async fn session_with(&self, member: &str, variables: &str) -> Session {
        let mut ssh = ssh(self.dir(), member, self.port);
        ssh.args(["-o", &format!("SetEnv={variables}"), "nix-daemon", "--stdio"]);
        Session::over(ssh).await
    }

    /// `nix-store --serve --write`, as a client with `ssh://` runs it.
    pub async fn serve_session(&self, member: &str) -> ServeSession {
        let mut ssh = Command::from(ssh(self.dir(), member, self.port));
        ssh.args(["nix-store", "--serve", "--write"]).kill_on_drop(true);
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut ssh = ssh.spawn().expect("ssh");
        let (reader, writer) = (ssh.stdout.take().expect("piped"), ssh.stdin.take().expect("piped"));
        let stderr = BufReader::new(ssh.stderr.take().expect("piped"));
        let client = serve_client::Client::connect(reader, writer, 7).await.expect("a handshake");
        ServeSession { client, stderr, _ssh: ssh }
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
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.because("the test is over");
    }
}

impl ServeSession {
    /// Uploads a file that must be refused with this text among the lines of stderr. Returns that line.
    pub async fn refused(&mut self, name: &str, contents: &[u8], text: &str) -> String {
        let nar = encode_file_nar(contents, false);
        let info = info_of(path(name), &nar, &[]);
        self.client.request(&serve::Request::AddToStoreNar { info }).await.expect("sent");
        self.client.send(&nar).await.expect("sent");
        assert_eq!(self.client.u64().await.expect("an answer"), 0, "{name} is taken");
        let reading = async {
            loop {
                let mut line = String::new();
                assert_ne!(self.stderr.read_line(&mut line).await.expect("UTF-8"), 0, "no {text:?}");
                if line.contains(text) {
                    return line;
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the reason")
    }
}

impl Session {
    /// A session over this client, which runs `nix-daemon --stdio`.
    pub async fn over(ssh: std::process::Command) -> Self {
        let mut ssh = Command::from(ssh);
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut ssh = ssh.kill_on_drop(true).spawn().expect("ssh");
        let (reader, writer) = (ssh.stdout.take().expect("piped"), ssh.stdin.take().expect("piped"));
        let client = Client::connect(reader, writer, 35, &[]).await.expect("a handshake");
        Self { client, ssh }
    }

    /// Uploads a file. Returns why it is refused, if it is.
    pub async fn add(&mut self, name: &str, contents: &[u8]) -> Option<String> {
        client::add(&mut self.client, name, contents).await
    }

    pub async fn send(&mut self, drv: Drv) {
        client::send(&mut self.client, drv).await;
    }

    /// Reads the answer.
    pub async fn told(&mut self) -> Told {
        client::told(&mut self.client).await
    }

    /// Reads the answer, which must have this status.
    pub async fn is(&mut self, status: BuildStatus) -> Told {
        let told = self.told().await;
        told.is(status);
        told
    }

    /// Builds, which must end with this status.
    pub async fn build(&mut self, drv: Drv, status: BuildStatus) -> Told {
        self.send(drv).await;
        self.is(status).await
    }

    /// Asks for a build that must be refused for the moment. Returns the reason.
    pub async fn refused(&mut self, drv: Drv) -> String {
        self.build(drv, BuildStatus::TransientFailure).await.message
    }

    /// Waits until the box has ended the connection.
    pub async fn ends(mut self) {
        tokio::time::timeout(PATIENCE, self.ssh.wait()).await.expect("the session goes on").expect("waited");
    }
}
