//! The place of a run. [`Here`] is this machine.
//!
//! A place gets plain data ([`Task`]): no view, no connection, no open file. The list of inputs has the NAR hash of
//! every path, so it fixes their contents, wherever those are. A place returns streams: log bytes, and outputs, which
//! go into this box's store as they arrive.
//!
//! A place for another machine would send the task to that machine and answer its requests for inputs from [`Snapshots`]:
//! the machine gets the contents of the task's list and nothing else. The place would write the log bytes that come back into
//! the run's log, and take in and check the outputs as `attempt` does with those of a sandbox. The machine needs the
//! programs that the build key names ([`crate::SandboxIdentity`]). If the machine is lost, the run ends with an error of the
//! box.
//! Not here: when a run starts (`admit`), and who gets its outputs (`run`).

mod here;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandbox::Cancel;
use store::{Closure, ClosureInfo};

use super::admit::RunId;
use crate::attempt::{Outputs, Report, TakenOver};
use crate::limits::RunLimits;
use crate::log::LogWriter;
use crate::{Envelope, Failure, Recipe};

pub use here::Here;

/// One run, in a form that can be sent to another machine.
#[derive(Debug, Clone)]
pub struct Task {
    /// Names the run in logs, and its inputs in [`Snapshots`].
    pub run: RunId,
    /// Identity of the member whose run it is.
    pub member: Arc<str>,
    pub recipe: Arc<Recipe>,
    /// The list of all paths that the builder sees. The build key was computed from this list.
    pub inputs: Arc<ClosureInfo>,
    pub envelope: Envelope,
    /// The run ends at these limits.
    pub limits: RunLimits,
}

/// The result of a task.
#[derive(Debug)]
pub struct Done {
    pub report: Report,
    /// Outputs that have been checked and are in the store. They are visible in no view yet.
    pub result: Result<Outputs, Failure>,
}

/// Runs tasks.
pub trait Place: Send + Sync {
    /// Names the kind of sandbox in logs.
    fn name(&self) -> &'static str;

    /// Starts `task`, or goes on with it if another program has started and `paused` it. The future is ready when no part of
    /// the task runs any more, which is soon after `cancel`. The place writes the log as it arrives.
    fn run(
        &self,
        task: Task,
        paused: Option<TakenOver>,
        log: LogWriter,
        cancel: Cancel,
    ) -> Pin<Box<dyn Future<Output = Done> + Send>>;
}

/// Contents of the inputs of started runs, by run. Clones share one table.
///
/// A snapshot is taken once, when the build key is computed, and is kept here until the run has ended. So the contents
/// that a place finds are those in the key, even if the views have changed since.
#[derive(Clone, Default)]
pub struct Snapshots(Arc<Mutex<HashMap<RunId, Arc<Closure>>>>);

/// Keeps one snapshot in the table.
pub(super) struct Kept {
    snapshots: Snapshots,
    run: RunId,
}

impl Snapshots {
    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Closure>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep(&self, run: RunId, inputs: Arc<Closure>) -> Kept {
        self.lock().insert(run, inputs);
        Kept { snapshots: self.clone(), run }
    }

    /// The runs that have something here: those that have started and may still use a sandbox.
    pub(super) fn runs(&self) -> Vec<RunId> {
        self.lock().keys().copied().collect()
    }

    /// The inputs of this task, if the table has a snapshot that equals the list of the task.
    #[must_use]
    pub fn of(&self, task: &Task) -> Option<Arc<Closure>> {
        self.lock().get(&task.run).filter(|inputs| *inputs.info() == task.inputs).cloned()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.snapshots.lock().remove(&self.run);
    }
}

#[cfg(test)]
#[path = "place_test.rs"]
mod place_test;
