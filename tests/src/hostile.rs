//! A hostile client: raw worker-protocol bytes through the stock OpenSSH client, and checks of the box
//! afterwards.
//!
//! [`TestBox`] is a box with one member and one good path in its store. A test attacks it, then calls
//! [`TestBox::still_serves`] and [`TestBox::close`], which checks the store from outside: every visible path
//! must be whole. Not here: the start of an agent (`agent`), and the bytes of valid requests
//! (`wire::client`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::derivation::BasicDerivation;
use nix::{BuildMode, PathInfo};
use nix_derivation::{ContentAddressMethod, HashAlgorithm, NixHash, StorePath, hash_bytes};
use serde_json::{Value, json};
use store::{Member, Recovery, Store, StoreConfig};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use wire::client::{Client, End, Frame, encode_path_info};
use wire::worker::Request;

use crate::agent::{Agent, Setup};
use crate::keys::Key;
use crate::shared_box::{WORKER, recipe};
use crate::{PATIENCE, place, roster};

/// The one member of a [`TestBox`].
pub const MEMBER: &str = "alice";

/// The version of current clients.
pub const MINOR: u8 = 38;

/// A box, one member, and a busybox in the store that must still be there at the end.
pub struct TestBox {
    pub agent: Agent,
    pub busybox: StorePath,
    key: Key,
    /// The folder of the roster and the known hosts.
    dir: TempDir,
}

impl TestBox {
    /// `settings` are lines of configuration, such as `limits.max-build-seconds = 5`.
    pub async fn open(settings: &[&str]) -> TestBox {
        Self::open_with(settings, json!({})).await
    }

    /// The member has its own limits, as in `roster.json`.
    pub async fn open_with(settings: &[&str], limits: Value) -> TestBox {
        let (key, dir) = (Key::new(MEMBER), place::scratch("hostile"));
        let roster = dir.path().join("roster.json");
        let mut contents = roster::roster(&[(MEMBER, &key)]);
        contents["members"][0]["limits"] = limits;
        roster::write(&roster, &contents);
        let setup =
            settings.iter().fold(Setup::default().roster_at(&roster), |setup, line| setup.setting(line));
        let agent = setup.start(&[]);
        let mut test_box = TestBox { agent, busybox: path("none-yet"), key, dir };
        let mut session = test_box.session().await;
        let contents = std::fs::read(place::busybox()).expect("busybox");
        let tree = directory(&[("bin", directory(&[("busybox", executable(&contents))]))]);
        test_box.busybox = session.add("busybox", &nar(&tree)).await;
        session.leave().await;
        test_box
    }

    /// The OpenSSH client of this machine, with the remote command of stock clients.
    pub fn ssh(&self) -> std::process::Command {
        self.key.ssh(self.agent.port(), &self.dir.path().join("known_hosts"), WORKER)
    }

    /// A session on which nothing has been sent.
    pub fn pipe(&self) -> (Child, ChildStdout, ChildStdin) {
        piped(self.ssh())
    }

    pub async fn session(&self) -> Session {
        Session::open(self, MINOR).await
    }

    /// Checks that a new session finds the good path, and that no files of interrupted writes remain.
    pub async fn still_serves(&self) {
        let mut session = self.session().await;
        assert!(session.is_valid(&self.busybox).await, "the good path is gone");
        session.leave().await;
        let temporary = self.store_dir().join("tmp");
        until("temporary files of the store to go away", || {
            std::fs::read_dir(&temporary).expect("the store's tmp").count() == 0
        })
        .await;
    }

    pub fn store_dir(&self) -> PathBuf {
        self.agent.state_dir().join("store")
    }

    /// Stops the agent as an operator would, opens its store and reads all paths in it.
    pub async fn close(mut self) -> BTreeSet<StorePath> {
        self.still_serves().await;
        self.agent.stop();
        let store = Store::open(&self.store_dir(), StoreConfig::default()).expect("the store opens");
        assert_eq!(*store.recovery(), Recovery::default(), "a quiet stop leaves nothing to repair");
        let view = store.view(&Member::new(MEMBER));
        let paths = view.all_valid();
        assert!(paths.contains(&self.busybox));
        for path in &paths {
            view.verify(path).unwrap_or_else(|error| panic!("{path} is damaged: {error}"));
            view.closure(std::slice::from_ref(path)).expect("no visible path lacks a reference");
        }
        paths
    }
}

