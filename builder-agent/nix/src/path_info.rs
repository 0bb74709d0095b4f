//! Facts about paths: valid ones, ones that a substituter has, and ones that a build would need.

use std::collections::BTreeSet;

use nix_derivation::{CAHash, StorePath};

/// Facts that a store has about a valid path (Nix: `ValidPathInfo`).
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
