//! An upload of a gigabyte that ends at any point, in any way: nothing becomes visible, nothing remains on
//! disk, and the agent has no more open descriptors and no more memory than before. Over both protocols.

use std::net::SocketAddr;
use std::path::PathBuf;

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::process::status_kib;
use e2e::shared_box::{SERVE, SharedBox, WORKER};
use nix::PathInfo;
use nix_derivation::StorePath;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::watch;
use wire::client::Client;
use wire::worker::Request;
use wire::{serve, serve_client};

const GIB: u64 = 1 << 30;
/// Most growth of the agent after all sessions have ended, in KiB: the allocator keeps some memory.
const KEPT_KIB: u64 = 24 << 10;
/// Most growth at the peak, for an upload of any size, in KiB.
const PEAK_KIB: u64 = 96 << 10;

/// The NAR of one file of `len` bytes, up to where its contents begin.
fn nar_head(len: u64) -> Vec<u8> {
    let mut head = tokens(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
    head.extend_from_slice(&len.to_le_bytes());
    head
}

/// Bytes that cannot be compressed.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// An announcement of a file of `len` bytes. Its hash is wrong, but is never checked.
fn announced(name: &str, len: u64) -> PathInfo {
    let tail = tokens(&[b")"]).len() as u64;
    let nar_size = nar_head(len).len() as u64 + len.next_multiple_of(8) + tail;
    PathInfo { nar_size, ..info(name, b"some hash") }
}

/// The form of an upload.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Nar,
    Multiple,
    /// Over `ssh://`, in the form of Nix 2.26 and 2.34.
    ServeNar,
    /// Over `ssh://`, in the form of Nix 2.8: an export stream.
    Import,
}

impl Way {
    /// Logs in, performs the handshake and sends the request; the body comes next. The box's output is never
    /// read.
    async fn begin(
        self,
        shared_box: &SharedBox,
        port: u16,
        info: &PathInfo,
    ) -> (Child, ChildStdout, ChildStdin) {
        let login = |words| piped(shared_box.ssh_at("alice", port, words));
        match self {
            Way::Nar | Way::Multiple => {
                let (ssh, reader, writer) = login(WORKER);
                let client = within("a handshake", Client::connect(reader, writer, MINOR, &[])).await;
                let mut client = client.expect("a handshake");
                let request = match self {
                    Way::Nar => {
                        Request::AddToStoreNar { info: info.clone(), repair: false, dont_check_sigs: true }
                    }
                    _ => Request::AddMultipleToStore { repair: false, dont_check_sigs: true },
                };
                client.request(&request).await.expect("the box reads");
                (ssh, client.reader, client.writer)
            }
            Way::ServeNar | Way::Import => {
                let (ssh, reader, writer) = login(SERVE);
                let client = within("a handshake", serve_client::Client::connect(reader, writer, 7)).await;
                let mut client = client.expect("a handshake");
                let request = match self {
                    Way::ServeNar => serve::Request::AddToStoreNar { info: info.clone() },
                    _ => serve::Request::ImportPaths,
                };
                client.request(&request).await.expect("the box reads");
                (ssh, client.reader, client.writer)
            }
        }
    }

    /// The bytes before the NAR.
    fn prelude(self, info: &PathInfo) -> Vec<u8> {
        match self {
            Way::Nar | Way::ServeNar => Vec::new(),
            Way::Multiple => [&1_u64.to_le_bytes()[..], &wire::client::encode_path_info(info)].concat(),
            // Another path follows.
            Way::Import => 1_u64.to_le_bytes().to_vec(),
        }
    }

    fn is_framed(self) -> bool {
        matches!(self, Way::Nar | Way::Multiple)
    }
}

/// The way in which an upload ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    ClientKilled,
    ConnectionReset,
    ClientHangsUp,
    AgentKilled,
    MemberRemoved,
}

/// A relay between ssh and the agent that can break the connection as a router does: with a reset.
struct Relay {
    port: u16,
    broken: watch::Sender<bool>,
}