/// Starts a login with pipes. Dropping its handle kills it.
pub fn piped(mut ssh: std::process::Command) -> (Child, ChildStdout, ChildStdin) {
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = Command::from(ssh).kill_on_drop(true).spawn().expect("ssh");
    let (reader, writer) = (ssh.stdout.take().expect("piped"), ssh.stdin.take().expect("piped"));
    (ssh, reader, writer)
}

/// As [`piped`], and its stderr until the end. It is read all the time, because a builder may print more than
/// a pipe holds.
pub fn piped_with_stderr(
    mut ssh: std::process::Command,
) -> (Child, ChildStdout, ChildStdin, JoinHandle<Vec<u8>>) {
    ssh.stderr(Stdio::piped());
    let (mut ssh, reader, writer) = piped(ssh);
    let mut said = ssh.stderr.take().expect("piped");
    let stderr = tokio::spawn(async move {
        let mut bytes = Vec::new();
        said.read_to_end(&mut bytes).await.expect("read");
        bytes
    });
    (ssh, reader, writer, stderr)
}

/// A worker session over ssh.
pub struct Session {
    pub client: Client<ChildStdout, ChildStdin>,
    ssh: Child,
}

impl Session {
    /// Performs the handshake of version 1.`minor`.
    pub async fn open(test_box: &TestBox, minor: u8) -> Session {
        Self::over(test_box.ssh(), minor).await
    }

    /// The same over this login.
    pub async fn over(ssh: std::process::Command, minor: u8) -> Session {
        let (ssh, reader, writer) = piped(ssh);
        let client = within("a handshake", Client::connect(reader, writer, minor, &[])).await;
        Session { client: client.expect("a handshake"), ssh }
    }

    /// Sends a request without its body.
    pub async fn request(&mut self, request: &Request) {
        self.client.request(request).await.expect("the box reads");
    }

