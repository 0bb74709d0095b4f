//! Guest memory: RAM, which the guest may change at any moment, and the closure, which it may only read.
//!
//! RAM is anonymous memory owned by vm-memory; the VMM copies out of it and into it and never borrows it. The
//! closure is a sequence of read-only file mappings in one reserved range, so that one KVM slot shows them to
//! the guest as one contiguous image. All VMs of a box share its pages through the host's page cache. A disk that grows is
//! such a sequence, too, of which the guest sees copies.

pub mod growing;
mod range;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::arch::{Architecture, Native};
use range::Range;

pub const PAGE: u64 = 4096;
/// Linux: SUBSECTION_SIZE, the unit in which memremap_pages takes persistent memory. 16 MiB also satisfies
/// architectures whose default namespace alignment is larger.
const CLOSURE_ALIGNMENT: u64 = 2 << 20;
/// Largest closure: the guest pays 64 bytes of its RAM for each 4 KiB of it, and 1 TiB leaves room on every CPU.
pub const CLOSURE_MAX: u64 = 1 << 40;

/// Most segments of a closure. Each is a mapping, of which Linux allows a process 65,530 (`vm.max_map_count`, unless
/// the operator changed it); the rest is for the VMM itself.
pub const SEGMENTS_MAX: usize = 60_000;

/// Most bytes of page tables that a process needs for a mapping of `len` bytes, all of which it has touched: 8 for each page,
/// in whole tables, on each level.
pub fn page_tables(len: u64) -> u64 {
    let mut bytes = 0;
    let mut covered = PAGE;
    // The mapping may begin and end in the middle of a table.
    while covered < 1 << 48 {
        covered <<= 9;
        bytes += (len / covered + 2) * PAGE;
    }
    bytes
}

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot reserve {bytes} bytes for {what}")]
    Reserve { what: &'static str, bytes: u64, source: io::Error },
    #[error("cannot lay out {mib} MiB of guest memory: {why}")]
    Ram { mib: u64, why: String },
    #[error("segment {index} (offset {offset}, length {len}) is not a non-empty run of whole pages")]
    Unaligned { index: usize, offset: u64, len: u64 },
    /// A mapping past the end of a file is legal, and kills the reader when it touches it.
    #[error("segment {index} (offset {offset}, length {len}) ends after its file of {size} bytes")]
    PastEnd { index: usize, offset: u64, len: u64, size: u64 },
    #[error("the closure of {bytes} bytes is larger than {max}")]
    TooLarge { bytes: u64, max: u64 },
    #[error("cannot map segment {index}")]
    Map { index: usize, source: io::Error },
    #[error("cannot give {what} to KVM")]
    Slot { what: &'static str, source: kvm_ioctls::Error },
    #[error("the closure would end at {end:#x}, past the processor's {limit:#x}")]
    BeyondAddresses { end: u64, limit: u64 },
}

/// RAM of `mib` MiB. No page is touched, so the host has not allocated any yet.
pub fn ram(mib: u64) -> Result<GuestMemoryMmap, MemoryError> {
    let ranges: Vec<_> = Native::ram_ranges(mib << 20)
        .into_iter()
        .map(|(start, len)| (GuestAddress(start), len as usize))
        .collect();
    let memory =
        GuestMemoryMmap::from_ranges(&ranges).map_err(|e| MemoryError::Ram { mib, why: e.to_string() })?;
    for region in memory.iter() {
        // Huge pages avoid most second-level page faults. An error is ignored: a host may have them switched
        // off. SAFETY: the range is the mapping of `region`, alive here; the advice changes no contents.
        let _ = unsafe {
            rustix::mm::madvise(region.as_ptr().cast(), region.size(), rustix::mm::Advice::LinuxHugepage)
        };
    }
    Ok(memory)
}

/// How a file shows in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// It is the RAM: what the guest writes is in the file.
    Shared,
    /// The guest finds its contents; what it writes is its own.
    Copied,
}

