//! Studies of derivations, each on a thread of its own, until nobody waits for it any more.

use sandbox::Cancel;

use super::transfer::{Trouble, blocking};
use crate::build::study::Study;

/// Cancels when it is dropped: whoever waited is gone.
struct Gone(Cancel);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Does work that reads derivations.
pub(super) async fn studied<T: Send + 'static>(
    work: impl FnOnce(&Study) -> T + Send + 'static,
) -> Result<T, Trouble> {
    let cancel = Cancel::new();
    let _gone = Gone(cancel.clone());
    blocking(move || work(&Study::new(cancel))).await
}
