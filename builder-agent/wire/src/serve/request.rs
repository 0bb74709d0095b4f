//! The requests of a client, one variant per command.

use std::collections::BTreeSet;

use nix::PathInfo;
use nix::derivation::BasicDerivation;
use nix_derivation::{DerivedPath, StorePath};

/// One request, its arguments read and checked. If a body follows, it has not been read yet: see
/// [`Connection::body`](super::Connection::body) and [`Connection::next_nar`](super::Connection::next_nar).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    QueryValidPaths {
        /// Keep the paths from garbage collection while this client is connected.
        lock: bool,
        /// Fetch missing paths first.
        substitute: bool,
        paths: Vec<StorePath>,
    },
    /// Answered with [`Connection::reply_infos`](super::Connection::reply_infos).
    QueryPathInfos {
        paths: Vec<StorePath>,
    },
    /// Answered with [`Connection::reply_nar`](super::Connection::reply_nar).
    DumpStorePath {
        path: StorePath,
    },
    /// An export stream follows: see [`Connection::next_nar`](super::Connection::next_nar).
    ImportPaths,
    /// Answered with [`Connection::reply_export`](super::Connection::reply_export).
    ExportPaths {
        paths: Vec<StorePath>,
    },
    BuildPaths {
        paths: Vec<DerivedPath>,
        options: BuildOptions,
    },
    QueryClosure {
        /// For derivations among the paths, include their outputs.
        include_outputs: bool,
        paths: Vec<StorePath>,
    },
    BuildDerivation {
        drv_path: StorePath,
        derivation: BasicDerivation,
        options: BuildOptions,
    },
    /// A body follows: the NAR.
    AddToStoreNar {
        info: PathInfo,
    },
}

/// The client's settings for a build, as far as this protocol has them. (Nix: `ServeProto::BuildOptions`.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BuildOptions {
    /// Seconds without output before a build is stopped; 0 is never.
    pub max_silent_time: u64,
    /// Seconds for the whole build; 0 is no limit.
    pub build_timeout: u64,
    /// Largest log in bytes; 0 is no limit. 2.2 and newer.
    pub max_log_size: u64,
    /// Number of further builds for comparison. 2.3 and newer; current clients send 0.
    pub nr_repeats: u64,
    /// 2.3 and newer; has no meaning without repeats.
    pub enforce_determinism: bool,
    /// 2.7 and newer.
    pub keep_failed: bool,
}

/// The path info that follows a NAR in an export stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedInfo {
    pub path: StorePath,
    /// May contain `path` itself.
    pub references: BTreeSet<StorePath>,
    pub deriver: Option<StorePath>,
}
