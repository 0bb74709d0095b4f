//! One connection, from accept to close.
//!
//! A connection ends when its client hangs up, when it does not log in in time or has to make room for another stranger,
//! when the roster no longer has its member or key, and when the box shuts down. Only the first of these is the client's.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::Disconnect;
use russh::server::{self, Handle, RunningSession};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::gate::{Ending, Visit};
use super::handler::{Handler, LoggedIn};
use super::{Server, Socket, Stop, about_stranger};

/// Time for a last message to reach a client before its socket is shut.
const FAREWELL: Duration = Duration::from_secs(2);

struct Connection {
    id: u64,
    peer: SocketAddr,
    server: Arc<Server>,
    visit: Arc<Visit>,
    stop: Stop,
    /// The login has to succeed by then.
    deadline: Instant,
    logged_in: watch::Receiver<Option<Arc<LoggedIn>>>,
}

/// Serves a client until one of the two sides ends the connection.
pub(super) async fn serve(
    server: Arc<Server>,
    tcp: TcpStream,
    peer: SocketAddr,
    visit: Arc<Visit>,
    stop: Stop,
) {
    let id = server.next_id.fetch_add(1, Ordering::Relaxed);
    about_stranger!(server, info, connection = id, %peer, "connected");
    let socket = match tcp.as_fd().try_clone_to_owned() {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(connection = id, %error, "cannot keep a handle on the socket"),
    };
    let (login, logged_in) = watch::channel(None::<Arc<LoggedIn>>);
    let end = CancellationToken::new();
    // Commands end with the connection, however it ends.
    let _end = end.clone().drop_guard();
    let tcp = Socket::new(tcp);
    let handler = Handler::new(id, peer, server.clone(), visit.clone(), login, (end.clone(), tcp.traffic()));
    let deadline = Instant::now() + server.agent.config.limits.login_time;
    let mut connection = Connection { id, peer, server, visit, stop, deadline, logged_in };
    let Some(mut session) = connection.greet(tcp, handler).await else { return };
    let handle = session.handle();
    let reason = connection.attend(&mut session, &end).await;
    let Some(reason) = reason else { return };
    connection.log_close(&reason);
    close(&handle, &reason, socket).await;
    // After the farewell: a closed channel would make the client leave before it receives the reason.
    end.cancel();
    let _ = timeout(FAREWELL, session).await;
}

impl Connection {
    /// Exchanges the first messages of ssh. `None` if there is no ssh session to attend to.
    async fn greet(&mut self, tcp: Socket, handler: Handler) -> Option<RunningSession<Handler>> {
        let Self { id, peer, server, visit, stop, deadline, .. } = self;
        let starting = server::run_stream(server.ssh.clone(), tcp, handler);
        let started = tokio::select! {
            started = timeout_at(*deadline, starting) => started,
            () = visit.must_leave() => {
                about_stranger!(server, info, connection = id, %peer, "made room for another connection");
                return None;
            }
            _ = stop.requested() => return None,
        };
        match started {
            Ok(Ok(session)) => return Some(session),
            Ok(Err(error)) => {
                visit.ends(blame(&error));
                about_stranger!(server, info, connection = id, %peer, %error, "not an ssh client");
            }
            Err(_) => {
                visit.ends(Ending::Late);
                about_stranger!(server, info, connection = id, %peer, "no ssh greeting in time");
            }
        }
        None
    }

    /// Waits for the end. Returns the reason if it is this side that ends the connection.
    async fn attend(
        &mut self,
        session: &mut RunningSession<Handler>,
        end: &CancellationToken,
    ) -> Option<String> {
        let mut roster = self.server.agent.roster.clone();
        loop {
            let is_in = self.logged_in.borrow_and_update().clone();
            // Compared with the roster in each round: a change of the roster that comes together with the login would be
            // missed by a comparison that waits for a change.
            if let Some(who) = &is_in
                && !who.still_in(&roster.borrow_and_update())
            {
                return Some(who.gone());
            }
            tokio::select! {
                result = &mut *session => {
                    end.cancel();
                    self.hung_up(result.err().filter(|error| !is_hang_up(error)), is_in.is_some());
                    return None;
                }
                () = sleep_until(self.deadline), if is_in.is_none() => {
                    self.visit.ends_unless_known(Ending::Late);
                    let seconds = self.server.agent.config.limits.login_time.as_secs();
                    return Some(format!("no login within limits.login-seconds ({seconds})"));
                }
                () = self.visit.must_leave(), if is_in.is_none() => {
                    let reason = "too many connections are not logged in yet; try again (limits.max-startups)";
                    return Some(reason.to_owned());
                }
                _ = self.logged_in.changed(), if is_in.is_none() => {}
                Ok(()) = roster.changed() => {}
                why = kicked(is_in.as_deref()) => return Some(why.to_string()),
                reason = self.stop.requested() => return Some(reason.to_owned()),
            }
        }
    }

    /// The client ended the connection, by `error` if that was no orderly end.
    fn hung_up(&self, error: Option<russh::Error>, is_in: bool) {
        let Self { id, peer, server, visit, .. } = self;
        let text = error.as_ref().map(ToString::to_string);
        if is_in {
            return tracing::info!(connection = id, %peer, error = text, "disconnected");
        }
        visit.ends_unless_known(error.as_ref().map_or(Ending::Gone, blame));
        about_stranger!(server, info, connection = id, %peer, error = text, "disconnected");
    }

    fn log_close(&self, reason: &str) {
        let Self { id, peer, server, .. } = self;
        match self.logged_in.borrow().is_some() {
            true => tracing::info!(connection = id, %peer, reason, "closing the connection"),
            false => about_stranger!(server, info, connection = id, %peer, reason, "closing the connection"),
        }
    }
}

/// Waits until a maintainer ends this connection of a member.
async fn kicked(is_in: Option<&LoggedIn>) -> Arc<str> {
    match is_in {
        Some(who) => who.seat.kicked().await,
        None => std::future::pending().await,
    }
}

/// The kind of end of a connection without a login, which decides about penalties.
fn blame(error: &russh::Error) -> Ending {
    match error {
        // Networks fail, and clients may want what this box does not offer.
        russh::Error::IO(_)
        | russh::Error::Disconnect
        | russh::Error::HUP
        | russh::Error::NoCommonAlgo { .. }
        | russh::Error::KeepaliveTimeout => Ending::Gone,
        _ => Ending::Malformed,
    }
}

/// Clients that are done, or killed, just close the socket.
fn is_hang_up(error: &russh::Error) -> bool {
    matches!(error, russh::Error::IO(error) if error.kind() == std::io::ErrorKind::UnexpectedEof)
}

/// Sends the reason, then shuts the socket whether or not the client received it: the session's loop may be stuck behind a
/// client that does not read.
async fn close(handle: &Handle, reason: &str, socket: OwnedFd) {
    let farewell = handle.disconnect(Disconnect::ByApplication, reason.to_owned(), String::new());
    let _ = timeout(FAREWELL, farewell).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
}
