//! Which pages of a template its copies write to, as a first copy has shown.
//!
//! Every page that a guest writes to for the first time is an exit, and a copy of the page. All copies begin in the same way, so
//! most of these pages are the same in each of them: a VMM copies them all at once, before its guest runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::kvm::memory::PAGE;

/// Bits of an entry of /proc/PID/pagemap. Linux: Documentation/admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
/// A page of the file, not of the process alone.
const OF_FILE: u64 = 1 << 61;

/// The pages that are the process' own, of those parts of the file, as offsets and lengths. `ram`: addresses of the process, and
/// lengths, of the ranges that show the file one behind the other.
pub fn pages(pid: u32, ram: &[(u64, u64)], parts: &[(u64, u64)]) -> io::Result<Vec<(u64, u64)>> {
    let map = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut pages: Vec<(u64, u64)> = Vec::new();
    for &(offset, len) in parts {
        let address = address(ram, offset).ok_or_else(|| io::Error::other("a part outside of memory"))?;
        let mut entries = vec![0; (len / PAGE) as usize * 8];
        map.read_exact_at(&mut entries, address / PAGE * 8)?;
        for (index, entry) in (0..).zip(entries.chunks_exact(8)) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("chunks of 8 bytes"));
            if entry & PRESENT == 0 || entry & OF_FILE != 0 {
                continue;
            }
            let at = offset + index * PAGE;
            match pages.last_mut() {
                Some((start, len)) if *start + *len == at => *len += PAGE,
                _ => pages.push((at, PAGE)),
            }
        }
    }
    Ok(pages)
}

/// Where the byte at this offset of the file is.
fn address(ram: &[(u64, u64)], offset: u64) -> Option<u64> {
    let mut before = 0;
    for (address, len) in ram {
        if offset < before + len {
            return Some(address + (offset - before));
        }
        before += len;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::mm::{MapFlags, ProtFlags};

    use super::*;

    #[test]
    fn pages_that_a_process_has_written_to_are_told_from_those_it_has_read() {
        let file = crate::kvm::memory::tests::file(&[7; 8 * PAGE as usize]);
        let mut ram = Vec::new();
        for half in [0, 4 * PAGE] {
            let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    4 * PAGE as usize,
                    flags.0,
                    flags.1,
                    file.as_fd(),
                    half,
                )
            };
            ram.push((at.unwrap() as u64, 4 * PAGE));
        }
        let touch = |page: usize, write: bool| {
            let at = (ram[page / 4].0 as usize + page % 4 * PAGE as usize) as *mut u8;
            // SAFETY: inside one of the two mappings above, which stay.
            unsafe {
                assert_eq!(at.read_volatile(), 7);
                if write {
                    at.write_volatile(8);
                }
            }
        };
        (0..8).for_each(|page| touch(page, [1, 2, 3, 4, 6].contains(&page)));
        let pages_of = |parts: &[(u64, u64)]| pages(std::process::id(), &ram, parts).unwrap();
        let all = pages_of(&[(0, 4 * PAGE), (4 * PAGE, 4 * PAGE)]);
        assert_eq!(all, [(PAGE, 4 * PAGE), (6 * PAGE, PAGE)]);
        assert_eq!(pages_of(&[(2 * PAGE, PAGE)]), [(2 * PAGE, PAGE)]);
        assert!(pages(std::process::id(), &ram, &[(8 * PAGE, PAGE)]).is_err());
    }
}
