//! The front door: ssh with public keys, and nothing behind it but the commands of [`command`].
//!
//! Whoever connects is a stranger until a signature by a key of the roster, or a certificate, proves otherwise
//! ([`login`]). A connection lives only as long as the roster maps that to the same member.
//! Not here: what a session may ask for (`daemon`), and how the roster gets its contents (`roster`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::keys::PrivateKey;
use russh::server::{self, Handle};
use russh::{Disconnect, MethodKind, MethodSet, Preferred, cipher, compression, kex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::roster::Roster;
use crate::{House, turned};

pub mod command;
mod handler;
mod host_command;
pub mod host_key;
mod log;
mod login;
mod nix_command;
mod socket;

use handler::{Handler, LoggedIn};
pub use socket::Socket;

/// Bytes a client may send ahead on one channel. Uploads over a wide, distant link need it large.
const WINDOW: u32 = 8 * 1024 * 1024;
/// Largest data packet we ask for; OpenSSH never sends more than 32 KiB, others do.
const PACKET: u32 = 65_535;
/// Messages buffered per channel; with 32 KiB packets about 1 MiB before a slow store slows the sender.
const CHANNEL_BUFFER: usize = 32;
/// A client that answers none of these is gone: its builds end after about two minutes.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVES_LOST: usize = 4;
/// Signatures a stranger may get wrong. Merely offering keys is free, but bounded by `limits.login-seconds`.
const AUTH_ATTEMPTS: usize = 6;
/// Time for a last message to reach a client before its socket is shut.
const FAREWELL: Duration = Duration::from_secs(2);

/// Messages that may wait for a connection's loop, which sends what has gathered in one piece: about 1 MiB of a NAR
/// that a client does not take.
const EVENT_BUFFER: usize = 32;

/// The client's preference decides, so what is slow cannot be offered last: only left out. Of the post-quantum exchanges
/// that leaves ML-KEM, whose cost cannot be seen in the time of a login; sntrup761 costs an OpenSSH 9.2 client about 70 ms.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
/// AES-GCM alone, which every OpenSSH since 6.2 has. Most clients prefer ChaCha20-Poly1305, which takes three times the
/// processor time here; and before AES-GCM most prefer AES-CTR with a hash beside it.
const CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::AES_256_GCM];

