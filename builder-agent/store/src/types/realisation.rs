//! Realisations: which store path an output of a content-addressed derivation turned out to be.
//!
//! Layered like paths: all members see Verified realisations; Claimed ones are seen by their owner and the
//! members who share with the owner. A realisation is at most as trusted as its path; a client's word never
//! makes one Verified.

use std::fmt;

use nix_derivation::StorePath;

/// Longest output name. Nix has no limit for it; this is the limit for the name of a store path.
const MAX_OUTPUT_NAME: usize = 211;

/// One output of one derivation, named by the derivation's hash (Nix: `DrvOutput` in
/// `src/libstore/include/nix/store/realisation.hh`). Shown as `sha256:hex!output`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealisationId {
    /// Hash of the derivation modulo its fixed-output inputs.
    pub drv_hash: [u8; 32],
    /// Name of the output.
    pub output: String,
}

impl RealisationId {
    /// Whether the output's name is one that a derivation can have.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b);
        (1..=MAX_OUTPUT_NAME).contains(&self.output.len()) && self.output.bytes().all(allowed)
    }
}

impl fmt::Display for RealisationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        for byte in self.drv_hash {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "!{}", self.output)
    }
}

/// The index's data for one realisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Realisation {
    pub(crate) path: StorePath,
    /// `name:base64`; only for Verified realisations.
    pub(crate) signatures: Vec<String>,
}
