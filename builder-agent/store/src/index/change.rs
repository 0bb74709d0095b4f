//! The changes of the index. Each is written to the index on disk, in one transaction with others, and then
//! made in memory. Both apply a list of changes in order, and both ignore the same ones.

use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use crate::index::rows::{Annotation, Origins};
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::BuildRecord;
use crate::types::{Member, Provenance};

#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Ignored if the layer has the path.
    AddPath {
        info: Arc<PathInfo>,
        provenance: Provenance,
        proven: bool,
        object_size: u64,
        /// The origins of a claim.
        origins: Origins,
    },
    /// Verified paths are never dropped: other members may have built on them.
    DropClaim {
        member: Member,
        path: StorePath,
    },
    /// Replaces the signatures of a path; the rest of `info` equals the registered one.
    SetSignatures {
        info: Arc<PathInfo>,
        provenance: Provenance,
        proven: bool,
    },
    /// Ignored if the layer has the realisation.
    AddRealisation {
        id: RealisationId,
        provenance: Provenance,
        realisation: Arc<Realisation>,
    },
    /// `None`: a Verified realisation, which only repair drops.
    DropRealisation {
        id: RealisationId,
        member: Option<Member>,
    },
    /// Replaces what was recorded before.
    PutResult {
        key: [u8; 32],
        record: Arc<BuildRecord>,
    },
    DropResult {
        key: [u8; 32],
    },
    /// Replaces a root of the same name.
    PutRoot {
        member: Member,
        name: String,
        path: StorePath,
    },
    DropRoot {
        member: Member,
        name: String,
    },
    /// Replaces the member's earlier annotation of the path.
    Annotate {
        member: Member,
        path: StorePath,
        annotation: Arc<Annotation>,
    },
    DropAnnotation {
        member: Member,
        path: StorePath,
    },
}
