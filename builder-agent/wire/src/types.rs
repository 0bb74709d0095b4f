//! What the protocols talk about: path infos, derivations, build results.
//!
//! Plain values without any idea of how they are encoded. Store paths, hashes and derivation outputs come from
//! `nix_derivation` and are re-exported, so that a caller needs one `use`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use nix_derivation::{
    CAHash, ContentAddressMethod, DerivedPath, HashAlgorithm, NixHash, Output, SingleDerivedPath, StorePath,
};

/// What a store knows about a valid path (Nix: `ValidPathInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    pub path: StorePath,
    pub deriver: Option<StorePath>,
    /// SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
    /// Length of the NAR in bytes.
    pub nar_size: u64,
    /// May contain `path` itself.
    pub references: BTreeSet<StorePath>,
    /// Seconds since 1970.
    pub registration_time: i64,
    /// The sender claims to have built it. A claim only.
    pub ultimate: bool,
    /// `name:base64`, as sent; not checked here.
    pub signatures: Vec<String>,
    pub ca: Option<CAHash>,
}

/// A derivation without its input derivations: what `--builders` sends (Nix: `BasicDerivation`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicDerivation {
    pub outputs: BTreeMap<String, Output>,
    /// Every store path the build may see, closures not included.
    pub input_sources: BTreeSet<StorePath>,
    /// For example `x86_64-linux`. This and the following are strings of Nix, which may hold any bytes.
    pub system: Vec<u8>,
    pub builder: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    /// Structured attributes travel as the value of `__json`.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
}

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

/// How a build ended (Nix: `BuildResult::Status`; the numbers are the wire's).
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

/// What became of one build (Nix: `BuildResult`).
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

/// Names one output of one derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DrvOutputId {
    pub drv: DrvKey,
    pub output: String,
}

/// How a realisation names its derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrvKey {
    /// Up to Nix 2.34: `sha256:<hex>!out`.
    Hash(NixHash),
    /// With the feature `realisation-with-path-not-hash`: the `.drv` path.
    Path(StorePath),
}

/// Which path an output of a content-addressed derivation turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realisation {
    pub id: DrvOutputId,
    pub out_path: StorePath,
    pub signatures: Vec<String>,
    /// Only in the older form, and only informative.
    pub dependent_realisations: BTreeMap<String, StorePath>,
}

/// What a build of some targets would do (Nix: `MissingPaths`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    pub will_build: Vec<StorePath>,
    pub will_substitute: Vec<StorePath>,
    pub unknown: Vec<StorePath>,
    /// Bytes.
    pub download_size: u64,
    pub nar_size: u64,
}

/// What a substituter knows about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstitutablePathInfo {
    pub path: StorePath,
    pub deriver: Option<StorePath>,
    pub references: BTreeSet<StorePath>,
    /// Bytes, 0 if unknown.
    pub download_size: u64,
    pub nar_size: u64,
}

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
    /// 0 is all there are.
    pub build_cores: u64,
    pub use_substitutes: bool,
    /// Everything else, by the names of `nix.conf`: for example `timeout`, `max-silent-time`, `build-timeout`.
    pub overrides: BTreeMap<String, String>,
}

/// What garbage collection should do.
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
    /// `None` is the whole store.
    pub paths: Option<BTreeSet<StorePath>>,
    /// With `paths`: whatever refers to them, too (Nix 2.35).
    pub delete_referrers: bool,
    pub ignore_liveness: bool,
    /// Stop after so many bytes.
    pub max_freed: u64,
}
