//! The housekeeper: the thread that makes the passes of [`Upkeep`] at a steady pace.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::work::Upkeep;
use crate::config::Durability;
use crate::error::RegisterError;

/// Longest time between a commit and its flush: as long as the journal of ext4 waits by default.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Without flushes: the longest time until new objects get their names and unneeded ones are removed.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// The thread. Dropping it makes the last pass and ends the thread.
pub(crate) struct Keeper {
    upkeep: Arc<Upkeep>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread. If that fails the store works all the same, and the work is done when the store
    /// closes.
    pub(crate) fn start(upkeep: &Arc<Upkeep>) -> Self {
        let work = {
            let upkeep = Arc::clone(upkeep);
            move || attend(&upkeep)
        };
        let thread = std::thread::Builder::new().name("store-keeper".into()).spawn(work);
        let thread =
            thread.inspect_err(|e| tracing::warn!("no thread for the store's housekeeping: {e}")).ok();
        Self { upkeep: Arc::clone(upkeep), thread }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.upkeep.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        report(self.upkeep.pass());
    }
}

fn attend(upkeep: &Upkeep) {
    let every = match upkeep.durability {
        Durability::None => TIDY_EVERY,
        Durability::Flush => FLUSH_EVERY,
    };
    while upkeep.wait(every) {
        report(upkeep.pass());
    }
}

fn report(outcome: Result<(), RegisterError>) {
    if let Err(e) = outcome {
        tracing::error!(
            "the store cannot be flushed: {e}; restart the agent: it checks everything newer than the last flush"
        );
    }
}
