//! Sessions: what a client asks for in one channel, answered from its member's view.
//!
//! `worker_protocol` and `serve_protocol` are the two protocols of Nix; `host_command` is what deployment tools run
//! besides. All three turn requests into calls of `store` and `builds`, and render what those report.
//! Not here: bytes (`wire`), contents (`store`), what is built and when (`builds`), who logs in (`ssh`).

use std::pin::Pin;
use std::sync::Arc;

use store::View;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use wire::WireError;
use wire::types::ClientSettings;

use members::{Member, Roster, Views};
use shares::budget::Charge;

mod agent;
mod ask;
mod audience;
mod building;
mod client_settings;
mod desk;
mod fetching;
mod garbage;
mod host_command;
mod logs;
mod render;
mod serve_protocol;
mod transfer;
mod worker_protocol;

pub use agent::Agent;
pub use host_command::{HostCommand, Realise, run_host_command};
pub use serve_protocol::serve_store;
pub use transfer::Opened;
pub use worker_protocol::serve;

use desk::Desk;
use render::worker::Ids;

/// What a path takes that a session keeps from being collected.
const HELD_BYTES: u64 = 256;

/// State of one session.
struct Session {
    agent: Arc<Agent>,
    member: Arc<Member>,
    views: Views,
    /// Where its work is done.
    desk: Desk,
    /// Who shares with the member can change between two requests.
    roster: watch::Receiver<Arc<Roster>>,
    /// What the client last sent with `SetOptions`.
    settings: ClientSettings,
    /// What the connection asked for besides.
    options: SessionOptions,
    /// For the paths that this session keeps from being collected.
    held: Option<Charge>,
    /// Of the activities that the client is shown.
    ids: Ids,
}

/// Who is at the other end of a channel.
pub struct Caller {
    pub member: Arc<Member>,
    /// Names the ssh connection in logs.
    pub connection: u64,
    pub options: SessionOptions,
}

/// What a client can say only around the protocol: in environment variables of its ssh channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Off with `BARNRAISER_REUSE_FAILURES=0`: builds that failed before are tried again.
    pub reuse_failures: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { reuse_failures: true }
    }
}

impl SessionOptions {
    /// Takes in one variable; false if it means nothing here.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        if name != builds::reuse::RETRY_VARIABLE {
            return false;
        }
        self.reuse_failures = !matches!(value, "0" | "false" | "no");
        true
    }
}

/// Why a session ended before its client hung up.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No greeting, so no protocol in which to say so: only a person who reads stderr can be told.
    #[error(transparent)]
    Greeting(WireError),
    /// The client has been told, unless it is gone.
    #[error(transparent)]
    Told(WireError),
    /// The same, where a protocol has no other way to refuse a request than to end.
    #[error("{0}")]
    Refused(String),
}

/// One direction of a channel. Not a type parameter: everything behind it would be compiled again for each kind of
/// channel, in each program that has one.
pub type Reader<'a> = Box<dyn AsyncRead + Unpin + Send + 'a>;
/// The other direction.
pub type Writer<'a> = Box<dyn AsyncWrite + Unpin + Send + 'a>;
/// A session that goes on while this is polled, and ends with its builds and half-done uploads when it is dropped.
pub type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a client reads of an error that ends its connection. `wire` knows the limit and not where it is set.
fn in_words(error: &WireError) -> String {
    match error {
        WireError::NothingSent { .. } => {
            format!("{error} (the box's `limits.client-stall-seconds`)")
        }
        error => error.to_string(),
    }
}

/// Logs the end of a session, also of one that is dropped because its connection is gone.
struct EndLogged {
    connection: u64,
    member: Arc<Member>,
    what: &'static str,
}

impl Drop for EndLogged {
    fn drop(&mut self) {
        tracing::info!(connection = self.connection, member = %self.member.name, "{}", self.what);
    }
}

impl Session {
    fn open(agent: Arc<Agent>, member: Arc<Member>, options: SessionOptions) -> Self {
        let mut roster = agent.roster.clone();
        let now = roster.borrow_and_update().clone();
        let current = now.current(&member).cloned();
        if current.is_none() {
            // The first request will find out.
            roster.mark_changed();
        }
        let member = current.unwrap_or(member);
        let views = Views::open(&agent.store, &agent.roster, &member);
        // Nix sends no settings through `ssh-ng://`; then those of the box hold, and it fetches what it can.
        let keep_going = agent.config.keep_going;
        let settings = ClientSettings { use_substitutes: true, keep_going, ..ClientSettings::default() };
        let desk = Desk::of(&agent, &member.id);
        let held = desk.budget.charge(0, "the list of paths that a session needs").ok();
        Self { agent, member, views, desk, roster, settings, options, held, ids: Ids::new() }
    }

    /// Before each request: whether the member is one still, and has memory for what the session holds by now.
    fn admit(&mut self) -> Result<(), String> {
        if let Some(held) = &mut self.held {
            held.set(self.views.held() as u64 * HELD_BYTES).map_err(|over| over.to_string())?;
        }
        self.follow_roster()
    }

    /// The store as the member may see it at this moment. For one step: whatever waits takes another one afterwards.
    fn view(&self) -> View {
        self.views.now()
    }

    /// Looks up who the member is by now. Who has left the roster gets no further, with what to tell them.
    fn follow_roster(&mut self) -> Result<(), String> {
        // An error is a roster that nobody follows any more: the process is ending.
        if !self.roster.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let now = self.roster.borrow_and_update().clone();
        let Some(member) = now.current(&self.member) else {
            self.roster.mark_changed();
            return Err(format!("{} is no longer in the roster", self.member.name));
        };
        self.member = member.clone();
        self.views.follow();
        Ok(())
    }
}
