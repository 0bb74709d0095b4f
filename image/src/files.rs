//! Checksums of files, in the form that all commands write.

use std::io;

/// SHA-256 and length of everything that a reader returns.
pub fn digest(reader: &mut dyn io::Read) -> io::Result<(String, u64)> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    let size = io::copy(reader, &mut hash)?;
    Ok((hex::encode(hash.finalize()), size))
}
