//! The settings with which a store is opened.

use std::fmt;
use std::sync::Arc;

use crate::long_work::LongWork;
use crate::signing::{Signer, TrustedKeys};

/// The way in which the store protects its contents against a power loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// No protection: a boot forgets the store. For a store in memory, or on a disk that is wiped at boot. If
    /// the files are still there after a boot, the store is emptied.
    None,
    /// The store is flushed every few seconds, in the background; after an unclean start newer objects are
    /// checked by hash.
    #[default]
    Flush,
}

/// When the box evicts paths to make room: with less than this free on the store's file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MinFree {
    /// Never.
    #[default]
    Off,
    /// A tenth of the file system, but not more than 10 GiB; and this part of its inodes.
    Usual {
        /// Percent of the inodes.
        files_percent: u8,
    },
    /// So much, but not more than half of the file system.
    Bytes {
        /// Bytes.
        bytes: u64,
        /// Percent of the inodes.
        files_percent: u8,
    },
}

/// Limits of one store, each checked where the resource is spent, and the keys that it trusts and signs with.
#[derive(Clone)]
pub struct StoreConfig {
    /// Largest accepted NAR (and largest flat file), in bytes.
    pub max_nar_bytes: u64,
    /// Most files, directories and symlinks in one NAR. Their metadata is in memory until the NAR ends.
    pub max_entries: u32,
    /// Whether the store survives a power loss.
    pub durability: Durability,
    /// Signs every realisation, and every path without a content address, at the moment it becomes Verified, and nothing
    /// else. `None`: no signatures.
    pub signer: Option<Arc<dyn Signer>>,
    /// An upload with a valid signature of one of these keys is Verified, if all its references are.
    pub trusted: Arc<TrustedKeys>,
    /// When paths are evicted.
    pub min_free: MinFree,
    /// Most bytes that one member is charged for; a view can have a lower limit. `None`: as many as there is room for.
    pub max_bytes_per_member: Option<u64>,
    /// Called around work that takes longer than a small commit.
    pub long_work: LongWork,
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("max_nar_bytes", &self.max_nar_bytes)
            .field("max_entries", &self.max_entries)
            .field("durability", &self.durability)
            .field("signs", &self.signer.is_some())
            .field("trusted", &self.trusted)
            .field("min_free", &self.min_free)
            .field("max_bytes_per_member", &self.max_bytes_per_member)
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
            min_free: MinFree::default(),
            max_bytes_per_member: None,
            long_work: LongWork::default(),
        }
    }
}