/// Puts parts of a file, as offsets and lengths, in the place of RAM. The file has the bytes of all RAM, without the gaps between
/// its ranges. RAM outside of the parts stays as it is.
///
/// Not one mapping of the whole file: a page that a copy writes to, and that the file does not have yet, would come into being in
/// the file, too, and stay there (Linux: do_cow_fault, shmem_get_folio).
pub fn lay_over(
    memory: &GuestMemoryMmap,
    file: &File,
    parts: &[(u64, u64)],
    backing: Backing,
) -> Result<(), MemoryError> {
    let flags = match backing {
        Backing::Shared => MapFlags::SHARED,
        Backing::Copied => MapFlags::PRIVATE | MapFlags::NORESERVE,
    };
    for (index, &(offset, len)) in parts.iter().enumerate() {
        let wrong = || MemoryError::Unaligned { index, offset, len };
        let (_, at) = place(memory, (offset, len)).ok_or_else(wrong)?;
        if [offset, len].iter().any(|v| v % PAGE != 0) || len == 0 {
            return Err(wrong());
        }
        // SAFETY: the range lies in the mapping of one region, which nobody reads yet; MAP_FIXED replaces just these pages. The
        // file does not become shorter: it is a memory file of the agent, sealed when others copy it.
        unsafe {
            rustix::mm::mmap(
                at.cast(),
                len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                flags | MapFlags::FIXED,
                file.as_fd(),
                offset,
            )
        }
        .map_err(|e| MemoryError::Map { index, source: e.into() })?;
    }
    Ok(())
}

/// Where `len` bytes at an offset of such a file are: the address in the guest, and the one in this process.
pub fn place(memory: &GuestMemoryMmap, (offset, len): (u64, u64)) -> Option<(u64, *mut u8)> {
    let mut before = 0;
    memory.iter().find_map(|region| {
        let at = offset.checked_sub(before);
        before += region.len();
        let at = at.filter(|at| *at < region.len() && len <= region.len() - at)?;
        // SAFETY: `at` is inside the region's mapping.
        Some((region.start_addr().0 + at, unsafe { region.as_ptr().add(at as usize) }))
    })
}

/// Makes these pages of RAM, by their place in such a file, the process' own, as if the guest had written to them. Only a matter
/// of time: a kernel that cannot do it does it when the guest writes.
pub fn copy_in_advance(memory: &GuestMemoryMmap, pages: &[(u64, u64)]) {
    for &(offset, len) in pages {
        if let Some((_, at)) = place(memory, (offset, len)) {
            // SAFETY: the range is inside RAM, which stays mapped; the advice changes no contents.
            let _ = unsafe {
                rustix::mm::madvise(at.cast(), len as usize, rustix::mm::Advice::LinuxPopulateWrite)
            };
        }
    }
}

/// All parts of a file for [`lay_over`]: one for each range of RAM.
pub fn whole(memory: &GuestMemoryMmap) -> Vec<(u64, u64)> {
    let mut offset = 0;
    let mut next = |len| {
        offset += len;
        (offset - len, len)
    };
    memory.iter().map(|region| next(region.len())).collect()
}

/// The closure's image in this process' memory.
pub struct Closure {
    /// The image and its padding, which reads as zeros.
    range: Range,
    image_len: u64,
}

impl Closure {
    /// Reserves the range for an image of `image_len` bytes. No file is mapped in it yet.
    pub fn reserve(image_len: u64) -> Result<Closure, MemoryError> {
        if image_len > CLOSURE_MAX {
            return Err(MemoryError::TooLarge { bytes: image_len, max: CLOSURE_MAX });
        }
        let padded = image_len.max(1).next_multiple_of(CLOSURE_ALIGNMENT);
        let len = NonZeroUsize::new(padded as usize).expect("at least one alignment unit");
        Ok(Closure { range: Range::reserve("the closure", len, ProtFlags::READ)?, image_len })
    }

