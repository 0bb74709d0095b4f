//! How to build, and how a build ended.

use std::collections::BTreeMap;
use std::time::Duration;

use nix_derivation::StorePath;

/// How to build (Nix: `BuildMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BuildMode {
    #[default]
    Normal,
    /// Rebuild broken paths in place.
    Repair,
    /// Build again and compare.
    Check,
}

/// How a build ended (Nix: `BuildResult::Status`; the numbers are those of the protocols).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum BuildStatus {
    Built = 0,
    Substituted = 1,
    AlreadyValid = 2,
    PermanentFailure = 3,
    InputRejected = 4,
    OutputRejected = 5,
    TransientFailure = 6,
    CachedFailure = 7,
    TimedOut = 8,
    MiscFailure = 9,
    DependencyFailed = 10,
    LogLimitExceeded = 11,
    NotDeterministic = 12,
    ResolvesToAlreadyValid = 13,
    NoSubstituters = 14,
}

impl BuildStatus {
    /// Whether the outputs exist now.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Built | Self::Substituted | Self::AlreadyValid | Self::ResolvesToAlreadyValid)
    }
}

/// One output of a finished build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltOutput {
    pub path: StorePath,
    /// The derivation's hash modulo fixed outputs, by which clients up to Nix 2.34 key a realisation. They read
    /// it for floating content-addressed derivations only; `None` is sent as zeroes, as Nix 2.35 does.
    pub drv_hash: Option<[u8; 32]>,
    pub signatures: Vec<String>,
}

/// The end of one build (Nix: `BuildResult`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildResult {
    pub status: BuildStatus,
    /// Shown to the person who asked. Empty on success.
    pub error_msg: String,
    pub times_built: u32,
    pub is_non_deterministic: bool,
    /// Seconds since 1970, 0 if nothing ran.
    pub start_time: i64,
    pub stop_time: i64,
    pub cpu_user: Option<Duration>,
    pub cpu_system: Option<Duration>,
    /// By output name.
    pub built_outputs: BTreeMap<String, BuiltOutput>,
}

impl BuildResult {
    /// A result with a status and a message, everything else empty.
    pub fn new(status: BuildStatus, error_msg: impl Into<String>) -> Self {
        Self {
            status,
            error_msg: error_msg.into(),
            times_built: 0,
            is_non_deterministic: false,
            start_time: 0,
            stop_time: 0,
            cpu_user: None,
            cpu_system: None,
            built_outputs: BTreeMap::new(),
        }
    }
}
