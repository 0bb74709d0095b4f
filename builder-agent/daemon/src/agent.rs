//! The parts that every session works with.

use std::sync::Arc;

use builds::realise::Realiser;
use settings::Config;
use store::Store;
use tokio::sync::watch;

/// What all sessions share. Lives as long as the process serves.
pub struct Agent {
    pub config: Arc<Config>,
    pub store: Store,
    /// The parts that make paths valid.
    pub realiser: Arc<Realiser>,
    /// The public half of the key that signs Verified paths.
    pub signing_key: store::signing::PublicKey,
    pub roster: watch::Receiver<Arc<members::Roster>>,
    /// Where work that blocks is done.
    pub threads: shares::threads::Threads,
    /// How much memory each member's requests may take.
    pub budgets: shares::budget::Budgets,
    /// What is being read just now.
    pub opened: crate::Opened,
}
