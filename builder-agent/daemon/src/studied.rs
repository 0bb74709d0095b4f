//! Studies of derivations, on threads that are there for them, until nobody waits for it any more.

use sandbox::Cancel;

use super::desk::Desk;
use super::transfer::{RequestError, bug, over};
use builds::study::Study;

/// Cancels when it is dropped: whoever waited is gone.
struct Gone(Cancel);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Does work that reads derivations.
pub(super) async fn studied<T: Send + 'static>(
    desk: &Desk,
    work: impl FnOnce(&Study) -> T + Send + 'static,
) -> Result<T, RequestError> {
    let cancel = Cancel::new();
    let _gone = Gone(cancel.clone());
    let study = Study::charged(cancel, &desk.budget).map_err(over)?;
    desk.workers.plan(move || work(&study)).await.map_err(bug)
}
