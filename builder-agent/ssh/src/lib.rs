//! The front door: ssh with public keys, which leads only to the commands of [`commands`].
//!
//! A client is a stranger until a signature by a key of the roster, or a certificate, proves that it is a member's
//! ([`login`]). Strangers have places of their own ([`gate`]), so no number of them keeps a member out. A connection
//! lives only as long as the roster maps its credential to the same member.
//! Not here: what a session may ask for (`daemon`), and how the roster gets its contents (`members`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use russh::keys::PrivateKey;
use russh::server;
use russh::{MethodKind, MethodSet, Preferred, cipher, compression, kex};
use rustix::net::SendFlags;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use daemon::Agent;

mod alias;
mod commands;
mod connection;
mod gate;
mod handler;
mod home;
mod login;
mod metered;
mod penalties;
mod places;
mod quiet;
mod records;
mod shell;
mod socket;
mod stop;
mod terminal;
mod ticket_login;
mod ticket_words;

use gate::Gate;
use members::{Member, Roster};
use places::{Place, Places};
use quiet::{Line, Quiet};
use records::{Event, Kind, Records, removals};
pub use socket::Socket;
pub use stop::Stop;

/// Bytes that a client may send ahead on one channel. Large, for uploads over a fast link with a high latency.
const WINDOW: u32 = 8 * 1024 * 1024;
/// Largest data packet a client may send. OpenSSH never sends more.
const PACKET: u32 = 32_768;
/// Packets that may wait for a channel's session: 512 KiB; beyond that, a slow store slows the sender. Every session of
/// a member is charged for all of them (`daemon::desk`).
const CHANNEL_BUFFER: usize = 16;
/// A client that answers none of these is lost: its builds end after about two minutes.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVES_LOST: usize = 4;
/// Messages that may wait for a connection's loop, which sends waiting ones together: about 1 MiB of a NAR that a
/// client does not read.
const EVENT_BUFFER: usize = 32;

/// The client's order of preference decides, so a slow method cannot be listed last, only left out. Of the post-quantum
/// exchanges only ML-KEM is offered: it does not make a login measurably slower, while sntrup761 costs an OpenSSH 9.2
/// client about 70 ms.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
/// Only AES-GCM, which every OpenSSH since 6.2 has. Most clients prefer ChaCha20-Poly1305, which takes three times the
/// processor time here, and prefer AES-CTR with a separate hash to AES-GCM.
const CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::AES_256_GCM];

