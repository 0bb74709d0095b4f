//! tbd
use std::collections::BTreeSet;
use std::io;

use nix_derivation::{ContentAddressMethod, HashAlgorithm, NixHash, StorePath};

use crate::error::{ImportError, NarError};

/// NAR bytes go in, an object comes out. Dropping it leaves nothing behind.
pub struct Ingest {}

impl Ingest {
    /// Ends the NAR. The object is complete, but not yet durable and not yet visible.
    pub fn finish(self) -> Result<Ingested, ImportError> { unimplemented!() }
}

impl io::Write for Ingest {
    fn write(&mut self, _buf: &[u8]) -> io::Result<usize> { unimplemented!() }
    fn flush(&mut self) -> io::Result<()> { Ok(()) }
}

/// A complete object that nobody sees yet. Dropping it removes it.
#[derive(Debug)]
pub struct Ingested {
    /// SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// Those of `scan_for` whose hash part occurs in the NAR.
    pub references: BTreeSet<StorePath>,
}

impl Ingested {
    /// Hash of the contents by `method`; occurrences of `self_path`'s hash part count as zeros (Nix: HashModuloSink).
    pub fn ca_hash(&self, _method: ContentAddressMethod, _algorithm: HashAlgorithm, _self_path: Option<&StorePath>) -> Result<NixHash, NarError> { unimplemented!() }
    /// Contents of a single regular file of at most `max` bytes.
    pub fn read_file(&self, _max: u64) -> Result<Vec<u8>, NarError> { unimplemented!() }
}

/// An object with its checked info and provenance, ready to be registered together with others.
#[derive(Debug)]
pub struct Staged {}