    /// Sends bytes as they are. The box may hang up during the write; its answer is read later.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.client.send(bytes).await;
    }

    /// Reads the error that answers the last request. It must contain all `parts`.
    pub async fn refused(&mut self, parts: &[&str]) -> String {
        let (frames, end) =
            within("an error", self.client.log()).await.expect("an error and not the end of the stream");
        let End::Error(message) = end else { panic!("must be refused, got {end:?} after {frames:?}") };
        println!("refused: {message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        message
    }

    /// Checks that the box has hung up after its one error.
    pub async fn ended(self) {
        let Session { client, ssh } = self;
        ended(client, ssh).await;
    }

    /// Hangs up in the middle of a message; then the box must end the session too, without output.
    pub async fn hang_up(self) {
        let Session { client, ssh } = self;
        ended(client, ssh).await;
    }

    /// Ends like a client whose machine lost power: ssh is killed without a message.
    pub async fn vanish(mut self) {
        self.ssh.kill().await.expect("kill ssh");
    }

    /// Ends a session properly, between two requests.
    pub async fn leave(self) {
        let Session { client, mut ssh } = self;
        drop(client);
        let status = within("ssh to end", ssh.wait()).await.expect("wait");
        assert!(status.success(), "a good session ended with {status}");
    }

    pub async fn is_valid(&mut self, path: &StorePath) -> bool {
        self.call(&Request::IsValidPath { path: path.clone() }).await;
        self.client.u64().await.expect("an answer") == 1
    }

    /// The box's path info of this path, if that is valid for this member.
    pub async fn path_info(&mut self, path: &StorePath) -> Option<PathInfo> {
        self.call(&Request::QueryPathInfo { path: path.clone() }).await;
        match self.client.u64().await.expect("an answer") {
            0 => None,
            _ => Some(self.client.path_info(Some(path.clone())).await.expect("a path info")),
        }
    }

    /// Every path that is valid for this member.
    pub async fn all_paths(&mut self) -> Vec<StorePath> {
        self.call(&Request::QueryAllValidPaths).await;
        self.client.paths().await.expect("paths")
    }

    /// The NAR of a valid path.
    pub async fn nar(&mut self, path: &StorePath) -> Vec<u8> {
        self.call(&Request::NarFromPath { path: path.clone() }).await;
        within("a NAR", self.client.nar()).await.expect("a NAR")
    }

    /// Uploads a path, which must be accepted.
    pub async fn upload(&mut self, info: &PathInfo, nar: &[u8]) {
        self.add_nar(info, nar).await;
        within("an answer", self.client.done()).await.expect("added");
    }

    /// Uploads a path; `Err` is the box's message if it is refused.
    pub async fn try_upload(&mut self, info: &PathInfo, nar: &[u8]) -> Result<(), String> {
        self.add_nar(info, nar).await;
        match within("an answer", self.client.log()).await.expect("an answer").1 {
            End::Last => Ok(()),
            End::Error(said) => Err(said),
            End::Read(_) => panic!("the box asks for a body that it has"),
        }
    }

    /// The end of a request without a body; an answer is left unread.
    pub async fn try_call(&mut self, request: &Request) -> End {
        self.request(request).await;
        let (_, end) = within("an answer", self.client.log()).await.expect("an answer");
        println!("{:?}: {end:?}", wire::client::op_of(request));
        end
    }

    pub async fn call(&mut self, request: &Request) -> Vec<Frame> {
        within("an answer", self.client.call(request)).await.expect("a good answer")
    }

    /// Adds a NAR at the path that its contents determine.
    pub async fn add(&mut self, name: &str, nar: &[u8]) -> StorePath {
        self.request(&Request::AddToStore {
            name: name.to_owned(),
            method: ContentAddressMethod::Nar,
            algorithm: HashAlgorithm::Sha256,
            references: BTreeSet::new(),
            repair: false,
        })
        .await;
        self.client.framed(nar).await.expect("the box reads");
        within("an answer", self.client.done()).await.expect("added");
        self.client.path_info(None).await.expect("a path info").path
    }

    /// Announces `info` and sends `body` as its NAR.
    pub async fn add_nar(&mut self, info: &PathInfo, body: &[u8]) {
        self.announce(info).await;
        let _ = self.client.framed(body).await;
    }

    /// Announces a NAR; the caller sends its frames.
    pub async fn announce(&mut self, info: &PathInfo) {
        let request = Request::AddToStoreNar { info: info.clone(), repair: false, dont_check_sigs: true };
        self.request(&request).await;
    }

    pub async fn start_build(&mut self, (drv_path, derivation): (StorePath, BasicDerivation)) {
        self.request(&Request::BuildDerivation { drv_path, derivation, mode: BuildMode::Normal }).await;
    }

    /// Builds, and returns the client's view of it.
    pub async fn build(&mut self, what: (StorePath, BasicDerivation)) -> Told {
        self.start_build(what).await;
        self.told().await
    }

    /// Reads the answer to a build: the rest of its log and its result, to the last byte.
    pub async fn told(&mut self) -> Told {
        let client = &mut self.client;
        let frames = within("a build", client.done()).await.expect("a result");
        let status = client.u64().await.expect("status");
        let message = client.string().await.expect("message");
        for _ in 0..4 {
            client.u64().await.expect("counts and times");
        }
        for _ in 0..2 {
            if client.u64().await.expect("has CPU time") != 0 {
                client.u64().await.expect("CPU time");
            }
        }
        for _ in 0..client.u64().await.expect("outputs") {
            client.string().await.expect("id");
            client.string().await.expect("realisation");
        }
        let told = Told { log: lines(&frames), status, message };
        println!("build: {} {}", told.status, told.message);
        told
    }
}

/// A client's view of a build.
#[derive(Debug)]
pub struct Told {
    pub log: Vec<String>,
    /// Nix: `BuildResult::Status`.
    pub status: u64,
    pub message: String,
}

async fn ended(client: Client<ChildStdout, ChildStdin>, mut ssh: Child) {
    let Client { mut reader, writer, .. } = client;
    drop(writer);
    let mut rest = Vec::new();
    within("the end of the stream", reader.read_to_end(&mut rest)).await.expect("read");
    assert!(
        rest.is_empty(),
        "{} bytes after the last word: {:?}",
        rest.len(),
        String::from_utf8_lossy(&rest)
    );
    let status = within("ssh to end", ssh.wait()).await.expect("wait");
    assert_eq!(status.code(), Some(1), "a session that was cut short has exit status 1");
}

