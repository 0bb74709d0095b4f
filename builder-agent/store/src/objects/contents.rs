//! Questions about the contents of one object: the bytes of a single file, and hashes of every kind Nix has.

use std::io::Read;
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, NixHash, NixHasher, StorePath, nixbase32};

use super::{ObjectFailure, Objects};
use crate::error::{FileError, NarError};
use crate::format::git;
use crate::format::object::{Kind, NarReader, Object, ObjectError};

const PIECE: usize = 256 << 10;
/// Most self references whose places are counted. No real path has this many; they take 8 MB.
const MAX_PLACES: usize = 1_000_000;

/// An object with its name for errors.
pub(crate) struct Contents {
    pub(crate) name: String,
    pub(crate) object: Arc<Object>,
}

fn unreadable(info: &PathInfo, failure: ObjectFailure) -> NarError {
    match failure {
        ObjectFailure::File(e) => NarError::File(e),
        ObjectFailure::Damaged(why) => NarError::Damaged { path: info.path.to_string(), why },
    }
}

impl Contents {
    pub(crate) fn of(objects: &dyn Objects, info: &PathInfo) -> Result<Self, NarError> {
        let object = objects.open(&info.nar_hash).map_err(|failure| unreadable(info, failure))?;
        Ok(Self { name: info.path.to_string(), object: Arc::new(object) })
    }

    /// Memory that [`Contents::of`] takes, in bytes.
    pub(crate) fn measure(objects: &dyn Objects, info: &PathInfo) -> Result<u64, NarError> {
        objects.measure(&info.nar_hash).map_err(|failure| unreadable(info, failure))
    }

    fn failed(&self, e: ObjectError) -> NarError {
        match e {
            ObjectError::Io(source) => {
                NarError::File(FileError::new("read the object of", &self.name, source))
            }
            ObjectError::Damaged(why) => NarError::Damaged { path: self.name.clone(), why },
        }
    }

    /// Offset and size of the single file that this object is.
    fn file(&self, allow_executable: bool) -> Result<(u64, u64), NarError> {
        let found = match self.object.inode(self.object.root()).map_err(|e| self.failed(e))? {
            Kind::File { executable, at, size } if allow_executable || !executable => return Ok((at, size)),
            Kind::File { .. } => "executable file",
            Kind::Directory(_) => "directory",
            Kind::Symlink { .. } => "symlink",
        };
        Err(NarError::NotAFile { path: self.name.clone(), found })
    }

    /// The bytes of a single file.
    pub(crate) fn read_file(&self, max: u64) -> Result<Vec<u8>, NarError> {
        let (at, size) = self.file(true)?;
        if size > max {
            return Err(NarError::TooLarge { path: self.name.clone(), size, max });
        }
        let mut out = vec![0; size as usize];
        self.object.read_data(&mut out, at).map_err(|e| self.failed(e))?;
        Ok(out)
    }

    /// Hash of the contents by `method`. With `own`, occurrences of the path's own hash part count as zeros,
    /// as in Nix 2.26 and later, whose `RewritingSink` no longer notes their places. Contents in which zeros
    /// and the hash part are exchanged have the same hash, so this hash proves nothing about contents that a
    /// client chose.
    pub(crate) fn hash(
        &self,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        own: Option<&StorePath>,
    ) -> Result<NixHash, NarError> {
        let mut hasher = NixHasher::new(algorithm);
        match method {
            ContentAddressMethod::Flat | ContentAddressMethod::Text => {
                let (at, size) = self.file(false)?;
                let read = self.object.pieces(at, size, |piece| {
                    hasher.update(piece);
                    Ok(())
                });
                read.map_err(|e| self.failed(e))?;
                Ok(hasher.finalize())
            }
            ContentAddressMethod::Nar => match own {
                None if algorithm == HashAlgorithm::Sha256 => Ok(NixHash::Sha256(*self.object.nar_hash())),
                None => {
                    self.read_nar(|piece| hasher.update(piece))?;
                    Ok(hasher.finalize())
                }
                Some(path) => Ok(self.modulo(hasher, path)?.hasher.finalize()),
            },
            ContentAddressMethod::Git => {
                // Git keeps a file's mode in the parent directory. A root has none, so an executable or a
                // symlink as root would have the same hash and path as a plain file, and the address would
                // not say which of them it is (Nix's manual refuses them for that:
                // file-system-object/content-address, "Git").
                let root = self.object.inode(self.object.root()).map_err(|e| self.failed(e))?;
                if !matches!(root, Kind::Directory(_)) {
                    self.file(false)?;
                }
                git::hash(&self.object, algorithm).map_err(|e| self.failed(e))
            }
        }
    }