/// How we speak ssh, with this host key. Public for the benchmark's floor, which speaks it the same way.
pub fn settings(key: PrivateKey) -> server::Config {
    server::Config {
        server_id: russh::SshId::Standard("SSH-2.0-barnraiser".into()),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        // A key is either in a hash map or not; there is nothing to hide behind a delay, and a client with ten keys
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
        max_auth_attempts: AUTH_ATTEMPTS,
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

/// What all connections share.
struct Door {
    house: Arc<House>,
    ssh: Arc<server::Config>,
    banner: Box<dyn Fn(&Roster) -> String + Send + Sync>,
    /// Held by each connection from accept to close.
    slots: Arc<Semaphore>,
    /// Connections per member name.
    members: Mutex<HashMap<Arc<str>, usize>>,
    next_id: AtomicU64,
}

/// Answers until `stop` turns true, then says goodbye to everyone and returns when the last connection is closed.
pub async fn serve(
    house: Arc<House>,
    key: PrivateKey,
    listeners: Vec<TcpListener>,
    stop: watch::Receiver<bool>,
) {
    let name = house.config.name.clone();
    let weaker = crate::backend::weaker(&house.config.sandbox);
    let door = Arc::new(Door {
        ssh: Arc::new(settings(key)),
        banner: Box::new(move |roster| banner(&name, weaker.as_deref(), roster)),
        slots: Arc::new(Semaphore::new(house.config.limits.max_connections)),
        members: Mutex::default(),
        next_id: AtomicU64::new(1),
        house,
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(door.clone(), listener, stop.clone()));
    }
    while accepting.join_next().await.is_some() {}
}

async fn accept(door: Arc<Door>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = turned(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => match door.slots.clone().try_acquire_owned() {
                    Ok(slot) => {
                        let (door, stop) = (door.clone(), stop.clone());
                        connections.spawn(async move {
                            let _slot = slot;
                            connection(door, tcp, peer, stop).await;
                        });
                    }
                    Err(_) => tracing::warn!(%peer, limit = door.house.config.limits.max_connections,
                        "connection refused: limits.max-connections reached"),
                },
                Err(error) => {
                    // Out of descriptors, most likely: existing connections must end before new ones can start.
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The banner is shown before login, on every connection, in the middle of Nix's own output: one line per fact.
fn banner(name: &str, weaker: Option<&str>, roster: &Roster) -> String {
    let mut text = format!("{name}: a Barnraiser community builder\n");
    if let Some(weaker) = weaker {
        text.push_str(&format!("warning: {weaker}\n"));
    }
    if roster.is_baked_in() {
        text.push_str("warning: the roster came with the image; the one in git could not be fetched\n");
    }
    text
}

/// One connection, from accept to close.
async fn connection(door: Arc<Door>, tcp: TcpStream, peer: SocketAddr, mut stop: watch::Receiver<bool>) {
    let id = door.next_id.fetch_add(1, Ordering::Relaxed);
    tracing::info!(connection = id, %peer, "connected");
    let socket = match tcp.as_fd().try_clone_to_owned() {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(connection = id, %error, "cannot keep a handle on the socket"),
    };
    let (login, mut logged_in) = watch::channel(None::<Arc<LoggedIn>>);
    let (end, ended) = watch::channel(false);
    let handler = Handler::new(id, peer, door.clone(), login, ended);
    let deadline = tokio::time::Instant::now() + door.house.config.limits.login_time;
    let started =
        tokio::time::timeout_at(deadline, server::run_stream(door.ssh.clone(), Socket::new(tcp), handler))
            .await;
    let mut session = match started {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => return tracing::info!(connection = id, %peer, %error, "not an ssh client"),
        Err(_) => return tracing::info!(connection = id, %peer, "no ssh greeting in time"),
    };
    let handle = session.handle();
    let mut roster = door.house.roster.clone();
    let reason = loop {
        let is_in = logged_in.borrow().clone();
        tokio::select! {
            result = &mut session => {
                let _ = end.send(true);
                let error = result.err().filter(|error| !is_hang_up(error)).map(|error| error.to_string());
                return tracing::info!(connection = id, %peer, error, "disconnected");
            }
            () = tokio::time::sleep_until(deadline), if is_in.is_none() => break "login took too long".to_owned(),
            _ = logged_in.changed(), if is_in.is_none() => {}
            Ok(()) = roster.changed() => {
                if let Some(who) = &is_in && !who.still_in(&roster.borrow_and_update()) {
                    break format!("{} or this key is no longer in the roster", who.member.name);
                }
            }
            () = turned(&mut stop) => break "the box is going down".to_owned(),
        }
    };
    tracing::info!(connection = id, %peer, reason, "closing the connection");
    close(&handle, &reason, socket).await;
    // After the farewell: a closed channel would make the client leave before it hears why.
    let _ = end.send(true);
    let _ = tokio::time::timeout(FAREWELL, session).await;
}

/// Clients that are done, or killed, just close the socket.
fn is_hang_up(error: &russh::Error) -> bool {
    matches!(error, russh::Error::IO(error) if error.kind() == std::io::ErrorKind::UnexpectedEof)
}

/// Says why, then shuts the socket whether or not that was heard: the session's loop may be stuck behind a client that
/// does not read.
async fn close(handle: &Handle, reason: &str, socket: OwnedFd) {
    let farewell = handle.disconnect(Disconnect::ByApplication, reason.to_owned(), String::new());
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
}

/// Counts a member's connections; dropping it counts down.
struct MemberSlot {
    door: Arc<Door>,
    name: Arc<str>,
}

impl Door {
    /// `None` when the member has as many connections as allowed.
    fn member_slot(self: &Arc<Self>, name: &Arc<str>) -> Option<MemberSlot> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let count = members.entry(name.clone()).or_default();
        if *count >= self.house.config.limits.max_connections_per_member {
            return None;
        }
        *count += 1;
        Some(MemberSlot { door: self.clone(), name: name.clone() })
    }
}

impl Drop for MemberSlot {
    fn drop(&mut self) {
        let mut members = self.door.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = members.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                members.remove(&self.name);
            }
        }
    }
}
