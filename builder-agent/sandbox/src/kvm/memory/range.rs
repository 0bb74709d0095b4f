//! A reserved range of addresses, into which parts of files are mapped read-only.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use super::{MemoryError, PAGE};

/// Dropping it takes everything out of the range, and gives the addresses back.
pub struct Range {
    start: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: it is a number of addresses. What is mapped there is read-only memory without an owner thread.
unsafe impl Send for Range {}
// SAFETY: nobody can write to what is mapped; `copy` and `map` say what their callers owe each other.
unsafe impl Sync for Range {}

impl Range {
    /// Reserves `len` bytes of addresses for `what`. Before anything is mapped there, their pages have this protection:
    /// zeros, or none that may be touched.
    pub fn reserve(
        what: &'static str,
        len: NonZeroUsize,
        protection: ProtFlags,
    ) -> Result<Range, MemoryError> {
        // Anonymous and private: a page that is readable is the shared zero page, and one that is not costs nothing.
        // SAFETY: a new mapping at an address of the kernel's choice; no existing memory is affected.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len.get(),
                protection,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let bytes = len.get() as u64;
        let start = start.map_err(|e| MemoryError::Reserve { what, bytes, source: e.into() })?;
        let start = NonNull::new(start.cast()).expect("mmap never returns null for a chosen address");
        Ok(Range { start, len })
    }

    pub fn len(&self) -> u64 {
        self.len.get() as u64
    }

    /// Address and length.
    pub fn addresses(&self) -> (u64, u64) {
        (self.start.as_ptr() as u64, self.len())
    }

    /// Maps one segment at `at` bytes into the range, whose part below `end` may be used. The file may be closed afterwards.
    /// `index` names the segment in errors.
    ///
    /// # Safety
    ///
    /// Nobody uses `copy` on this part of the range meanwhile.
    pub unsafe fn map(
        &self,
        index: usize,
        at: u64,
        end: u64,
        file: &File,
        (offset, len): (u64, u64),
    ) -> Result<(), MemoryError> {
        let aligned = [at, offset, len].iter().all(|v| v % PAGE == 0) && len > 0;
        let fits = at.checked_add(len).is_some_and(|to| to <= end && to <= self.len());
        if !aligned || !fits {
            return Err(MemoryError::Unaligned { index, offset, len });
        }
        // Not `File::metadata`: fstat(2) is one of the system calls that a running VMM may make.
        let size = rustix::fs::fstat(file).map_err(|e| MemoryError::Map { index, source: e.into() })?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        // The last page of a file may be partial: the kernel fills it with zeros. That a file becomes shorter later, which
        // would kill the reader, cannot happen: these are objects of the store and memory files of the agent, and nobody
        // changes either.
        if offset.checked_add(len).is_none_or(|to| to > size.next_multiple_of(PAGE)) {
            return Err(MemoryError::PastEnd { index, offset, len, size });
        }
        // SAFETY: `at + len <= self.len` was checked above, so MAP_FIXED replaces only pages of the range that `self`
        // reserved and owns; by this function's contract nobody reads them now.
        unsafe {
            rustix::mm::mmap(
                self.start.as_ptr().add(at as usize).cast(),
                len as usize,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::FIXED,
                file.as_fd(),
                offset,
            )
        }
        .map_err(|e| MemoryError::Map { index, source: e.into() })?;
        Ok(())
    }

    /// Takes everything between these two offsets out of the range. Its pages have this protection afterwards, as in `reserve`.
    ///
    /// # Safety
    ///
    /// As for `map`.
    pub unsafe fn clear(&self, from: u64, to: u64, protection: ProtFlags) -> Result<(), MemoryError> {
        if from >= to || to > self.len() {
            return Ok(());
        }
        let len = to - from;
        // SAFETY: as in `map`.
        unsafe {
            rustix::mm::mmap_anonymous(
                self.start.as_ptr().add(from as usize).cast(),
                len as usize,
                protection,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
            )
        }
        .map_err(|e| MemoryError::Reserve {
            what: "what was mapped",
            bytes: len,
            source: e.into(),
        })?;
        Ok(())
    }

    /// Copies `out.len()` bytes at `offset`; false, with nothing copied, if they do not all lie below `end`.
    ///
    /// # Safety
    ///
    /// The range is readable below `end`, and stays so during the call.
    pub unsafe fn copy(&self, offset: u64, end: u64, out: &mut [u8]) -> bool {
        let end = end.min(self.len());
        if offset.checked_add(out.len() as u64).is_none_or(|to| to > end) {
            return false;
        }
        // SAFETY: the range was checked against `end` above, which is readable memory of this mapping by this function's
        // contract; `out` is memory of its own.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start.as_ptr().add(offset as usize),
                out.as_mut_ptr(),
                out.len(),
            );
        }
        true
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: the range is ours since `reserve`, and nothing refers to it once `self` is gone.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len.get()) };
    }
}
