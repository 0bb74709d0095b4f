//! Objects that are ready to be registered.

use nix::PathInfo;
use nix_derivation::StorePath;

use crate::index::rows::Annotation;
use crate::objects::ingest::Ingested;
use crate::types::Provenance;

/// An object with its checked info and provenance, ready to be registered together with others.
#[derive(Debug)]
pub struct Staged {
    pub(crate) ingested: Ingested,
    pub(crate) info: PathInfo,
    pub(crate) provenance: Provenance,
    /// The contents are proven by their address or a trusted signature.
    pub(crate) proven: bool,
    /// The member's statement besides the proven fields.
    pub(crate) said: Annotation,
}

impl Staged {
    /// The info that will be registered.
    #[must_use]
    pub fn info(&self) -> &PathInfo {
        &self.info
    }

    /// The same without any unproven field.
    #[must_use]
    pub fn proven_only(mut self) -> Self {
        self.said = Annotation::deriver(self.info.nar_hash, None);
        self
    }

    /// The same, with `deriver` as the deriver that this member sees, whatever other members see.
    #[must_use]
    pub fn known_from(mut self, deriver: &StorePath) -> Self {
        self.said.deriver = Some(deriver.clone());
        self
    }

    /// The provenance to register; Verified still depends on the references.
    #[must_use]
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }
}