impl Relay {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let here = listener.local_addr().expect("an address").port();
        let (broken, mut is_broken) = watch::channel(false);
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.expect("a client");
            let mut agent =
                TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await.expect("the agent");
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut agent) => {}
                _ = is_broken.wait_for(|broken| *broken) => {
                    // Closing with a linger time of zero sends RST.
                    for socket in [client, agent] {
                        rustix::net::sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO))
                            .expect("linger");
                    }
                }
            }
        });
        Self { port: here, broken }
    }
}

/// The state of an idle agent, seen from outside.
#[derive(Debug, Clone, Copy)]
struct Idle {
    descriptors: usize,
    rss_kib: u64,
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the agent runs").count()
}

fn idle(pid: u32) -> Idle {
    Idle { descriptors: descriptors(pid), rss_kib: status_kib(pid, "VmRSS") }
}

/// All files of the store except its index.
fn files(shared_box: &SharedBox) -> Vec<PathBuf> {
    let store = shared_box.agent.state_dir().join("store");
    let mut found = Vec::new();
    for dir in ["tmp", "new", "objects"] {
        found.extend(
            std::fs::read_dir(store.join(dir)).expect("a folder").flatten().map(|entry| entry.path()),
        );
    }
    found.sort();
    found
}

/// Sends the first `stop` bytes of a body of `len` bytes, piece by piece.
async fn send_some(writer: &mut ChildStdin, info: &PathInfo, way: Way, len: u64, stop: u64) {
    let head = [way.prelude(info), nar_head(len)].concat();
    piece(writer, way, &head).await;
    let block = noise(256 << 10);
    let mut left = stop;
    while left > 0 {
        let n = left.min(block.len() as u64);
        piece(writer, way, &block[..n as usize]).await;
        left -= n;
    }
}

/// Sends a piece. Errors are ignored, since the box may have hung up; later checks find out.
async fn piece(writer: &mut ChildStdin, way: Way, bytes: &[u8]) {
    if way.is_framed() {
        let _ = writer.write_all(&(bytes.len() as u64).to_le_bytes()).await;
    }
    let _ = writer.write_all(bytes).await;
}

