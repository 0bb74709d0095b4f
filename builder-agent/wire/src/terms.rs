//! The limits that a server sets for its clients, in both protocols.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::DEFAULT_MAX_BODY_BYTES;

/// Counts the memory of one connection's requests. The server decides how much there may be.
pub trait Meter: Debug + Send + Sync {
    /// The current request takes this many bytes from now on; 0 after its answer. An error refuses the
    /// request and ends the connection, since the rest of its arguments cannot be skipped; the client gets
    /// its text.
    fn takes(&self, bytes: u64) -> Result<(), String>;
}

/// Limits of one connection.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Largest NAR, file or log, in bytes.
    pub max_body_bytes: u64,
    /// Longest wait for the next [`PIECE`](crate::PIECE) of a message that has begun, in either direction; `None` waits
    /// for ever.
    pub stall: Option<Duration>,
    /// Receives the memory of arguments beyond [`UNMETERED_BYTES`](crate::limits::UNMETERED_BYTES).
    pub meter: Option<Arc<dyn Meter>>,
}

impl Terms {
    /// The arguments of the last request are no longer in memory.
    pub(crate) fn forget(&self) {
        if let Some(meter) = &self.meter {
            // A meter never refuses a smaller number.
            let _ = meter.takes(0);
        }
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { max_body_bytes: DEFAULT_MAX_BODY_BYTES, stall: None, meter: None }
    }
}
