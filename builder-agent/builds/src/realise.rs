//! Realising: making the targets of one request valid in the view of its member.
//!
//! ```text
//! targets     fetch what caches have (substitutes), plan the rest, build it in order, say what became of each target
//! └ order     which derivations may start, and which fail because of another one: no I/O
//! └ resolving a derivation whose inputs had to be built first becomes one that names their paths
//!   └ one     valid already, known from an earlier build, or built by the scheduler
//!     └ follow  its log on the way to the client, under the limits of this request
//! ```
//!
//! What happens meanwhile is reported as [`Event`](super::events::Event)s. A request that is dropped (its client hung up)
//! leaves every build it waits for.
//! Not here: how a client asked and what it reads (`daemon`); when a build runs, and for whom else (`schedule`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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

pub use results::{Results, result_of};
pub use targets::{build, derivation, missing, plan};

/// The parts of the box that make paths valid. One per process.
pub struct Realiser {
    pub config: Arc<Config>,
    pub store: Store,
    pub scheduler: Arc<dyn Scheduler>,
    /// Logs of ended builds.
    pub kept: Arc<KeptLogs>,
    /// What every build here sees besides its inputs.
    pub sandbox_identity: SandboxIdentity,
    pub substituters: Substituters,
    /// Hashes of derivations that every member sees.
    pub drv_hashes: modulo::Known,
}

/// What one client asked for beside its targets. `None` means "the box's".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Longest time of a build.
    pub wall: Option<Duration>,
    /// Longest time without output.
    pub silent: Option<Duration>,
    /// Bytes of log.
    pub log: Option<u64>,
    /// Whether a failure of an earlier build is an answer.
    pub reuse_failures: bool,
    /// Whether other builds continue after a failure.
    pub keep_going: bool,
    /// Whether the client wants folders of failed builds kept. It is told that they are not.
    pub keep_failed: bool,
    /// Whether the box fetches before it builds.
    pub use_substitutes: bool,
}

/// One request, as all its builds share it.
#[derive(Clone)]
pub struct Context {
    pub realiser: Arc<Realiser>,
    pub member: Arc<Member>,
    pub views: Views,
    /// The member's threads.
    pub workers: Workers,
    /// The member's memory.
    pub budget: Budget,
    pub options: Options,
    pub reporter: Reporter,
}

/// How one derivation ended.
pub type Ended = Result<Done, Failure>;

/// The outputs of a derivation are valid.
#[derive(Debug, Clone)]
pub struct Done {
    pub status: BuildStatus,
    /// Where each output is now.
    pub outputs: Arc<BTreeMap<String, StorePath>>,
    /// Names the realisations of these outputs, if the derivation did not say where they would be.
    pub drv_hash: Option<[u8; 32]>,
    /// Whether it is proven that exactly these outputs are what the derivation makes: it was built from a closure that
    /// was Verified when the build began. To ask the view later is too late, since a claim that was built from can
    /// have given way to a Verified path meanwhile.
    pub proven: bool,
    /// Unix seconds; 0 if nothing ran.
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

/// Work for a request that gave no result; other requests do not notice.
fn lost(error: Lost) -> Failure {
    tracing::error!(%error, "work for a request was lost");
    Failure::transient(format!("the request failed because of the box: {error}"))
}
