//! The parts of the agent that every session uses.

use std::sync::Arc;

use builds::realise::Realiser;
use settings::Config;
use store::Store;
use tokio::sync::watch;

/// The parts that all sessions share. They live as long as the process serves.
pub struct Agent {
    pub config: Arc<Config>,
    pub store: Store,
    /// The parts that make paths valid.
    pub realiser: Arc<Realiser>,
    /// The public half of the key that signs Verified paths.
    pub signing_key: store::signing::PublicKey,
    /// The public half of the ssh host key: `type base64`.
    pub host_key: String,
    pub roster: watch::Receiver<Arc<members::Roster>>,
    /// The tickets of members; `roster` has the holders of live ones.
    pub tickets: tickets::Tickets,
    /// When the roster was last compared with its repository.
    pub checks: members::Checks,
    /// Threads for work that blocks.
    pub threads: shares::threads::Threads,
    /// The memory budgets of the members.
    pub budgets: shares::budget::Budgets,
    /// How fast members may upload.
    pub paces: shares::pace::Paces,
    /// What members have used.
    pub ledger: ledger::Ledger,
    /// The homes of members.
    pub homes: homes::Homes,
    /// Objects that sessions are reading.
    pub opened: crate::Opened,
}
