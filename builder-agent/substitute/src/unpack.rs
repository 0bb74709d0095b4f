//! Decodes the file of a cache into a NAR, in the same pass in which the store reads it.
//!
//! The bytes come from a stranger: window sizes are bounded, the NAR must have its announced size, and bytes after the
//! last frame count against the file's announced size.

use std::io::{self, BufReader, Read};

use nix_derivation::{HashAlgorithm, NixHash};
use sha2::{Digest, Sha256};

use super::narinfo::Compression;

/// Most memory of the xz decoder. `xz -9` needs 64 MiB; a hostile file asks for gigabytes.
const MAX_XZ_KIB: u32 = 128 << 10;
const BUFFER: usize = 64 << 10;

/// The file behind a URL, which is counted and hashed while it is read.
pub struct File<R> {
    inner: R,
    hash: Option<(Sha256, NixHash)>,
    /// The size of the file, if the cache announced it.
    size: Option<u64>,
    got: u64,
}

impl<R: Read> File<R> {
    /// `hash` is compared if it is a SHA-256, as Nix writes it; the hash of the NAR is checked in any case.
    pub fn new(inner: R, hash: Option<&NixHash>, size: Option<u64>) -> Self {
        let hash = hash.filter(|hash| hash.algorithm() == HashAlgorithm::Sha256).cloned();
        Self { inner, hash: hash.map(|hash| (Sha256::new(), hash)), size, got: 0 }
    }

    /// Reads the bytes that the decoder has not read, and compares size and hash.
    pub fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self, &mut io::sink())?;
        if let Some(size) = self.size.filter(|size| *size != self.got) {
            return Err(invalid(format!("the file has {} bytes, its narinfo says {size}", self.got)));
        }
        if let Some((hash, want)) = self.hash {
            let got = hash.finalize();
            if got.as_slice() != want.digest_as_bytes() {
                let got = nix_derivation::nixbase32::encode(&got);
                return Err(invalid(format!(
                    "the file has the hash sha256:{got}, its narinfo says {}",
                    want.to_nix_nixbase32_string()
                )));
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for File<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.got += n as u64;
        if let Some(size) = self.size.filter(|size| self.got > *size) {
            return Err(invalid(format!("the file continues after the {size} bytes that its narinfo says")));
        }
        if let Some((hash, _)) = &mut self.hash {
            hash.update(&buf[..n]);
        }
        Ok(n)
    }
}

/// Reads `nar_size` bytes of NAR out of `from`; a further byte is an error.
pub fn nar<'a, R: Read>(from: &'a mut R, compression: Compression, nar_size: u64) -> impl Read + 'a {
    let packed = BufReader::with_capacity(BUFFER, from);
    let unpacked: Box<dyn Read + 'a> = match compression {
        Compression::None => Box::new(packed),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(packed, true, MAX_XZ_KIB)),
        Compression::Zstd => Box::new(zstd_frames::Frames::new(packed)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        // The format's largest window has 16 MiB.
        Compression::Brotli => Box::new(brotli_decompressor::Decompressor::new(packed, BUFFER)),
    };
    exactly(unpacked, nar_size)
}

/// A reader of at most `size` bytes, with an error in place of a further one.
pub fn exactly<R: Read>(inner: R, size: u64) -> Exactly<R> {
    Exactly { inner, left: size, size }
}

/// A reader that refuses more bytes than were announced.
pub struct Exactly<R> {
    inner: R,
    left: u64,
    size: u64,
}

impl<R> Exactly<R> {
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(invalid(format!(
                    "the NAR continues after the {} bytes announced for it",
                    self.size
                )));
            }
        }
        Ok(n)
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
