//! The paths of the outputs of content-addressed derivations.

use std::collections::BTreeMap;

use nix_derivation::{NixHash, StorePath};

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

/// The path of one output of a content-addressed derivation, known after a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realisation {
    pub id: DrvOutputId,
    pub out_path: StorePath,
    pub signatures: Vec<String>,
    /// Only in the older form, and only informative.
    pub dependent_realisations: BTreeMap<String, StorePath>,
}