    /// Maps one segment at `at` bytes into the image. The file may be closed afterwards.
    pub fn map(
        &mut self,
        index: usize,
        at: u64,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Result<(), MemoryError> {
        // SAFETY: nobody reads: `self` is borrowed mutably.
        unsafe { self.range.map(index, at, self.image_len, file, (offset, len)) }
    }

    /// Number of bytes that the guest sees: the image and its padding.
    pub fn len(&self) -> u64 {
        self.range.len()
    }

    pub fn host_range(&self) -> (u64, u64) {
        self.range.addresses()
    }

    /// Copies `out.len()` bytes at `offset`; false, with nothing copied, if they are not all inside.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        // SAFETY: the whole range is readable since `reserve`, and `map` needs `self` mutably.
        unsafe { self.range.copy(offset, self.len(), out) }
    }
}

/// Gives RAM and closure to the VM. `closure_at` is its guest address, or none if it is not mapped.
///
/// The caller keeps `memory` and `closure` alive as long as the VM: KVM holds their addresses, not their mappings.
pub fn give_to_kvm(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    closure: Option<(&Closure, u64)>,
) -> Result<(), MemoryError> {
    let mut slot = 0;
    for region in memory.iter() {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is the whole mapping of this region, which by this function's contract outlives the VM.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|source| MemoryError::Slot { what: "RAM", source })?;
        slot += 1;
    }
    if let Some((closure, at)) = closure {
        let region = kvm_userspace_memory_region {
            slot,
            // A guest that writes here causes an exit, which is ignored.
            flags: KVM_MEM_READONLY,
            guest_phys_addr: at,
            memory_size: closure.len(),
            userspace_addr: closure.host_range().0,
        };
        // SAFETY: the range is the whole reservation, which by this function's contract outlives the VM.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|source| MemoryError::Slot { what: "the closure", source })?;
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Write;

    pub fn file(bytes: &[u8]) -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(bytes).unwrap();
        file
    }

    /// A file of the size of this RAM, with a letter in one page.
    fn backing(mib: u64, page: u64) -> File {
        let file = file(&[]);
        file.set_len(mib << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[b'a'; PAGE as usize], page * PAGE).unwrap();
        file
    }

    fn read(memory: &GuestMemoryMmap, at: u64) -> u8 {
        vm_memory::Bytes::read_obj(memory, GuestAddress(at)).unwrap()
    }

    fn write(memory: &GuestMemoryMmap, at: u64) {
        vm_memory::Bytes::write_obj(memory, b'b', GuestAddress(at)).unwrap();
    }

    #[test]
    fn what_copies_of_a_file_write_is_their_own_and_never_in_the_file() {
        use std::os::unix::fs::MetadataExt;
        let file = backing(4, 3);
        let blocks = file.metadata().unwrap().blocks();
        let copies = [(); 2].map(|()| {
            let memory = ram(4).unwrap();
            lay_over(&memory, &file, &[(3 * PAGE, PAGE)], Backing::Copied).unwrap();
            memory
        });
        copy_in_advance(&copies[1], &[(3 * PAGE, PAGE)]);
        write(&copies[0], 3 * PAGE);
        // Outside of the part: memory that no copy shares.
        write(&copies[0], 5 * PAGE);
        let seen = [0, 1].map(|i: usize| [3, 5].map(|page| read(&copies[i], page * PAGE)));
        assert_eq!(seen, [[b'b', b'b'], [b'a', 0]]);
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 3 * PAGE).unwrap();
        assert_eq!((byte, file.metadata().unwrap().blocks()), ([b'a'], blocks));
    }

    #[test]
    fn a_file_that_is_the_ram_has_what_the_guest_writes_on_both_sides_of_the_gap() {
        let mib = 3 * 1024 + 2;
        let file = backing(mib, 1);
        let memory = ram(mib).unwrap();
        lay_over(&memory, &file, &whole(&memory), Backing::Shared).unwrap();
        assert_eq!(read(&memory, PAGE), b'a');
        // The second range begins at 4 GiB, and at 3 GiB of the file.
        write(&memory, (4 << 30) + 7);
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, (3 << 30) + 7).unwrap();
        assert_eq!(byte, [b'b']);
        assert_eq!(place(&memory, (3 << 30, 1)).unwrap().0, 4 << 30);
    }

    #[test]
    fn parts_that_are_not_in_one_range_of_ram_are_refused() {
        let mib = 3 * 1024 + 2;
        let (file, memory) = (backing(mib, 1), ram(mib).unwrap());
        let size = mib << 20;
        for part in [(0, 0), (1, PAGE), (0, 100), (size, PAGE), ((3 << 30) - PAGE, 2 * PAGE), (!4095, PAGE)] {
            let refused = lay_over(&memory, &file, &[part], Backing::Copied);
            assert!(matches!(refused, Err(MemoryError::Unaligned { .. })), "{part:?}");
            copy_in_advance(&memory, &[part]);
        }
        lay_over(&memory, &file, &[(size - PAGE, PAGE)], Backing::Copied).unwrap();
    }

    #[test]
    fn segments_read_as_one_image_with_zeros_behind_it() {
        let mut a = vec![1u8; 8192];
        a[4096] = 7;
        let mut closure = Closure::reserve(12288).unwrap();
        closure.map(0, 0, &file(&a), 4096, 4096).unwrap();
        closure.map(1, 4096, &file(&[2u8; 8192]), 0, 8192).unwrap();
        assert_eq!(closure.len(), 2 << 20);
        let mut out = vec![0u8; 4098];
        assert!(closure.read(0, &mut out));
        assert_eq!((out[0], out[1], out[4095], out[4096], out[4097]), (7, 1, 1, 2, 2));
        assert!(closure.read(12287, &mut out[..2]));
        assert_eq!(out[..2], [2, 0]);
    }

    #[test]
    fn reads_outside_the_image_are_refused() {
        let closure = Closure::reserve(4096).unwrap();
        let mut out = [0u8; 2];
        assert!(!closure.read((2 << 20) - 1, &mut out));
        assert!(!closure.read(u64::MAX, &mut out));
        assert!(closure.read((2 << 20) - 2, &mut out));
    }

    #[test]
    fn a_segment_that_is_unaligned_or_past_its_file_is_refused() {
        let mut closure = Closure::reserve(8192).unwrap();
        let file = file(&[0u8; 4096]);
        for (at, offset, len) in [(1, 0, 4096), (0, 1, 4096), (0, 0, 4095), (0, 0, 0), (4096, 0, 8192)] {
            assert!(matches!(
                closure.map(3, at, &file, offset, len),
                Err(MemoryError::Unaligned { index: 3, .. })
            ));
        }
        assert!(matches!(closure.map(0, 0, &file, 4096, 4096), Err(MemoryError::PastEnd { .. })));
        assert!(matches!(closure.map(0, 0, &file, 0, 8192), Err(MemoryError::PastEnd { .. })));
    }

    #[test]
    fn a_closure_of_as_many_segments_as_are_allowed_is_mapped() {
        let pages: Vec<u8> = (0..3 * PAGE as usize).map(|i| (i / PAGE as usize) as u8 + 1).collect();
        let file = file(&pages);
        let mut closure = Closure::reserve(SEGMENTS_MAX as u64 * PAGE).unwrap();
        for index in 0..SEGMENTS_MAX {
            // Pages that do not follow each other, so that the kernel does not merge two of them into one mapping.
            let offset = (2 - index as u64 % 3) * PAGE;
            closure.map(index, index as u64 * PAGE, &file, offset, PAGE).unwrap();
        }
        let mut out = [0u8; 2];
        assert!(closure.read((SEGMENTS_MAX as u64 - 1) * PAGE - 1, &mut out));
        assert_eq!(out, [2, 1]);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        assert!(maps >= SEGMENTS_MAX, "{maps}");
    }

    #[test]
    fn oversized_closure_is_refused_before_it_is_reserved() {
        assert!(matches!(Closure::reserve(CLOSURE_MAX + 1), Err(MemoryError::TooLarge { .. })));
    }
}
