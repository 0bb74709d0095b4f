//! What a session asks the scheduler for, and what it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nix_derivation::StorePath;
use sandbox::Limits;
use store::{Closure, ClosureInfo, RecordedOutput, View};

use crate::reuse::Known;
use crate::{BuildKey, Envelope, Failure, Recipe};
use members::Member;
use shares::budget::Charge;

/// What a client wants built, and under which limits of its own: plain data. Zero and `None` mean "the box's".
#[derive(Debug, Clone)]
pub struct Request {
    /// Who asks. Their limits are looked up anew wherever they count.
    pub member: Arc<Member>,
    pub recipe: Arc<Recipe>,
    /// All the builder will see, as it was in the member's view at one moment.
    pub inputs: Arc<ClosureInfo>,
    /// The box's, or what this member may have of it.
    pub envelope: Envelope,
    /// Of `recipe` with `inputs` in `envelope`.
    pub key: BuildKey,
    /// What was recorded of `key` when the requester looked, and decided to build.
    pub known: Known,
    /// Build to compare only: the outputs become visible to nobody.
    pub check: bool,
    pub wall: Option<Duration>,
    pub silent: Option<Duration>,
    /// Bytes of log.
    pub log: Option<u64>,
}

impl Request {
    /// Whether what comes of it is what everybody with the same derivation gets: see [`Recipe::proven`], and nothing of
    /// the place it ran in was this member's.
    #[must_use]
    pub fn proven(&self) -> bool {
        self.envelope.is_of_box() && self.recipe.proven(&self.inputs)
    }
}

/// What this box keeps for a request, until its run has ended, on the machine that has the store: it is sent nowhere.
pub struct Held {
    /// Has the temporary roots that keep the outputs for the requester.
    pub view: View,
    /// Contents of the request's inputs.
    pub inputs: Arc<Closure>,
    /// Of the requester, for all of this.
    pub memory: Charge,
}

/// How a build ended, and when it ran (Unix seconds).
#[derive(Debug)]
pub struct Outcome {
    pub result: Result<Built, Failure>,
    /// The derivation that `result` speaks of.
    pub drv: StorePath,
    /// What the run was allowed.
    pub limits: Limits,
    /// Under which name the log was kept.
    pub log: Option<String>,
    pub start_time: i64,
    pub stop_time: i64,
}

/// What a run made. Visible in the view of its owner; everybody else who waited adopts it.
#[derive(Debug)]
pub struct Built {
    pub outputs: BTreeMap<String, RecordedOutput>,
}

/// Why a request has no share in a run.
#[derive(Debug)]
pub enum NotStarted {
    Refused(Failure),
    /// An equal build has ended since the requester looked: what is recorded now may be the answer.
    Known,
}

impl From<NotStarted> for Failure {
    fn from(why: NotStarted) -> Self {
        match why {
            NotStarted::Refused(failure) => failure,
            NotStarted::Known => Self::transient("an equal build has ended just now; ask again"),
        }
    }
}
