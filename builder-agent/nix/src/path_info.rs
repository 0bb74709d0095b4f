//! Facts about paths: valid ones, ones that a substituter has, and ones that a build would need.

use std::collections::BTreeSet;

use nix_derivation::{CAHash, StorePath};

/// Facts that a store has about a valid path (Nix: `ValidPathInfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    pub path: StorePath,
    /// The derivation this came from, when known.
    pub deriver: Option<StorePath>,
    /// SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
    /// Length of the NAR in bytes. 0 in an upload means that the client did not say.
    pub nar_size: u64,
    /// Store paths that the contents mention; may include `path` itself.
    pub references: BTreeSet<StorePath>,
    /// Seconds since 1970. A store fills it in when it is 0.
    pub registration_time: i64,
    /// Built on the machine whose store this is. From a client it is only a claim.
    pub ultimate: bool,
    /// `name:base64` as Nix writes them; not checked here.
    pub signatures: Vec<String>,
    /// The content address, if the path follows from it.
    pub ca: Option<CAHash>,
}

/// The effects that a build of some targets would have (Nix: `MissingPaths`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    pub will_build: Vec<StorePath>,
    pub will_substitute: Vec<StorePath>,
    pub unknown: Vec<StorePath>,
    /// Bytes.
    pub download_size: u64,
    pub nar_size: u64,
}

/// Facts that a substituter has about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubstitutablePathInfo {
    pub path: StorePath,
    pub deriver: Option<StorePath>,
    pub references: BTreeSet<StorePath>,
    /// Bytes, 0 if unknown.
    pub download_size: u64,
    pub nar_size: u64,
}
