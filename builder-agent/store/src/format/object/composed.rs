//! A composed image: metadata that was generated into memory, and pieces of files that exist anyway.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// One EROFS image as pieces of files: concatenated they are the image. Offsets and lengths are multiples of 4096. A piece may
/// end up to 4095 bytes behind the end of its file: map it, and the rest of its last page is zeros.
#[derive(Debug, Clone)]
pub struct Composed {
    /// (file opened for reading, offset, length), in image order. The first is the metadata, a memory file; the
    /// others are pieces of objects, or whole files of a [`super::FileTree`].
    pub segments: Vec<(Arc<File>, u64, u64)>,
    /// Sum of the lengths.
    pub len: u64,
}

/// A file in memory that holds `bytes`, cannot change its size, and is open for reading only.
pub(crate) fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let fd = memfd_create("metadata", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    // A VM maps this file; if it became smaller, an access would raise SIGBUS. Not sealed against writing:
    // kernels before 6.7 refuse shared mappings of such a file even for reading.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
