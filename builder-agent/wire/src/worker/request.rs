//! The requests of a client, one variant per operation.

use std::collections::{BTreeMap, BTreeSet};

use nix::derivation::BasicDerivation;
use nix::{BuildMode, DrvOutputId, PathInfo, Realisation};
use nix_derivation::{CAHash, ContentAddressMethod, DerivedPath, HashAlgorithm, StorePath};

use crate::types::{ClientSettings, GcOptions};

/// One request, its arguments read and checked. If a body follows, it has not been read yet: see
/// [`Connection::body`](super::Connection::body) and [`Connection::next_item`](super::Connection::next_item).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    IsValidPath {
        path: StorePath,
    },
    QueryReferences {
        path: StorePath,
    },
    QueryReferrers {
        path: StorePath,
    },
    QueryDeriver {
        path: StorePath,
    },
    /// A body follows: a NAR for the methods `Nar` and `Git`, the file's bytes for `Flat` and `Text`.
    /// (Clients before 1.25 send a flat file inside a NAR; this crate unwraps it.)
    AddToStore {
        name: String,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: BTreeSet<StorePath>,
        repair: bool,
    },
    /// Sent by clients before 1.25 only.
    AddTextToStore {
        name: String,
        text: Vec<u8>,
        references: BTreeSet<StorePath>,
    },
    /// A body follows: the NAR.
    AddToStoreNar {
        info: PathInfo,
        repair: bool,
        dont_check_sigs: bool,
    },
    /// Items follow: see [`Connection::next_item`](super::Connection::next_item).
    AddMultipleToStore {
        repair: bool,
        dont_check_sigs: bool,
    },
    BuildPaths {
        paths: Vec<DerivedPath>,
        mode: BuildMode,
    },
    BuildPathsWithResults {
        paths: Vec<DerivedPath>,
        mode: BuildMode,
    },
    BuildDerivation {
        drv_path: StorePath,
        derivation: BasicDerivation,
        mode: BuildMode,
    },
    EnsurePath {
        path: StorePath,
    },
    AddTempRoot {
        path: StorePath,
    },
    AddPermRoot {
        path: StorePath,
        gc_root: String,
    },
    AddIndirectRoot {
        gc_root: String,
    },
    SyncWithGc,
    FindRoots,
    SetOptions(ClientSettings),
    CollectGarbage(GcOptions),
    QueryAllValidPaths,
    QueryPathInfo {
        path: StorePath,
    },
    QueryDerivationOutputs {
        path: StorePath,
    },
    QueryDerivationOutputNames {
        path: StorePath,
    },
    QueryDerivationOutputMap {
        path: StorePath,
    },
    /// The 32 characters after `/nix/store/`, decoded. `None` if the client's string is no hash part; then no
    /// path has it.
    QueryPathFromHashPart {
        hash_part: Option<[u8; 20]>,
    },
    QuerySubstitutablePathInfo {
        path: StorePath,
    },
    QuerySubstitutablePathInfos {
        paths: BTreeMap<StorePath, Option<CAHash>>,
    },
    QueryValidPaths {
        paths: Vec<StorePath>,
        substitute: bool,
    },
    QuerySubstitutablePaths {
        paths: Vec<StorePath>,
    },
    QueryValidDerivers {
        path: StorePath,
    },
    OptimiseStore,
    VerifyStore {
        check_contents: bool,
        repair: bool,
    },
    AddSignatures {
        path: StorePath,
        signatures: Vec<String>,
    },
    /// Answered with [`Connection::reply_nar`](super::Connection::reply_nar).
    NarFromPath {
        path: StorePath,
    },
    QueryMissing {
        targets: Vec<DerivedPath>,
    },
    RegisterDrvOutput {
        realisation: Realisation,
    },
    QueryRealisation {
        id: DrvOutputId,
    },
    /// A body follows: the log.
    AddBuildLog {
        drv_path: StorePath,
    },
}
