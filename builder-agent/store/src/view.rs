//! What one member can do with the store. Every question is answered from that member's layers only.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use nix_derivation::{ContentAddressMethod, HashAlgorithm, NixHash, StorePath};
use sha2::{Digest, Sha256};

use crate::contents::Contents;
use crate::error::{ComposeError, FileError, ImportError, MissingPath, NarError, RegisterError, TreeError};
use crate::ingest::{Ingest, Ingested, Staged};
use crate::nar::NarReader;
use crate::object::{ComposeFailure, Composer};
use crate::store::{Inner, ObjectFailure};
use crate::types::{Member, PathInfo, Provenance};
use crate::{address, register, tree};

/// The store as one member may see it. Cheap to clone, safe to share between threads, blocking.
#[derive(Clone)]
pub struct View {
    store: Arc<Inner>,
    member: Member,
}

/// One EROFS image as pieces of files: concatenated they are the image. Offsets and lengths are multiples of 4096.
#[derive(Debug, Clone)]
pub struct Composed {
    /// (file opened for reading, offset, length), in image order. The first is the metadata, a memory file; the
    /// others are pieces of objects.
    pub segments: Vec<(Arc<File>, u64, u64)>,
    /// Sum of the lengths.
    pub len: u64,
}

impl View {
    pub(crate) fn new(store: Arc<Inner>, member: Member) -> Self {
        Self { store, member }
    }

    /// Whose view this is.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Info of a valid path.
    #[must_use]
    pub fn info(&self, path: &StorePath) -> Option<Arc<PathInfo>> {
        self.store.index().seen_by(&self.member).info(path).cloned()
    }

    /// Info of a valid path and why we believe it.
    #[must_use]
    pub fn info_with_provenance(&self, path: &StorePath) -> Option<(Arc<PathInfo>, Provenance)> {
        let index = self.store.index();
        let seen = index.seen_by(&self.member);
        let info = Arc::clone(seen.info(path)?);
        let provenance = match seen.is_verified(path) {
            true => Provenance::Verified,
            false => Provenance::Claimed(self.member.clone()),
        };
        Some((info, provenance))
    }

    /// Whether `path` is valid here.
    #[must_use]
    pub fn is_valid(&self, path: &StorePath) -> bool {
        self.store.index().seen_by(&self.member).info(path).is_some()
    }

    /// The valid ones of `paths`, in the same order.
    #[must_use]
    pub fn query_valid(&self, paths: &[StorePath]) -> Vec<StorePath> {
        let index = self.store.index();
        let seen = index.seen_by(&self.member);
        paths.iter().filter(|p| seen.info(p).is_some()).cloned().collect()
    }

    /// The valid path whose digest is `hash_part`; the first by name if there are several.
    #[must_use]
    pub fn by_hash_part(&self, hash_part: &[u8; 20]) -> Option<StorePath> {
        self.store.index().seen_by(&self.member).by_digest(hash_part)
    }

    /// Valid paths that refer to `path`.
    #[must_use]
    pub fn referrers(&self, path: &StorePath) -> BTreeSet<StorePath> {
        self.store.index().seen_by(&self.member).referrers(path)
    }

    /// Every valid path.
    #[must_use]
    pub fn all_valid(&self) -> BTreeSet<StorePath> {
        self.store.index().seen_by(&self.member).all()
    }

    /// The derivation that `path` says it came from, if that is valid. (Nix also finds other derivations with the
    /// same output; we keep no map of outputs.)
    #[must_use]
    pub fn valid_derivers(&self, path: &StorePath) -> BTreeSet<StorePath> {
        let index = self.store.index();
        let seen = index.seen_by(&self.member);
        let deriver = seen.info(path).and_then(|i| i.deriver.as_ref());
        deriver.filter(|d| seen.info(d).is_some()).cloned().into_iter().collect()
    }

