//! The changes of the index. Each is written to the index on disk, in one transaction with others, and then
//! made in memory. Both apply a list of changes in order, and both ignore the same ones.

use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use crate::index::account::Account;
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
        account: Account,
    },
    DropClaim {
        member: Member,
        path: StorePath,
    },
    /// Only an eviction drops Verified paths, with all that refers to them in any layer.
    DropVerified {
        path: StorePath,
    },
    /// Who is charged for a Verified path from now on (`None`: the box), and when it was last used (milliseconds since 1970).
    Charge {
        path: StorePath,
        payer: Option<Member>,
        used: u64,
    },
    /// Writes the last use of a path (milliseconds since 1970). In memory it is known already.
    Used {
        path: StorePath,
        /// `None`: the Verified row.
        member: Option<Member>,
        used: u64,
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
    /// `None`: a Verified realisation, which goes with its path.
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