/// Uploads the first `stop` of `len` bytes, and then ends with `end`.
async fn interrupt(shared_box: &mut SharedBox, path: &StorePath, way: Way, len: u64, stop: u64, end: End) {
    println!("{way:?}: {stop} of {len} bytes, then {end:?}");
    let relay = Relay::to(shared_box.agent.port()).await;
    let info = PathInfo { path: path.clone(), ..announced("large", len) };
    let (mut ssh, reader, mut writer) = way.begin(shared_box, relay.port, &info).await;
    send_some(&mut writer, &info, way, len, stop).await;
    match end {
        End::ClientKilled => ssh.kill().await.expect("kill ssh"),
        End::ConnectionReset => drop(relay.broken.send(true)),
        End::ClientHangsUp => drop((reader, writer)),
        End::AgentKilled => {
            shared_box.agent.kill();
            shared_box.agent.restart();
        }
        End::MemberRemoved => {
            shared_box.keep_only(&["bob"]);
            within("the member to be thrown out", ssh.wait()).await.expect("wait");
            shared_box.keep_only(&["alice", "bob"]);
            // The member can log in again within about a second of the change.
            loop {
                let status = shared_box
                    .ssh("alice", WORKER)
                    .stdin(std::process::Stdio::null())
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null())
                    .status()
                    .expect("ssh");
                // ssh's own status means that the login was refused.
                if status.code() != Some(255) {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    let _ = ssh.kill().await;
}

/// Checks that nothing of the upload remains.
async fn nothing_is_left(shared_box: &SharedBox, path: &StorePath, before: &[PathBuf], idle_before: Idle) {
    for who in ["alice", "bob"] {
        let mut session = shared_box.session(who).await;
        assert!(!session.is_valid(path).await, "visible to {who}");
        session.leave().await;
    }
    until("temporary files and objects to be what they were", || files(shared_box) == before).await;
    let pid = shared_box.agent.pid();
    until("descriptors to be closed", || descriptors(pid) <= idle_before.descriptors).await;
    until("memory to be given back", || status_kib(pid, "VmRSS") <= idle_before.rss_kib + KEPT_KIB).await;
}

/// A box after some use, so that its one-time allocations are done.
async fn warm() -> SharedBox {
    // A member who was removed tries to log in again and again here.
    let setup = Setup::default().setting("limits.per-source-penalties = \"no\"");
    let mut shared_box = SharedBox::with(&["alice", "bob"], setup);
    let path = path("warm");
    interrupt(&mut shared_box, &path, Way::Nar, 4 << 20, 3 << 20, End::ClientHangsUp).await;
    for who in ["alice", "bob"] {
        let mut session = shared_box.session(who).await;
        assert!(!session.is_valid(&path).await);
        session.leave().await;
    }
    until("connections to be closed", || shared_box.agent.count("disconnected") >= 3).await;
    shared_box
}

/// Interrupts uploads one after the other, and checks that nothing remains.
async fn leaves_nothing(runs: &[(Way, u64, u64, End)]) {
    let mut shared_box = warm().await;
    // By then the paths uploaded for warming up have their final names.
    let new = shared_box.agent.state_dir().join("store/new");
    until("new objects to get their names", || std::fs::read_dir(&new).expect("a folder").next().is_none())
        .await;
    let before = files(&shared_box);
    let mut idle_before = idle(shared_box.agent.pid());
    let path = path("large");
    for (way, len, stop, end) in runs {
        interrupt(&mut shared_box, &path, *way, *len, *stop, *end).await;
        if *end == End::AgentKilled {
            // The agent is a new process here, without the earlier allocations, so its numbers are lower than
            // before.
            idle_before.descriptors = idle_before.descriptors.max(idle(shared_box.agent.pid()).descriptors);
        } else {
            let peak = status_kib(shared_box.agent.pid(), "VmHWM").saturating_sub(idle_before.rss_kib);
            assert!(peak < PEAK_KIB, "an upload of {len} bytes took {peak} KiB");
        }
        nothing_is_left(&shared_box, &path, &before, idle_before).await;
    }
}

#[tokio::test]
async fn a_gigabyte_interrupted_near_its_end_leaves_nothing() {
    leaves_nothing(&[
        (Way::Nar, GIB, GIB - 1, End::ClientKilled),
        (Way::Multiple, GIB, GIB, End::ConnectionReset),
        (Way::Import, GIB, GIB, End::ClientKilled),
        (Way::ServeNar, GIB, GIB - 1, End::ClientHangsUp),
    ])
    .await;
}

#[tokio::test]
async fn a_gigabyte_interrupted_in_the_middle_leaves_nothing() {
    leaves_nothing(&[
        (Way::Nar, GIB, GIB / 2, End::MemberRemoved),
        (Way::Multiple, GIB, GIB / 3, End::AgentKilled),
        (Way::Nar, GIB, GIB / 4, End::ClientHangsUp),
        (Way::Import, GIB, GIB / 3, End::ConnectionReset),
    ])
    .await;
}

#[tokio::test]
async fn a_gigabyte_interrupted_at_any_point_in_any_way_leaves_nothing() {
    let mut runs = Vec::new();
    for end in
        [End::ClientKilled, End::ConnectionReset, End::ClientHangsUp, End::AgentKilled, End::MemberRemoved]
    {
        for (way, stop) in [
            (Way::Nar, 0),
            (Way::Multiple, 1),
            (Way::Nar, 4096),
            (Way::Multiple, (8 << 20) + 5),
            (Way::ServeNar, 0),
            (Way::Import, 1),
            (Way::ServeNar, 4096),
            (Way::Import, (8 << 20) + 5),
        ] {
            runs.push((way, GIB, stop, end));
        }
    }
    leaves_nothing(&runs).await;
}
