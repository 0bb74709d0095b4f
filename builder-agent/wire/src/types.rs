//! Arguments of requests that are not part of Nix's vocabulary (`nix`): settings of a client, and garbage collection.

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::StorePath;

/// The first arguments of `SetOptions`, and every other setting the client was started with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientSettings {
    pub keep_failed: bool,
    pub keep_going: bool,
    pub try_fallback: bool,
    /// 0 (errors only) to 7 (vomit).
    pub verbosity: u64,
    pub max_build_jobs: u64,
    /// Seconds without output before a build is stopped; 0 is never.
    pub max_silent_time: u64,
    /// Send the log of a build while it runs.
    pub verbose_build: bool,
    /// Number of cores for one build; 0 means all.
    pub build_cores: u64,
    pub use_substitutes: bool,
    /// Everything else, by the names of `nix.conf`: for example `timeout`, `max-silent-time`, `build-timeout`.
    pub overrides: BTreeMap<String, String>,
}

/// The action of a garbage collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcAction {
    ReturnLive,
    ReturnDead,
    DeleteDead,
    DeleteSpecific,
}

/// Arguments of `CollectGarbage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcOptions {
    pub action: GcAction,
    /// `None` means the whole store.
    pub paths: Option<BTreeSet<StorePath>>,
    /// Delete the referrers of `paths`, too (Nix 2.35).
    pub delete_referrers: bool,
    pub ignore_liveness: bool,
    /// Stop after this many bytes.
    pub max_freed: u64,
}