    /// `paths` and all they refer to, however indirectly.
    pub fn closure(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, MissingPath> {
        self.store.index().seen_by(&self.member).closure(paths)
    }

    /// Starts taking in a NAR; `scan_for` are the paths whose hash parts are looked for in it.
    pub fn ingest(&self, scan_for: &[StorePath]) -> Result<Ingest, ImportError> {
        Ok(Ingest::new(&self.store, scan_for)?)
    }

    /// Makes `ingested` visible as `info.path`. Durable when it returns.
    ///
    /// `Verified` is the caller's word, with one exception: a path with a reference that is not Verified is
    /// registered as Claimed. A path that is valid already under the same provenance stays as it is, whatever
    /// `ingested` has; the info returned is the one that counts.
    pub fn register(
        &self,
        ingested: Ingested,
        info: PathInfo,
        provenance: Provenance,
    ) -> Result<Arc<PathInfo>, RegisterError> {
        let staged = self.stage_built(ingested, info, provenance)?;
        let mut infos = self.register_many(vec![staged])?;
        Ok(infos.pop().expect("one path in, one info out"))
    }

    /// Registers all or none, with one transaction; members of the batch may refer to each other in any order.
    /// The infos come in the order of the batch.
    pub fn register_many(&self, batch: Vec<Staged>) -> Result<Vec<Arc<PathInfo>>, RegisterError> {
        register::register(&self.store, &self.member, batch)
    }

    /// An [`Ingested`] with its info, for [`View::register_many`].
    pub fn stage_built(
        &self,
        ingested: Ingested,
        info: PathInfo,
        provenance: Provenance,
    ) -> Result<Staged, RegisterError> {
        register::check(&self.member, &ingested, &info, &provenance)?;
        Ok(Staged { ingested, info, provenance })
    }

    /// Reads exactly one NAR and checks it against `info` as a client announced it; for [`View::register_many`].
    ///
    /// Not a byte after the NAR is read, which takes many small reads of `nar`: let it be buffered.
    pub fn stage(&self, info: PathInfo, nar: &mut dyn Read) -> Result<Staged, ImportError> {
        let mut ingest = self.ingest(&[])?;
        ingest.read_all(&info.path.to_string(), nar)?;
        address::stage(&self.member, ingest.finish()?, info)
    }

    /// [`View::stage`] and [`View::register_many`] of one path.
    ///
    /// Verified if `info` has a content address that the contents really have (otherwise it is an error) and all
    /// references are Verified; Claimed else.
    pub fn import(&self, info: PathInfo, nar: &mut dyn Read) -> Result<Arc<PathInfo>, ImportError> {
        self.register_one(self.stage(info, nar)?)
    }

    /// Adds contents at the path that they and `references` give. `dump` is a NAR for `Nar`, else the bytes of the
    /// file up to its end.
    pub fn add_ca(
        &self,
        name: &str,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: &BTreeSet<StorePath>,
        dump: &mut dyn Read,
    ) -> Result<Arc<PathInfo>, ImportError> {
        let ingested = match method {
            ContentAddressMethod::Flat | ContentAddressMethod::Text => {
                Ingested::flat(&self.store, name, dump)?
            }
            ContentAddressMethod::Nar | ContentAddressMethod::Git => {
                let mut ingest = self.ingest(&[])?;
                ingest.read_all(name, dump)?;
                ingest.finish()?
            }
        };
        self.register_one(address::stage_new(ingested, name, method, algorithm, references)?)
    }

    fn register_one(&self, staged: Staged) -> Result<Arc<PathInfo>, ImportError> {
        let mut infos = self.register_many(vec![staged])?;
        Ok(infos.pop().expect("one path in, one info out"))
    }

    fn contents(&self, path: &StorePath) -> Result<Contents, NarError> {
        let info = self.info(path).ok_or_else(|| MissingPath(path.clone()))?;
        let object = self.store.object(&info.nar_hash).map_err(|e| match e {
            ObjectFailure::File(e) => NarError::File(e),
            ObjectFailure::Damaged(why) => NarError::Damaged { path: path.to_string(), why },
        })?;
        Ok(Contents { name: path.to_string(), object: Arc::new(object) })
    }

    /// The NAR of a valid path.
    pub fn nar(&self, path: &StorePath) -> Result<NarReader, NarError> {
        Ok(NarReader::new(self.contents(path)?.object))
    }

    /// Writes the NAR of a valid path; returns its length.
    pub fn write_nar(&self, path: &StorePath, to: &mut dyn Write) -> Result<u64, NarError> {
        let mut consumer = Ok(());
        let size = self.contents(path)?.read_nar(|piece| {
            if consumer.is_ok() {
                consumer = to.write_all(piece);
            }
            consumer.is_ok()
        })?;
        consumer.map_err(|source| NarError::Consumer { path: path.clone(), source })?;
        Ok(size)
    }

    /// Contents of a valid path that is a single regular file of at most `max` bytes.
    pub fn read_file(&self, path: &StorePath, max: u64) -> Result<Vec<u8>, NarError> {
        self.contents(path)?.read_file(max)
    }

    /// Hash of the contents by `method`, as a fixed-output derivation states it.
    pub fn ca_hash(
        &self,
        path: &StorePath,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
    ) -> Result<NixHash, NarError> {
        self.contents(path)?.hash(method, algorithm, None)
    }

    /// Reads the whole object and compares its NAR hash with the registered one.
    pub fn verify(&self, path: &StorePath) -> Result<(), NarError> {
        let contents = self.contents(path)?;
        let mut hash = Sha256::new();
        contents.read_nar(|piece| {
            hash.update(piece);
            true
        })?;
        if <[u8; 32]>::from(hash.finalize()) == *contents.object.nar_hash() {
            return Ok(());
        }
        Err(NarError::Damaged { path: path.to_string(), why: "its NAR has another hash".to_owned() })
    }

    /// An EROFS image whose root directory lists exactly the basenames of `paths`. Only metadata is generated;
    /// the data stays in the objects. Keeps one open descriptor per path while it lives.
    pub fn compose(&self, paths: &BTreeSet<StorePath>) -> Result<Composed, ComposeError> {
        let infos: Vec<Arc<PathInfo>> = {
            let index = self.store.index();
            let seen = index.seen_by(&self.member);
            let info = |p: &StorePath| seen.info(p).cloned().ok_or_else(|| MissingPath(p.clone()));
            paths.iter().map(info).collect::<Result<_, _>>()?
        };
        let damaged = |i: usize, why| ComposeError::Damaged { path: infos[i].path.clone(), why };
        // A StorePath sorts as its basename does, so the names are in the order that the directory needs.
        let mut composer = Composer::new();
        for (i, info) in infos.iter().enumerate() {
            let object = self.store.object(&info.nar_hash).map_err(|e| match e {
                ObjectFailure::File(e) => ComposeError::File(e),
                ObjectFailure::Damaged(why) => damaged(i, why),
            })?;
            composer.add(info.path.to_basename(), object);
        }
        let image = composer.finish().map_err(|e| match e {
            ComposeFailure::Damaged(i, why) => damaged(i, why),
            ComposeFailure::TooLarge(blocks) => {
                ComposeError::TooLarge { paths: infos.len(), blocks, limit: u64::from(u32::MAX) }
            }
        })?;
        let meta =
            memory_file(&image.meta).map_err(|e| FileError::new("write closure metadata to", "memory", e))?;
        let mut segments = vec![(Arc::new(meta), 0, image.meta.len() as u64)];
        segments.extend(image.data.into_iter().map(|(file, len)| (file, crate::object::BLOCK, len)));
        let len = segments.iter().map(|(_, _, len)| len).sum();
        Ok(Composed { segments, len })
    }

    /// An unpacked, read-only copy of a valid path, made once and kept.
    pub fn tree(&self, path: &StorePath) -> Result<PathBuf, TreeError> {
        let (info, provenance) = self.info_with_provenance(path).ok_or_else(|| MissingPath(path.clone()))?;
        tree::tree(&self.store, &info, &provenance)
    }
}

/// A file in memory that holds `bytes`, cannot change its size, and is open for reading only.
fn memory_file(bytes: &[u8]) -> std::io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let fd = memfd_create("closure", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    // A VM maps this; a smaller file would be SIGBUS. Not sealed against writing: kernels before 6.7 refuse
    // shared mappings of such a file even for reading.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    File::open(path)
}
