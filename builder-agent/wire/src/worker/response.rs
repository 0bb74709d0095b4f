//! The answers of a server, one variant per form.

use std::collections::BTreeMap;

use nix::{BuildResult, Missing, PathInfo, Realisation, SubstitutablePathInfo};
use nix_derivation::{DerivedPath, StorePath};

/// An answer. [`Connection::reply`](super::Connection::reply) knows the operation and the negotiated version,
/// so callers give all fields and the writer leaves out those that the client would not understand. An answer
/// in the wrong form for the operation is refused before a byte of it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The operation worked and has no result of its own.
    Done,
    /// `IsValidPath`; `VerifyStore` (true: errors remain).
    Bool(bool),
    /// `QueryReferences`, `QueryReferrers`, `QueryValidPaths`, `QuerySubstitutablePaths`, `QueryValidDerivers`,
    /// `QueryDerivationOutputs`, `QueryAllValidPaths`.
    Paths(Vec<StorePath>),
    /// `QueryPathFromHashPart`, `QueryDeriver`.
    MaybePath(Option<StorePath>),
    /// `QueryDerivationOutputNames`.
    Names(Vec<String>),
    /// `QueryPathInfo`.
    PathInfo(Option<PathInfo>),
    /// `AddToStore`, `AddTextToStore`.
    Added(PathInfo),
    /// `QueryDerivationOutputMap`.
    OutputMap(BTreeMap<String, Option<StorePath>>),
    /// `BuildDerivation`.
    BuildResult(BuildResult),
    /// `BuildPathsWithResults`, in the order of the request.
    BuildResults(Vec<(DerivedPath, BuildResult)>),
    /// `QueryMissing`.
    Missing(Missing),
    /// `QuerySubstitutablePathInfo` (at most one), `QuerySubstitutablePathInfos`.
    Substitutable(Vec<SubstitutablePathInfo>),
    /// `FindRoots`: each root's link and its path.
    Roots(Vec<(String, StorePath)>),
    /// `CollectGarbage`.
    Garbage { paths: Vec<String>, bytes_freed: u64 },
    /// `QueryRealisation`.
    Realisation(Option<Realisation>),
    /// `AddPermRoot`.
    GcRoot(String),
}
