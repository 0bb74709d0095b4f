//! Makes an object of an upload in one pass: NAR in, EROFS out, with its hash and its references.
//!
//! Nothing here is visible to any view. An upload that is dropped before it is registered removes its file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::sync::Arc;

use nix_archive::nar::{ReferencePattern, ReferenceScanner};
use nix_derivation::{ContentAddressMethod, HashAlgorithm, NixHash, StorePath, nixbase32};
use sha2::{Digest, Sha256};

use super::Objects;
use super::contents::Contents;
use super::room::{Allowance, Leave, Room, Writer};
use super::temporary::Temporary;
use crate::error::{FileError, ImportError, NarError};
use crate::format::nar::{ParseError, Parser, PushError};
use crate::format::object::{NarReader, Object, ObjectError, ObjectWriter, Written};

/// The name of an upload in errors, while it has no path.
const UPLOAD: &str = "this upload";

/// How large an upload may be (see [`crate::StoreConfig`]), and who gives it room on the disk.
#[derive(Clone)]
pub(crate) struct Limits {
    pub(crate) max_nar_bytes: u64,
    pub(crate) max_entries: u32,
    pub(crate) room: Arc<dyn Room>,
    pub(crate) writer: Writer,
}

/// Takes NAR bytes and makes an object. If it is dropped, nothing stays behind.
///
/// A write after which the bytes cannot be a NAR any more fails with kind `InvalidData`; [`Ingest::finish`]
/// returns the same error as a typed one.
pub struct Ingest {
    parser: Parser,
    hash: Sha256,
    scanner: ReferenceScanner,
    candidates: Vec<StorePath>,
    writer: ObjectWriter,
    temporary: Temporary,
    max_bytes: u64,
    allowance: Allowance,
    failed: Option<Failed>,
}

enum Failed {
    Parse(ParseError),
    Write(io::ErrorKind, Option<i32>),
    /// The store has no room, for this reason.
    Full(Arc<str>),
}

impl Ingest {
    pub(crate) fn new(
        objects: &dyn Objects,
        limits: Limits,
        scan_for: &[StorePath],
    ) -> Result<Self, FileError> {
        let Limits { max_nar_bytes: max_bytes, max_entries, room, writer } = limits;
        let allowance = Allowance::open(room, writer);
        let (file, temporary) = objects.create()?;
        let parts = scan_for.iter().map(|p| nixbase32::encode(p.digest()));
        let pattern = ReferencePattern::new(parts).expect("hash parts of store paths are valid nixbase32");
        Ok(Self {
            parser: Parser::new(max_entries, max_bytes),
            hash: Sha256::new(),
            scanner: pattern.scanner(),
            candidates: scan_for.to_vec(),
            writer: ObjectWriter::new(file),
            temporary,
            max_bytes,
            allowance,
            failed: None,
        })
    }

    /// There is room for so much more.
    pub(crate) fn allow(&mut self, leave: Leave) {
        self.allowance.give(leave);
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let size = self.parser.position().saturating_add(bytes.len() as u64);
        if size > self.max_bytes {
            return Err(Failed::Parse(ParseError::TooLarge { size, limit: self.max_bytes }));
        }
        self.allowance.take(bytes.len()).map_err(|full| Failed::Full(full.to_string().into()))?;
        self.parser.push(bytes, &mut self.writer).map_err(|e| match e {
            PushError::Parse(e) => Failed::Parse(e),
            PushError::Events(e) => Failed::Write(e.kind(), e.raw_os_error()),
        })?;
        self.hash.update(bytes);
        self.scanner.scan(bytes);
        Ok(())
    }

    /// Number of bytes that can be read from a stream without reading past the end of the NAR; 0 at its end.
    #[must_use]
    pub fn surely_left(&self) -> u64 {
        self.parser.surely_left()
    }