/// The ssh configuration with this host key. Public for the baseline of the benchmark, which uses the same.
pub fn settings(key: PrivateKey) -> server::Config {
    server::Config {
        server_id: russh::SshId::Standard("SSH-2.0-barnraiser".into()),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        // The comparison of keys is a look-up in a hash map, so a delay would hide nothing, and a client with ten keys
        // would wait ten times.
        auth_rejection_time: Duration::from_millis(20),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: CHANNEL_BUFFER,
        event_buffer_size: EVENT_BUFFER,
        preferred: Preferred {
            kex: KEX.into(),
            cipher: CIPHERS.into(),
            compression: [compression::NONE].as_slice().to_vec().into(),
            ..Preferred::DEFAULT
        },
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVES_LOST,
        ..server::Config::default()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {cause}{}", hint(cause))]
    Bind { address: SocketAddr, cause: std::io::Error },
}

fn hint(cause: &std::io::Error) -> &'static str {
    match cause.kind() {
        std::io::ErrorKind::AddrInUse => {
            "\nhint: something else answers there, perhaps OpenSSH; choose another port in `listen`"
        }
        std::io::ErrorKind::PermissionDenied => "\nhint: ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// Opens every address of `listen`. IPv6 sockets take IPv6 only, so that `0.0.0.0` and `[::]` stand side by side.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    addresses
        .iter()
        .map(|&address| {
            let bind = || {
                let socket = match address {
                    SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                    SocketAddr::V6(_) => {
                        let socket = tokio::net::TcpSocket::new_v6()?;
                        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
                        socket
                    }
                };
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                socket.listen(1024)
            };
            bind().map_err(|cause| ListenError::Bind { address, cause })
        })
        .collect()
}

/// Logs one line about a connection that is not logged in, if the budget for such lines allows it.
macro_rules! about_stranger {
    ($server:expr, $level:ident, $($field:tt)*) => {
        if let Some($crate::quiet::Line { left_out }) = $server.quiet.line() {
            tracing::$level!(left_out, $($field)*);
        }
    };
}
use about_stranger;

/// The state that all connections share.
struct Server {
    agent: Arc<Agent>,
    ssh: Arc<server::Config>,
    banner: Box<dyn Fn(&Agent) -> String + Send + Sync>,
    /// Places of connections that are not logged in.
    gate: Arc<Gate>,
    /// The budget for log lines about those.
    quiet: Quiet,
    records: Records,
    /// Held by each logged-in connection until it is closed.
    slots: Arc<Semaphore>,
    /// Places of members, for connections and for sessions.
    places: Arc<Places>,
    next_id: AtomicU64,
}

/// The sockets of [`bind`] after another program had them: those of `open` that listen on the same addresses stay open, so
/// that no client is refused meanwhile; the others are closed.
pub fn bind_again(
    addresses: &[SocketAddr],
    mut open: Vec<std::net::TcpListener>,
) -> Result<Vec<TcpListener>, ListenError> {
    let matched: Vec<_> = addresses
        .iter()
        .map(|address| {
            let listens_there = |socket: &std::net::TcpListener| {
                let local = socket.local_addr();
                local.is_ok_and(|local| {
                    local.ip() == address.ip() && [local.port(), 0].contains(&address.port())
                })
            };
            (*address, open.iter().position(listens_there).map(|at| open.remove(at)))
        })
        .collect();
    // Before any other is opened: one that still listens on `0.0.0.0` has the port of every address.
    drop(open);
    let mut listeners = Vec::new();
    for (address, socket) in matched {
        match socket {
            Some(socket) => {
                let cannot = |cause| ListenError::Bind { address, cause };
                socket.set_nonblocking(true).map_err(cannot)?;
                listeners.push(TcpListener::from_std(socket).map_err(cannot)?);
            }
            None => listeners.append(&mut bind(&[address])?),
        }
    }
    Ok(listeners)
}

/// Serves until `stop` is requested, then sends a last message to every client and returns when the last connection is
/// closed.
pub async fn serve(agent: Arc<Agent>, key: PrivateKey, listeners: Vec<TcpListener>, stop: Stop) {
    let name = agent.config.name.clone();
    let weaker = builds::backend::weaker(&agent.config.sandbox);
    let limits = &agent.config.limits;
    // Most clients first ask for the possible methods, which counts as an attempt.
    let ssh = server::Config { max_auth_attempts: limits.max_auth_tries + 1, ..settings(key) };
    let server = Arc::new(Server {
        ssh: Arc::new(ssh),
        banner: Box::new(move |agent| banner(&name, weaker.as_deref(), agent)),
        gate: Gate::new(limits),
        quiet: Quiet::new(),
        records: Records::open(&agent.config.state_dir),
        slots: Arc::new(Semaphore::new(limits.max_connections)),
        places: Arc::default(),
        next_id: AtomicU64::new(1),
        agent,
    });
    server
        .records
        .audit
        .note(Event::now(Kind::Started).saying(concat!("barnraiser ", env!("CARGO_PKG_VERSION"))));
    tokio::spawn(note_rosters(server.clone(), stop.clone()));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(server.clone(), listener, stop.clone()));
    }
    let mut report = tokio::time::interval(quiet::REPORT);
    loop {
        tokio::select! {
            ended = accepting.join_next() => if ended.is_none() { return },
            _ = report.tick() => if let Some(left_out) = server.quiet.untold() {
                tracing::warn!(left_out, "log lines about clients before login were left out");
            },
        }
    }
}

