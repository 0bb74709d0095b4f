//! A session's request to the scheduler, and the scheduler's answer.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ledger::Principal;
use nix_derivation::StorePath;
use store::{Closure, ClosureInfo, RecordedOutput, View};

use super::admit::{Asked, Class};
use crate::limits::RunLimits;
use crate::reuse::Known;
use crate::{BuildKey, Envelope, Failure, Recipe};
use members::{Member, SetBy};
use shares::budget::Charge;

/// A build that a client wants, with the client's own limits: plain data. Zero and `None` mean "the box's".
#[derive(Debug, Clone)]
pub struct Request {
    /// The member who asks. Their limits are looked up again wherever they apply.
    pub member: Arc<Member>,
    /// Who is charged for the run: the member, or who made their ticket, and the key or the ticket.
    pub principal: Principal,
    pub recipe: Arc<Recipe>,
    /// The list of all paths that the builder will see, as the member's view was at one moment.
    pub inputs: Arc<ClosureInfo>,
    /// The size of its sandbox: the box's, or what the settings and limits of the member say.
    pub envelope: Envelope,
    /// The key of `recipe` with `inputs` in `envelope`.
    pub key: BuildKey,
    /// The records of `key` at the moment when the requester looked, and decided to build.
    pub known: Known,
    /// Whether the build is only for comparison: its outputs become visible in no view.
    pub check: bool,
    /// Number of runs that the client asked for before this one in the same call.
    pub before: u64,
    /// Whether the call was for one derivation whose inputs the client has brought: so come the builds of `--builders`, one
    /// by one.
    pub alone: bool,
    pub wall: Option<Duration>,
    pub silent: Option<Duration>,
    /// Limit on bytes of log.
    pub log: Option<u64>,
    /// Whether the run goes on if this request is the last that waits for it, and its client disconnects.
    pub keep_running: bool,
    /// Above zero: somebody waits for it; below: nobody does; zero: decided by `before` and `alone`.
    pub priority: i64,
    /// Words of the member, for the log and for the ledger.
    pub tags: Vec<String>,
    /// Whether an earlier run of this request, which ran out of memory, has spent the use of its ticket, and no run since has
    /// given it back.
    pub paid: bool,
    /// Whose value it is that the envelope has no more memory, which only the message of a build that runs out of it needs.
    pub memory_set_by: SetBy,
}

impl Request {
    /// What decides how urgent the run is among those of its member.
    pub(super) fn asked(&self) -> Asked {
        match self.priority.cmp(&0) {
            Ordering::Less => Class::Bulk.into(),
            Ordering::Equal if self.alone => Asked::Alone,
            Ordering::Equal => Class::of_run_after(self.before).into(),
            Ordering::Greater => Class::Interactive.into(),
        }
    }

    /// Whether everybody with the same derivation gets these outputs: see [`Recipe::proven`]; and the envelope is the
    /// box's, not reduced for this member.
    #[must_use]
    pub fn proven(&self) -> bool {
        self.envelope.is_of_box() && self.recipe.proven(&self.inputs)
    }
}

/// The part of a request that is never sent to another machine. This box, which has the store, keeps it until the run
/// has ended.
pub struct Held {
    /// The requester's view. It has the temporary roots that keep the outputs.
    pub view: View,
    /// Contents of the request's inputs.
    pub inputs: Arc<Closure>,
    /// The charge to the requester's memory for all of this.
    pub memory: Charge,
}

/// The result of a build, and when it ran (Unix seconds).
#[derive(Debug)]
pub struct Outcome {
    pub result: Result<Built, Failure>,
    /// The derivation that `result` names.
    pub drv: StorePath,
    /// The limits of the run.
    pub limits: RunLimits,
    /// The name under which the log was kept.
    pub log: Option<String>,
    pub start_time: i64,
    pub stop_time: i64,
}

/// The outputs of a run. They are visible in the view of its owner; every other waiter adopts them.
#[derive(Debug)]
pub struct Built {
    pub outputs: BTreeMap<String, RecordedOutput>,
}

/// The reason why a request has no share in a run.
#[derive(Debug)]
pub enum NotStarted {
    Refused(Failure),
    /// An equal build has ended since the requester looked: its record may be the answer.
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
