//! The reasons why a build in a sandbox did not finish, and which of them are the builder's fault.

use std::io;
use std::time::Duration;

/// Text from a hostile guest has been bounded before it gets here.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the build ran longer than its limit of {}s", after.as_secs())]
    Timeout { after: Duration },
    #[error("the build printed nothing for {}s", after.as_secs())]
    Silent { after: Duration },
    #[error("the build's log grew past its limit of {limit} bytes")]
    LogLimit { limit: u64 },
    #[error("the build's outputs grew past their limit of {limit} bytes")]
    OutputLimit { limit: u64 },
    #[error("the build ran out of its {mib} MiB of memory")]
    OutOfMemory { mib: u32 },
    #[error("the build had more than its limit of {limit} processes")]
    ProcessLimit { limit: u32 },
    #[error("the build was cancelled")]
    Cancelled,
    #[error("the sandbox guest broke its protocol: {why}")]
    GuestProtocol { why: String },
    #[error("the sandbox guest died; the last it said:\n{console}")]
    GuestDied { console: String },
    /// Without it a builder fails for a reason that is none of its own.
    #[error("the sandbox's network ended before its builder did")]
    NetworkEnded,
    #[error("the builder succeeded but did not create its output '{name}'")]
    OutputMissing { name: String },
    #[error("the builder's output '{name}' cannot be stored: {why}")]
    OutputInvalid { name: String, why: String },
    /// The builder's program is missing, not executable, or for another system.
    #[error("the builder could not be started: {why}")]
    CannotStart { why: String },
    #[error("cannot store output '{name}'")]
    Sink { name: String, source: io::Error },
    /// The guest, or the process that runs it, could not prepare the sandbox for the builder.
    #[error("the sandbox could not be set up: {why}")]
    Setup { why: String },
    #[error("no sandbox can be started here: {why}")]
    Unavailable { why: String },
}

impl SandboxError {
    /// Whether the same build would fail the same way on another box.
    pub fn is_builders_fault(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::Silent { .. }
                | Self::LogLimit { .. }
                | Self::OutputLimit { .. }
                | Self::OutOfMemory { .. }
                | Self::ProcessLimit { .. }
                | Self::OutputMissing { .. }
                | Self::OutputInvalid { .. }
                | Self::CannotStart { .. }
        )
    }
}
