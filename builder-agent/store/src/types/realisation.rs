//! Realisations: which store path an output of a content-addressed derivation turned out to be.
//!
//! Layered like paths: Verified ones are seen by everybody, Claimed ones by who claims them and those they share with.
//! A realisation is as good as the path it names; a client's word never makes one Verified.

use std::fmt;

use nix_derivation::StorePath;

/// Longest output name; Nix has no limit, a store path's name has this one.
const MAX_OUTPUT_NAME: usize = 211;

/// One output of one derivation, named by what the derivation says (Nix: `DrvOutput` in
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

/// What the index knows of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Realisation {
    pub(crate) path: StorePath,
    /// `name:base64`; only of Verified ones.
    pub(crate) signatures: Vec<String>,
}