    /// Takes the beginning of `bytes` that belongs to the NAR, and returns its length; if that is less than
    /// all of `bytes`, the NAR has ended.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, ImportError> {
        let mut taken = 0;
        while taken < bytes.len() {
            let want = usize::try_from(self.surely_left()).unwrap_or(usize::MAX);
            if want == 0 {
                break;
            }
            let piece = &bytes[taken..bytes.len().min(taken.saturating_add(want))];
            if let Err(failed) = self.push(piece) {
                return Err(self.import_error(&failed));
            }
            taken += piece.len();
        }
        Ok(taken)
    }

    /// About how many bytes of memory this takes: the tree is kept until it is complete.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.writer.memory()
    }

    /// Reads exactly one NAR, without a copy on the way from the caller's buffer.
    pub(crate) fn read_all(&mut self, name: &str, from: &mut dyn BufRead) -> Result<(), ImportError> {
        loop {
            let want = usize::try_from(self.surely_left()).unwrap_or(usize::MAX);
            if want == 0 {
                return Ok(());
            }
            let bytes = match from.fill_buf() {
                Ok([]) => return Err(self.parser.finish().expect_err("the NAR has not ended").into()),
                Ok(bytes) => &bytes[..bytes.len().min(want)],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ImportError::Source { name: name.to_owned(), source }),
            };
            if let Err(failed) = self.push(bytes) {
                return Err(self.import_error(&failed));
            }
            let n = bytes.len();
            from.consume(n);
        }
    }

    fn import_error(&self, failed: &Failed) -> ImportError {
        match failed {
            Failed::Parse(e) => e.clone().into(),
            Failed::Write(..) | Failed::Full(_) => {
                FileError::new("write object", self.temporary.path(), failed.to_io()).into()
            }
        }
    }

    /// Ends the NAR. The object is complete, but not yet durable and not yet visible.
    pub fn finish(self) -> Result<Ingested, ImportError> {
        if let Some(failed) = &self.failed {
            return Err(self.import_error(failed));
        }
        self.parser.finish()?;
        let nar_size = self.parser.position();
        let nar_hash = self.hash.finalize().into();
        let found = self.scanner.into_matches();
        let references = found.into_iter().map(|i| self.candidates[i].clone()).collect();
        let written = self
            .writer
            .finish(nar_hash, nar_size)
            .map_err(|e| FileError::new("write object", self.temporary.path(), e))?;
        Ok(Ingested::new(written, self.temporary, nar_hash, nar_size, references))
    }
}

impl Failed {
    fn to_io(&self) -> io::Error {
        match self {
            Self::Parse(e) => io::Error::new(io::ErrorKind::InvalidData, e.clone()),
            Self::Full(why) => io::Error::new(io::ErrorKind::StorageFull, why.to_string()),
            Self::Write(_, Some(code)) => io::Error::from_raw_os_error(*code),
            Self::Write(kind, None) => io::Error::from(*kind),
        }
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed.is_none()
            && let Err(failed) = self.push(bytes)
        {
            self.failed = Some(failed);
        }
        match &self.failed {
            None => Ok(bytes.len()),
            Some(failed) => Err(failed.to_io()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A complete object that no view shows yet. Dropping it removes it.
#[derive(Debug)]
pub struct Ingested {
    /// SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// The paths of `scan_for` whose hash part occurs in the NAR.
    pub references: BTreeSet<StorePath>,
    /// Bytes of the file.
    pub(crate) object_size: u64,
    flat_hash: Option<[u8; 32]>,
    pub(crate) file: Arc<File>,
    pub(crate) temporary: Temporary,
}

impl Ingested {
    pub(crate) fn new(
        written: Written,
        temporary: Temporary,
        nar_hash: [u8; 32],
        nar_size: u64,
        references: BTreeSet<StorePath>,
    ) -> Self {
        let Written { file, size: object_size, flat_hash } = written;
        Self { nar_hash, nar_size, references, object_size, flat_hash, file: Arc::new(file), temporary }
    }

    pub(crate) fn contents(&self) -> Result<Contents, NarError> {
        let object = Object::open(Arc::clone(&self.file)).map_err(|e| match e {
            ObjectError::Io(e) => NarError::File(FileError::new("read object", self.temporary.path(), e)),
            ObjectError::Damaged(why) => NarError::Damaged { path: UPLOAD.to_owned(), why },
        })?;
        Ok(Contents { name: UPLOAD.to_owned(), object: Arc::new(object) })
    }

    /// Hash of the contents by `method`, e.g. to compare with a fixed-output derivation. With `self_path`,
    /// occurrences of its hash part count as zeros (Nix: `HashModuloSink` since 2.26); then other contents
    /// may have the same hash, so this hash alone does not make a path Verified.
    pub fn ca_hash(
        &self,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        self_path: Option<&StorePath>,
    ) -> Result<NixHash, NarError> {
        use ContentAddressMethod::{Flat, Nar, Text};
        let known = match (method, algorithm, self_path) {
            (Nar, HashAlgorithm::Sha256, None) => Some(self.nar_hash),
            (Flat | Text, HashAlgorithm::Sha256, None) => self.flat_hash,
            _ => None,
        };
        match known {
            Some(hash) => Ok(NixHash::Sha256(hash)),
            None => self.contents()?.hash(method, algorithm, self_path),
        }
    }

    /// The NAR, read back.
    pub fn nar(&self) -> Result<NarReader, NarError> {
        Ok(NarReader::new(self.contents()?.object))
    }

    /// Contents of a single regular file of at most `max` bytes.
    pub fn read_file(&self, max: u64) -> Result<Vec<u8>, NarError> {
        self.contents()?.read_file(max)
    }
}
