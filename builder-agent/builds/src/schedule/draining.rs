//! The runs of a box that is drained: those that wait end at once, those that run end at the deadline.
//!
//! Not here: whether the box is drained, and the texts (`drain`).

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::share::{Running, Table};
use super::shared::Shared;
use crate::drain::Drained;
use crate::{Failure, Request};
use members::date;

/// The longest sleep before the clock is looked at again: it can be set while the box waits for a deadline.
const GLANCE: Duration = Duration::from_secs(60);

/// The runs at the moment when the box was drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Runs that go on.
    pub running: usize,
    /// Runs that waited for a slot, and have ended.
    pub ended: usize,
}

impl Shared {
    /// The refusal of a run that this request would start now.
    pub fn is_drained(&self, request: &Request) -> Option<Failure> {
        self.drain.now().map(|drained| drained.refusal(&request.recipe.drv_path))
    }

    /// Starts no runs from now on. No run can begin to wait after the ones that wait were ended: a run is accepted with the
    /// table locked, and looks at the drain then.
    pub fn begin_drain(&self, drained: Drained) -> io::Result<Left> {
        let drained = self.drain.begin(drained)?;
        let ended = self.running.end(&drained, |run| run.begun.borrow().is_none());
        Ok(Left { running: self.running.lock().len(), ended })
    }
}

impl Table {
    /// Ends the runs for which `which` is true. Their requests get the reason.
    fn end(&self, drained: &Arc<Drained>, which: impl Fn(&Running) -> bool) -> usize {
        let mut builds = self.lock();
        let before = builds.len();
        builds.retain(|_, run| {
            let ends = which(run);
            if ends {
                // An error means that it has ended for this reason already.
                let _ = run.drained.set(drained.clone());
                run.stop();
            }
            !ends
        });
        before - builds.len()
    }
}

/// Ends what still runs at each deadline, for as long as the scheduler exists.
pub(super) async fn keep_deadlines(shared: Weak<Shared>, mut drained: watch::Receiver<Option<Arc<Drained>>>) {
    loop {
        let now = drained.borrow_and_update().clone();
        let due = now.and_then(|drained| drained.deadline.map(|deadline| (drained, deadline)));
        if let Some((drain, deadline)) = due {
            tokio::select! {
                changed = drained.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = until(deadline) => {
                    let Some(shared) = shared.upgrade() else { return };
                    let ended = shared.running.end(&drain, |_| true);
                    tracing::warn!(ended, "the deadline of the drain has come: builds that still ran are ended");
                }
            }
        }
        if drained.changed().await.is_err() {
            return;
        }
    }
}

/// Waits for a moment, in seconds since 1970.
async fn until(moment: u64) {
    while let Some(left) = moment.checked_sub(date::now()).filter(|left| *left > 0) {
        tokio::time::sleep(Duration::from_secs(left).min(GLANCE)).await;
    }
}
