//! The end of the server, and the reason that its clients read.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Asks the server to stop. Clones are one request.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<&'static str>>,
}

impl Stop {
    /// Ends all connections. Their clients read the first reason that was given.
    pub fn because(&self, reason: &'static str) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    pub(crate) async fn requested(&self) -> &'static str {
        self.token.cancelled().await;
        // It was set before.
        self.reason.get().copied().unwrap_or_default()
    }
}
