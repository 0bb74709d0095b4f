//! The builder agent: the ssh front door of a Barnraiser box and everything behind it.
//!
//! Joins `wire` (bytes to requests), `store` (paths and who may see them) and `sandbox` (where builders run), and owns
//! what is between them: who may log in, what a session may ask, when a build runs, and how the process ends.
//! `docs/guides/operator.md` is the operator's guide.

use std::sync::Arc;

use tokio::sync::watch;

pub mod backend;
pub mod budget;
pub mod build;
pub mod config;
mod convert;
pub mod daemon;
pub mod logging;
pub mod net;
pub mod roster;
mod secret_file;
pub mod serve;
pub mod signing;
pub mod ssh;
pub mod substitute;
pub mod threads;

/// What all sessions share. Lives as long as the process serves.
pub struct House {
    pub config: Arc<config::Config>,
    pub store: store::Store,
    pub scheduler: Arc<dyn build::Scheduler>,
    /// The public half of the key that signs Verified paths.
    pub signing_key: store::signing::PublicKey,
    /// Logs of ended builds.
    pub kept: Arc<build::kept::KeptLogs>,
    /// What every build here sees besides its inputs.
    pub ground: build::Ground,
    pub substituters: substitute::Substituters,
    /// For everything the box itself fetches.
    pub http: Arc<net::HttpClient>,
    pub roster: watch::Receiver<Arc<roster::Roster>>,
    /// Hashes of derivations that every member sees.
    pub drv_hashes: build::modulo::Known,
    /// Where work that blocks is done.
    pub threads: threads::Threads,
    /// How much memory each member's requests may take.
    pub budgets: budget::Budgets,
}

impl House {
    /// The store as `member` may see it by `roster`.
    pub fn view_of(&self, member: &roster::Member, roster: &roster::Roster) -> store::View {
        roster.view_of(&self.store, member)
    }
}

/// Ready when a flag turns true, or when nobody is left who could set it.
pub(crate) async fn turned(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
