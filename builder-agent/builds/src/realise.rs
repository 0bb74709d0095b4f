//! Realising: making the targets of one request valid in the view of its member.
//!
//! ```text
//! targets     fetch what caches have (substitutes), plan the rest, build it in order, collect the result of each target
//! └ order     which derivations may start, and which fail because of another one: no I/O
//! └ resolving a derivation whose inputs had to be built first becomes one that names their paths
//!   └ one     the derivation is valid, known from an earlier build, or built by the scheduler
//!     └ follow  the log goes to the client, under the limits of this request
//! ```
//!
//! All that happens meanwhile is reported as [`Event`](super::events::Event)s. A request that is dropped (its client
//! closed the connection) leaves every build it waits for.
//! Not here: how a client asked and what it reads (`daemon`); when a build runs, and for whom else (`schedule`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledger::Principal;
use nix::BuildStatus;
use nix_derivation::StorePath;

use super::events::Reporter;
use super::kept::KeptLogs;
use super::study::{self, Study};
use super::{Failure, SandboxIdentity, Scheduler, modulo};
use members::{Member, Views};
use settings::Config;
use shares::budget::Budget;
use shares::threads::{Lost, Workers};
use store::Store;
use substitute::Substituters;

mod follow;
mod one;
mod order;
mod resolving;
mod results;
mod substitutes;
mod targets;
mod wishes;

pub use results::{Results, result_of};
pub use targets::{build, derivation, missing, plan};
pub use wishes::Wishes;

/// The parts of the box that make paths valid. One per process.
pub struct Realiser {
    pub config: Arc<Config>,
    pub store: Store,
    pub scheduler: Arc<dyn Scheduler>,
    /// Logs of builds that ended.
    pub kept: Arc<KeptLogs>,
    /// All that every build here sees besides its inputs.
    pub sandbox_identity: SandboxIdentity,
    pub substituters: Substituters,
    /// Hashes of derivations that every member sees.
    pub drv_hashes: modulo::Known,
}

/// The options of a request: what its client says in the protocol, and the settings of its session. `None` means
/// "the box's".
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest time of a build.
    pub wall: Option<Duration>,
    /// Longest time without output.
    pub silent: Option<Duration>,
    /// Bytes of log.
    pub log: Option<u64>,
    /// Whether other builds continue after a failure.
    pub keep_going: bool,
    /// Whether the client wants the folders of failed builds kept. The client gets a message that they are not kept.
    pub keep_failed: bool,
    /// Whether the box fetches before it builds.
    pub use_substitutes: bool,
    /// The settings of the session.
    pub wishes: Arc<Wishes>,
}

/// One request, in the form that all its builds share.
#[derive(Clone)]
pub struct Context {
    pub realiser: Arc<Realiser>,
    pub member: Arc<Member>,
    pub views: Views,
    /// The threads that the member may use.
    pub workers: Workers,
    /// The memory budget of the member.
    pub budget: Budget,
    pub options: Options,
    /// Who is charged, with which key or ticket.
    pub principal: Principal,
    /// Whether the request is for one derivation that came without those that it needs, as with `--builders`.
    pub alone: bool,
    /// Has what is fetched for this request.
    pub downloads: substitute::Account,
    pub reporter: Reporter,
}

/// How one derivation ended.
pub type Ended = Result<Done, Failure>;

/// The result of a derivation whose outputs are valid.
#[derive(Debug, Clone)]
pub struct Done {
    pub status: BuildStatus,
    /// The path of each output.
    pub outputs: Arc<BTreeMap<String, StorePath>>,
    /// The hash that names the realisations of these outputs, if the derivation did not state their paths.
    pub drv_hash: Option<[u8; 32]>,
    /// Whether these outputs are proven to be those of the derivation: it was built from a closure that was Verified
    /// when the build began. The view cannot answer this later: a claim among the inputs may have given way to a
    /// Verified path meanwhile.
    pub proven: bool,
    /// Unix seconds; 0 if no builder ran.
    pub start_time: i64,
    pub stop_time: i64,
}

impl Done {
    fn already(outputs: BTreeMap<String, StorePath>, proven: bool) -> Self {
        Self::without_run(BuildStatus::AlreadyValid, Arc::new(outputs), proven)
    }

    fn without_run(status: BuildStatus, outputs: Arc<BTreeMap<String, StorePath>>, proven: bool) -> Self {
        Self { status, outputs, drv_hash: None, proven, start_time: 0, stop_time: 0 }
    }
}

impl Context {
    /// Does work that reads derivations.
    async fn study<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Study) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        study::studied(&self.workers, &self.budget, work).await
    }
}

/// The work for a request ended without a result; other requests are not affected.
fn lost(error: Lost) -> Failure {
    tracing::error!(%error, "work for a request was lost");
    Failure::transient(format!("the request failed because of the box: {error}"))
}