    /// Like [`Contents::hash`], but includes the places of self references, as in Nix 2.8: different contents
    /// have different hashes. `None` if there are too many self references.
    pub(crate) fn counted_hash(
        &self,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        own: &StorePath,
    ) -> Result<Option<NixHash>, NarError> {
        match method {
            ContentAddressMethod::Nar => Ok(self.modulo(NixHasher::new(algorithm), own)?.counted()),
            _ => self.hash(method, algorithm, None).map(Some),
        }
    }

    fn modulo(&self, hasher: NixHasher, own: &StorePath) -> Result<Modulo, NarError> {
        let mut modulo = Modulo::new(hasher, nixbase32::encode(own.digest()).as_bytes());
        self.read_nar(|piece| modulo.update(piece))?;
        modulo.end();
        Ok(modulo)
    }

    /// Passes the NAR to `to`.
    pub(crate) fn read_nar(&self, mut to: impl FnMut(&[u8])) -> Result<(), NarError> {
        let mut reader = NarReader::new(Arc::clone(&self.object));
        // Most paths are small, and zeroing a large buffer for each would take longer than reading it.
        let mut piece = vec![0; reader.size().clamp(1, PIECE as u64) as usize];
        loop {
            let n = reader.read(&mut piece).map_err(|e| match e.kind() {
                std::io::ErrorKind::InvalidData => self.failed(ObjectError::Damaged(e.to_string())),
                _ => self.failed(ObjectError::Io(e)),
            })?;
            match n {
                0 => return Ok(()),
                n => to(&piece[..n]),
            }
        }
    }
}

/// Hashes a stream in which each `needle` counts as zeros, and notes its places
/// (Nix: `HashModuloSink` in `src/libstore/references.cc`).
struct Modulo {
    hasher: NixHasher,
    needle: [u8; 32],
    /// The latest bytes, which may be the beginning of a needle.
    held: Vec<u8>,
    /// Offset of the first held byte.
    at: u64,
    /// Places of the needle; `None` once there are too many.
    found: Option<Vec<u64>>,
}

impl Modulo {
    fn new(hasher: NixHasher, needle: &[u8]) -> Self {
        let needle = needle.try_into().expect("a hash part has 32 characters");
        Self { hasher, needle, held: Vec::new(), at: 0, found: Some(Vec::new()) }
    }

    fn update(&mut self, piece: &[u8]) {
        self.held.extend_from_slice(piece);
        let len = self.needle.len();
        let mut done = 0;
        while let Some(i) = self.held[done..].windows(len).position(|w| w == self.needle) {
            self.hasher.update(&self.held[done..done + i]);
            self.hasher.update(&[0; 32]);
            self.found = self.found.take().filter(|found| found.len() < MAX_PLACES);
            if let Some(found) = &mut self.found {
                found.push(self.at + (done + i) as u64);
            }
            done += i + len;
        }
        let safe = self.held.len().saturating_sub(len - 1).max(done);
        self.hasher.update(&self.held[done..safe]);
        self.at += safe as u64;
        self.held.drain(..safe);
    }

    /// Ends the stream.
    fn end(&mut self) {
        self.hasher.update(&self.held);
    }

    /// The hash of the stream and the places.
    fn counted(mut self) -> Option<NixHash> {
        for place in self.found? {
            self.hasher.update(format!("|{place}").as_bytes());
        }
        Some(self.hasher.finalize())
    }
}
