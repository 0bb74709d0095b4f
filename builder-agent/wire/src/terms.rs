//! What a server accepts of a client, whatever the protocol.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::DEFAULT_MAX_BODY_BYTES;

/// Counts the memory that one connection's requests take. Whoever serves says how much there may be.
pub trait Meter: Debug + Send + Sync {
    /// From now on the request at hand takes this many bytes; 0 after it was answered. An error refuses the request
    /// and ends the connection, since what is left of its arguments cannot be skipped; its text is for the client.
    fn takes(&self, bytes: u64) -> Result<(), String>;
}

/// Bounds of one connection.
#[derive(Debug, Clone)]
pub struct Terms {
    /// One NAR, file or log, in bytes.
    pub max_body_bytes: u64,
    /// Longest wait for the next [`PIECE`](crate::PIECE) of a message that has begun, in either direction; `None` waits
    /// for ever.
    pub stall: Option<Duration>,
    /// Told what arguments take beyond [`UNMETERED_BYTES`](crate::limits::UNMETERED_BYTES).
    pub meter: Option<Arc<dyn Meter>>,
}

impl Terms {
    /// What was read before is no longer held.
    pub(crate) fn forget(&self) {
        if let Some(meter) = &self.meter {
            // Less is always possible.
            let _ = meter.takes(0);
        }
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { max_body_bytes: DEFAULT_MAX_BODY_BYTES, stall: None, meter: None }
    }
}
