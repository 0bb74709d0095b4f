//! The words of the store: who sees a path, why we believe it, and what we know about it.

pub(crate) mod realisation;
pub(crate) mod result;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use nix_derivation::StorePath;

/// Who owns claims. Cheap to clone.
///
/// It begins with the member's name in the roster. What follows a `~` tells apart people who had that name one after the
/// other: they are different members to the store, and people are shown the name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member(Arc<str>);

impl Member {
    /// The member with this identity.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// The identity, as it was given to [`Member::new`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.split('~').next().unwrap_or_default())
    }
}

/// Why we believe that a path has the contents it has; decides who can see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provenance {
    /// Checked here: everyone sees it. All its references are Verified too.
    Verified,
    /// One member says so: that member alone sees it.
    Claimed(Member),
}

/// What Nix calls valid path info (Nix: `src/libstore/path-info.hh`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path itself, always below `/nix/store`.
    pub path: StorePath,
    /// SHA-256 of the NAR; names the object.
    pub nar_hash: [u8; 32],
    /// Bytes of the NAR. 0 in an import means "the client did not say".
    pub nar_size: u64,
    /// Store paths the contents mention; may include `path` itself.
    pub references: BTreeSet<StorePath>,
    /// The derivation this came from, when known.
    pub deriver: Option<StorePath>,
    /// Unix seconds; the store fills it in when it is 0.
    pub registration_time: i64,
    /// Built on this box.
    pub ultimate: bool,
    /// `name:base64` as Nix writes them.
    pub signatures: Vec<String>,
    /// Content address as Nix writes it (`text:sha256:…`, `fixed:r:sha256:…`).
    pub ca: Option<String>,
}