/// Notes each change of who may use the box.
async fn note_rosters(server: Arc<Server>, stop: Stop) {
    let mut roster = server.agent.roster.clone();
    let mut before = roster.borrow_and_update().clone();
    loop {
        tokio::select! {
            _ = stop.requested() => return,
            changed = roster.changed() => if changed.is_err() { return },
        }
        let now = roster.borrow_and_update().clone();
        let differences = members::differences(&before, &now);
        // Each ticket that is made or ends gives a new roster too: that is no change of the roster in git.
        if differences.is_some() || (&now.commit, now.loaded) != (&before.commit, before.loaded) {
            let commit = now.commit.as_deref().unwrap_or("without a commit");
            let text =
                format!("{commit}: {}", differences.as_deref().unwrap_or("the same members and roles"));
            server.records.audit.note(Event::now(Kind::Roster).saying(&text));
        }
        let left = removals::left(&before, &now);
        if !left.is_empty() {
            let (agent, records) = (server.agent.clone(), server.records.clone());
            tokio::spawn(removals::follow(agent, records, left, now.clone()));
        }
        before = now;
    }
}

/// This loop never waits for a client: each connection gets a task of its own, or is dropped.
async fn accept(server: Arc<Server>, listener: TcpListener, stop: Stop) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stop.requested() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => match server.gate.knock(peer.ip()) {
                    Ok(visit) => {
                        connections.spawn(connection::serve(server.clone(), tcp, peer, visit, stop.clone()));
                    }
                    Err(left) => hold_off(&server, &tcp, peer, left),
                },
                Err(error) => {
                    // Most likely there are no free descriptors: existing connections must end before new ones can
                    // start.
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Sends one line, before any ssh, with the reason why this address is refused for now. `ssh -v` shows it.
fn hold_off(server: &Server, tcp: &TcpStream, peer: SocketAddr, left: Duration) {
    let seconds = left.as_secs() + 1;
    if let Some(Line { left_out }) = server.quiet.line() {
        tracing::info!(%peer, seconds, left_out, "connection refused: limits.per-source-penalties");
    }
    let line = format!(
        "Not allowed at this time: too many logins from your address failed (limits.per-source-penalties); try again in {seconds} seconds\r\n"
    );
    // Written directly to the socket, because the runtime does not know yet that the socket is writable. Bytes that do
    // not fit into the empty buffer of a new connection are not sent.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _ = rustix::net::send(tcp, line.as_bytes(), flags);
}

/// The banner is shown before login, on every connection, in the middle of Nix's own output: one line per fact.
fn banner(name: &str, weaker: Option<&str>, agent: &Agent) -> String {
    let mut text = format!("{name}: a Barnraiser community builder\n");
    if let Some(weaker) = weaker {
        text.push_str(&format!("warning: {weaker}\n"));
    }
    if agent.roster.borrow().is_baked_in() {
        text.push_str("warning: the roster came with the image; the one in git could not be fetched\n");
    }
    if let Some(why) = agent.checks.too_old() {
        text.push_str(&format!("warning: {why}\n"));
    }
    text
}

/// A logged-in connection's place: one of all members' and one of its member's own. Dropping it frees both.
struct MemberSlot {
    _all: OwnedSemaphorePermit,
    _own: Place,
}

impl Server {
    /// A place for a connection of this member of the roster, or the message about the limit that is reached.
    fn member_slot(&self, roster: &Roster, member: &Member) -> Result<MemberSlot, String> {
        let own = self.place(places::Kind::Connection, roster, member)?;
        let Ok(all) = self.slots.clone().try_acquire_owned() else {
            return Err(format!(
                "the box has {} connections of members open, which is the limit (the box's `limits.max-connections`); \
                 try again later",
                self.agent.config.limits.max_connections
            ));
        };
        Ok(MemberSlot { _all: all, _own: own })
    }

    /// One of the member's own places, likewise.
    fn place(&self, kind: places::Kind, roster: &Roster, member: &Member) -> Result<Place, String> {
        self.places.take(kind, &self.agent.config.limits, roster, member)
    }
}
