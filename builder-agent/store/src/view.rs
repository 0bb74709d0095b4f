//! tbd
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix_derivation::{ContentAddressMethod, HashAlgorithm, NixHash, StorePath};

use crate::error::{ComposeError, ImportError, MissingPath, NarError, RegisterError, TreeError};
use crate::ingest::{Ingest, Ingested, Staged};
use crate::nar::NarReader;
use crate::types::{Member, PathInfo, Provenance};

/// The store as one member may see it. Cheap to clone, safe to share between threads, blocking.
#[derive(Clone)]
pub struct View { member: Member }

/// One EROFS image as pieces of files: concatenated they are the image. Offsets and lengths are multiples of 4096.
#[derive(Debug, Clone)]
pub struct Composed {
    /// (file opened for reading, offset, length), in image order.
    pub segments: Vec<(Arc<File>, u64, u64)>,
    /// Sum of the lengths.
    pub len: u64,
}

impl View {
    /// Whose view this is.
    #[must_use]
    pub fn member(&self) -> &Member { &self.member }
    /// Info of a valid path.
    #[must_use]
    pub fn info(&self, _path: &StorePath) -> Option<Arc<PathInfo>> { unimplemented!() }
    /// Info of a valid path and why we believe it.
    #[must_use]
    pub fn info_with_provenance(&self, _path: &StorePath) -> Option<(Arc<PathInfo>, Provenance)> { unimplemented!() }
    /// Whether `path` is valid here.
    #[must_use]
    pub fn is_valid(&self, _path: &StorePath) -> bool { unimplemented!() }
    /// The valid ones of `paths`, in the same order.
    #[must_use]
    pub fn query_valid(&self, _paths: &[StorePath]) -> Vec<StorePath> { unimplemented!() }
    /// The valid path whose digest is `hash_part`.
    #[must_use]
    pub fn by_hash_part(&self, _hash_part: &[u8; 20]) -> Option<StorePath> { unimplemented!() }
    /// Valid paths that refer to `path`.
    #[must_use]
    pub fn referrers(&self, _path: &StorePath) -> BTreeSet<StorePath> { unimplemented!() }
    /// Every valid path.
    #[must_use]
    pub fn all_valid(&self) -> BTreeSet<StorePath> { unimplemented!() }
    /// Valid derivations known to have made `path`.
    #[must_use]
    pub fn valid_derivers(&self, _path: &StorePath) -> BTreeSet<StorePath> { unimplemented!() }
    /// `paths` and all they refer to, however indirectly.
    pub fn closure(&self, _paths: &[StorePath]) -> Result<BTreeSet<StorePath>, MissingPath> { unimplemented!() }

    /// Starts taking in a NAR; `scan_for` are the paths whose hash parts are looked for in it.
    pub fn ingest(&self, _scan_for: &[StorePath]) -> Result<Ingest, ImportError> { unimplemented!() }
    /// Makes `ingested` visible as `info.path`. Durable when it returns.
    pub fn register(&self, _ingested: Ingested, _info: PathInfo, _provenance: Provenance) -> Result<Arc<PathInfo>, RegisterError> { unimplemented!() }
    /// Registers all or none, with one transaction; members of the batch may refer to each other in any order.
    pub fn register_many(&self, _batch: Vec<Staged>) -> Result<Vec<Arc<PathInfo>>, RegisterError> { unimplemented!() }
    /// An [`Ingested`] with its info, for [`View::register_many`].
    pub fn stage_built(&self, _ingested: Ingested, _info: PathInfo, _provenance: Provenance) -> Result<Staged, RegisterError> { unimplemented!() }
    /// Reads exactly one NAR and checks it against `info` as a client announced it; for [`View::register_many`].
    pub fn stage(&self, _info: PathInfo, _nar: &mut dyn Read) -> Result<Staged, ImportError> { unimplemented!() }
    /// [`View::stage`] and [`View::register_many`] of one path.
    pub fn import(&self, _info: PathInfo, _nar: &mut dyn Read) -> Result<Arc<PathInfo>, ImportError> { unimplemented!() }
    /// Adds contents at the path that they and `references` give. `dump` is a NAR for `Nar`, else the bytes of the file up to its end.
    pub fn add_ca(&self, _name: &str, _method: ContentAddressMethod, _algorithm: HashAlgorithm, _references: &BTreeSet<StorePath>, _dump: &mut dyn Read) -> Result<Arc<PathInfo>, ImportError> { unimplemented!() }

    /// The NAR of a valid path.
    pub fn nar(&self, _path: &StorePath) -> Result<NarReader, NarError> { unimplemented!() }
    /// Writes the NAR of a valid path; returns its length.
    pub fn write_nar(&self, _path: &StorePath, _to: &mut dyn Write) -> Result<u64, NarError> { unimplemented!() }
    /// Contents of a valid path that is a single regular file of at most `max` bytes.
    pub fn read_file(&self, _path: &StorePath, _max: u64) -> Result<Vec<u8>, NarError> { unimplemented!() }
    /// Hash of the contents by `method`, as a fixed-output derivation states it.
    pub fn ca_hash(&self, _path: &StorePath, _method: ContentAddressMethod, _algorithm: HashAlgorithm) -> Result<NixHash, NarError> { unimplemented!() }
    /// Reads the whole object and compares its NAR hash with the registered one.
    pub fn verify(&self, _path: &StorePath) -> Result<(), NarError> { unimplemented!() }
    /// An EROFS image whose root directory lists exactly the basenames of `paths`.
    pub fn compose(&self, _paths: &BTreeSet<StorePath>) -> Result<Composed, ComposeError> { unimplemented!() }
    /// An unpacked, read-only copy of a valid path, made once and kept.
    pub fn tree(&self, _path: &StorePath) -> Result<PathBuf, TreeError> { unimplemented!() }
}
