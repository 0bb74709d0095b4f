//! The parts that every session works with.

use std::sync::Arc;

use settings::Config;
use store::Store;
use tokio::sync::watch;

/// What all sessions share. Lives as long as the process serves.
pub struct Agent {
    pub config: Arc<Config>,
    pub store: Store,
    pub scheduler: Arc<dyn builds::Scheduler>,
    /// The public half of the key that signs Verified paths.
    pub signing_key: store::signing::PublicKey,
    /// Logs of ended builds.
    pub kept: Arc<builds::kept::KeptLogs>,
    /// What every build here sees besides its inputs.
    pub sandbox_identity: builds::SandboxIdentity,
    pub substituters: substitute::Substituters,
    pub roster: watch::Receiver<Arc<members::Roster>>,
    /// Hashes of derivations that every member sees.
    pub drv_hashes: builds::modulo::Known,
    /// Where work that blocks is done.
    pub threads: shares::threads::Threads,
    /// How much memory each member's requests may take.
    pub budgets: shares::budget::Budgets,
    /// What is being read just now.
    pub opened: crate::Opened,
}

impl Agent {
    /// The store as `member` may see it by `roster`.
    pub fn view_of(&self, member: &members::Member, roster: &members::Roster) -> store::View {
        roster.view_of(&self.store, member)
    }
}
