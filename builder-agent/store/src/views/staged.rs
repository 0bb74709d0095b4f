//! Objects on their way to being registered.

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
    /// What the member says beside what is proven.
    pub(crate) said: Annotation,
}

impl Staged {
    /// What will be registered.
    #[must_use]
    pub fn info(&self) -> &PathInfo {
        &self.info
    }

    /// The same, and nobody's word is kept but what is proven.
    #[must_use]
    pub fn proven_only(mut self) -> Self {
        self.said = Annotation::deriver(self.info.nar_hash, None);
        self
    }

    /// The same, and this member knows it as made by `deriver`, whatever others are told.
    #[must_use]
    pub fn known_from(mut self, deriver: &StorePath) -> Self {
        self.said.deriver = Some(deriver.clone());
        self
    }

    /// As what; Verified still depends on the references.
    #[must_use]
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }
}
