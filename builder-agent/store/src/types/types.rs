//! The words of the store: who sees a path, why we believe it, and what we know about it.

pub(crate) mod realisation;
pub(crate) mod result;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use nix_derivation::StorePath;

use crate::signing::{Signer, TrustedKeys};

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

/// What the store does for what it keeps to survive a power loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: a boot forgets the store. For a store in memory, or on a disk that is wiped at boot. Found again after a
    /// boot all the same, it is emptied.
    None,
    /// It is flushed every few seconds, behind its users; what is newer is checked by hash after an unclean start.
    #[default]
    Flush,
}

/// Limits of one store, each checked where the resource is spent, and the keys it believes and signs with.
#[derive(Clone)]
pub struct StoreConfig {
    /// Largest NAR (and largest flat file) that is taken in, in bytes.
    pub max_nar_bytes: u64,
    /// Most files, directories and symlinks in one NAR. Their metadata is in memory until the NAR ends.
    pub max_entries: u32,
    /// What survives a power loss.
    pub durability: Durability,
    /// Signs every realisation, and every path without a content address, at the moment it becomes Verified, and nothing
    /// else. `None`: no signatures.
    pub signer: Option<Arc<dyn Signer>>,
    /// An upload with a right signature of one of these is Verified, if all its references are.
    pub trusted: Arc<TrustedKeys>,
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("max_nar_bytes", &self.max_nar_bytes)
            .field("max_entries", &self.max_entries)
            .field("durability", &self.durability)
            .field("signs", &self.signer.is_some())
            .field("trusted", &self.trusted)
            .finish()
    }
}

/// Default for [`StoreConfig::max_nar_bytes`]: a CUDA toolkit is about 8 GiB; twice that leaves room.
pub const DEFAULT_MAX_NAR_BYTES: u64 = 16 << 30;

/// Default for [`StoreConfig::max_entries`]: the full TeX Live tree has about 250,000.
pub const DEFAULT_MAX_ENTRIES: u32 = 1_000_000;

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            max_nar_bytes: DEFAULT_MAX_NAR_BYTES,
            max_entries: DEFAULT_MAX_ENTRIES,
            durability: Durability::default(),
            signer: None,
            trusted: Arc::default(),
        }
    }
}
