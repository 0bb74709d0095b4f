//! Sessions: the agent answers the requests that a client sends in one channel, from the view of its member.
//!
//! `worker_protocol` and `serve_protocol` are the two protocols of Nix; `host_command` has the commands that deployment
//! tools run besides. All three turn requests into calls of `store` and `builds`, and render their results and events.
//! Not here: bytes (`wire`), contents (`store`), what is built and when (`builds`), who logs in (`ssh`).

use std::pin::Pin;
use std::sync::Arc;

use ledger::{Counter, Principal};
use store::View;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use wire::WireError;
use wire::types::ClientSettings;

use homes::Home;
use members::{Member, Roster, Views};
use shares::budget::Charge;

mod agent;
mod appearing;
mod ask;
mod audience;
mod building;
mod client_settings;
mod desk;
mod drained;
mod fetching;
mod garbage;
mod host_command;
mod levels;
mod logs;
mod opened;
mod render;
mod request_error;
mod scope;
mod serve_protocol;
mod transfer;
mod upload_limit;
mod worker_protocol;

pub use agent::Agent;
pub use desk::SESSION_BYTES;
pub use host_command::{HostCommand, Realise, run_host_command};
pub use levels::{SessionOptions, layers, principal};
pub use opened::Opened;
pub use serve_protocol::serve_store;
pub use worker_protocol::serve;

use builds::realise::Wishes;
use desk::Desk;
use render::worker::Ids;

/// Memory of a path that a session keeps from being collected.
const HELD_BYTES: u64 = 256;

/// State of one session.
struct Session {
    agent: Arc<Agent>,
    member: Arc<Member>,
    views: Views,
    /// The session's threads and memory budget.
    desk: Desk,
    /// The current roster: shares can change between two requests.
    roster: watch::Receiver<Arc<Roster>>,
    /// The settings of the client's last `SetOptions`.
    settings: ClientSettings,
    /// The options that the client sent outside of the protocol.
    options: SessionOptions,
    /// The settings of the member and of the client, by the current roster.
    wishes: Arc<Wishes>,
    /// The charge for the paths that this session keeps from being collected.
    held: Option<Charge>,
    /// The ids of activities that the client is shown.
    ids: Ids,
    /// Who is charged for builds and downloads.
    principal: Principal,
    /// Counts the requests that are being answered.
    counter: Counter,
    /// The client is in this home, and reads from the store that it shows.
    home: Option<Arc<Home>>,
}

/// The member at the other end of a channel.
pub struct Caller {
    pub member: Arc<Member>,
    /// Names the ssh connection in logs.
    pub connection: u64,
    pub options: SessionOptions,
    /// The home that it is in, if it is the Nix of one.
    pub home: Option<Arc<Home>>,
}

impl Caller {
    /// A client that comes through the front door.
    #[must_use]
    pub fn outside(member: Arc<Member>, connection: u64, options: SessionOptions) -> Self {
        Self { member, connection, options, home: None }
    }
}

/// The reason why a session ended before the client closed the connection.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The client sent no greeting, so no protocol is agreed. The message can go only to stderr, where a person may
    /// read it.
    #[error(transparent)]
    Greeting(WireError),
    /// The client got the message, unless it has closed the connection.
    #[error(transparent)]
    Told(WireError),
    /// The request was refused, in a protocol where that ends the session.
    #[error("{0}")]
    Refused(String),
}

/// One direction of a channel. A boxed trait object, because with a type parameter all code behind it would be compiled
/// again for each kind of channel in each program.
pub type Reader<'a> = Box<dyn AsyncRead + Unpin + Send + 'a>;
/// The other direction.
pub type Writer<'a> = Box<dyn AsyncWrite + Unpin + Send + 'a>;
/// A session, which runs while it is polled. Dropping it ends the session with its builds and unfinished uploads.
pub type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The message to a client for an error that ends its connection. `wire` does not know which key sets the limit.
fn in_words(error: &WireError) -> String {
    match error {
        WireError::NothingSent { .. } => {
            format!("{error} (the box's `limits.client-stall-seconds`)")
        }
        error if error.is_too_large_a_body() => format!(
            "{error} (the box's `limits.max-nar-mib`); send smaller paths, or ask the operator of the box for more"
        ),
        error => error.to_string(),
    }
}

/// Logs the end of a session when it is dropped, also if the connection was lost.
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
            // The session still opens; its first request is refused.
            roster.mark_changed();
        }
        let member = current.unwrap_or(member);
        let views = Views::open(&agent.store, &agent.roster, &member);
        // Nix sends no settings through `ssh-ng://`. So the defaults are those of all levels, and substitution is on.
        let wishes = Arc::new(Wishes::of(layers(&agent.config, &member, &options)));
        let keep_going = wishes.effective.keep_going;
        let settings = ClientSettings { use_substitutes: true, keep_going, ..ClientSettings::default() };
        let desk = Desk::of(&agent, &member);
        let held = desk.budget.charge(0, "the list of paths that a session needs").ok();
        let principal = options.principal(&member);
        let counter = agent.ledger.counter(&principal);
        let ids = Ids::new();
        Self {
            agent,
            member,
            views,
            desk,
            roster,
            settings,
            options,
            wishes,
            held,
            ids,
            principal,
            counter,
            home: None,
        }
    }

    /// Before each request: checks that the member is still in the roster, and charges the memory that the session
    /// holds by now.
    fn admit(&mut self) -> Result<(), String> {
        if let Some(held) = &mut self.held {
            held.set(self.views.held() as u64 * HELD_BYTES).map_err(|over| over.to_string())?;
        }
        self.follow_roster()
    }

    /// The member's current view, for one step: after each wait, the caller must take a new one.
    fn view(&self) -> View {
        self.views.now()
    }

    /// Updates the member from the current roster. Fails, with a message for the client, if the member has left it.
    fn follow_roster(&mut self) -> Result<(), String> {
        // An error means that the sender of the roster is gone: the process is ending.
        if !self.roster.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let now = self.roster.borrow_and_update().clone();
        let Some(member) = now.current(&self.member) else {
            self.roster.mark_changed();
            return Err(self.member.left());
        };
        self.member = member.clone();
        self.wishes = Arc::new(Wishes::of(layers(&self.agent.config, &self.member, &self.options)));
        self.views.follow();
        Ok(())
    }
}