/// Fails if `work` takes longer than the test's patience.
pub async fn within<F: Future>(what: &str, work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Waits until `done` returns true.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The lines of the builder's log, including the first line, in which the guest describes the sandbox.
pub fn lines(frames: &[Frame]) -> Vec<String> {
    const BUILD_LOG_LINE: u64 = 101;
    let texts = frames.iter().filter_map(|frame| match frame {
        Frame::Result(_, BUILD_LOG_LINE, fields) => fields.first(),
        _ => None,
    });
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// A store path with this name. Different names have different digests.
pub fn path(name: &str) -> StorePath {
    let NixHash::Sha256(digest) = hash_bytes(HashAlgorithm::Sha256, name.as_bytes()) else { unreachable!() };
    StorePath::from_parts(digest[..20].try_into().expect("20 bytes"), name).expect("a path")
}

/// A correct announcement of `nar` as `path(name)`.
pub fn info(name: &str, nar: &[u8]) -> PathInfo {
    let NixHash::Sha256(nar_hash) = hash_bytes(HashAlgorithm::Sha256, nar) else { unreachable!() };
    PathInfo {
        path: path(name),
        deriver: None,
        nar_hash,
        nar_size: nar.len() as u64,
        references: BTreeSet::new(),
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    }
}

/// A derivation whose builder is the sandbox's shell with `script`; `$bb` is busybox, `$out` becomes `path(name)`.
pub fn derivation(test_box: &TestBox, name: &str, script: &str) -> (StorePath, BasicDerivation) {
    let out = path(name);
    let (drv, mut derivation) =
        recipe(&path(&format!("{name}.drv")), &[("out", &out)], &[&test_box.busybox], script);
    let busybox = format!("{}/bin/busybox", test_box.busybox.to_absolute_path());
    derivation.env.insert("bb".into(), busybox.into_bytes());
    (drv, derivation)
}

/// Strings in their wire form: a length, the bytes, zeros up to a multiple of 8.
pub fn tokens(tokens: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for token in tokens {
        out.extend_from_slice(&(token.len() as u64).to_le_bytes());
        out.extend_from_slice(token);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// A NAR of one node.
pub fn nar(node: &[u8]) -> Vec<u8> {
    [&tokens(&[b"nix-archive-1"]), node].concat()
}

pub fn file(contents: &[u8]) -> Vec<u8> {
    tokens(&[b"(", b"type", b"regular", b"contents", contents, b")"])
}

pub fn executable(contents: &[u8]) -> Vec<u8> {
    tokens(&[b"(", b"type", b"regular", b"executable", b"", b"contents", contents, b")"])
}

/// A directory with these entries, in this order and with any names.
pub fn directory(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = tokens(&[b"(", b"type", b"directory"]);
    for (name, node) in entries {
        out.extend(tokens(&[b"entry", b"(", b"name", name.as_bytes(), b"node"]));
        out.extend_from_slice(node);
        out.extend(tokens(&[b")"]));
    }
    out.extend(tokens(&[b")"]));
    out
}

/// The body of an `AddMultipleToStore` that announces `count` paths and contains these.
pub fn items(count: u64, items: &[(PathInfo, Vec<u8>)]) -> Vec<u8> {
    let mut out = count.to_le_bytes().to_vec();
    for (info, nar) in items {
        out.extend(encode_path_info(info));
        out.extend_from_slice(nar);
    }
    out
}

/// A process and all its descendants, with their start times: a process id alone may be used again.
pub fn family(pid: u32) -> Vec<(u32, u64)> {
    let mut stats = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            && let Some((parent, started)) = stat(pid)
        {
            stats.insert(pid, (parent, started));
        }
    }
    let mut found = BTreeSet::from([pid]);
    loop {
        let before = found.len();
        found.extend(
            stats
                .iter()
                .filter(|(_, (parent, _))| found.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found.into_iter().filter_map(|pid| Some((pid, stats.get(&pid)?.1))).collect();
        }
    }
}

/// Whether this process still runs. A zombie does not.
pub fn runs((pid, started): (u32, u64)) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("State:\tZ")));
    stat(pid).is_some_and(|(_, now)| now == started) && !zombie
}

/// Parent and start time (proc(5): stat, fields 4 and 22; the name before them, in parentheses, may have any
/// characters).
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}
