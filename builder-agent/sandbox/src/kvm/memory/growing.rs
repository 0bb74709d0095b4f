//! The bytes of a growing disk: images that are mapped one behind the other into a reserved range while the VM runs.
//!
//! Two halves. The device has [`Growing`] and reads below the mark, which only rises. One thread has the only [`Grower`],
//! maps above the mark, and raises it when an image is complete. So no byte that can be read is ever mapped anew, and nobody
//! waits for anybody.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::ProtFlags;

use super::MemoryError;
use super::range::Range;

/// What the guest believes to be the size of the disk. Addresses are all that it costs.
pub const CAPACITY: u64 = 1 << 40;
/// Where the first image begins. Before it lie zeros, in which the guest's kernel looks for a partition table when it finds the
/// disk: without them it would print some errors at each start.
pub const START: u64 = 1 << 20;

/// What can be read.
pub struct Growing {
    range: Range,
    /// Bytes from the start that are mapped, and stay so.
    mark: AtomicU64,
}

impl Growing {
    /// Reserves the addresses of a disk, on which no image is yet.
    pub fn reserve() -> Result<(Arc<Growing>, Grower), MemoryError> {
        let len = NonZeroUsize::new(CAPACITY as usize).expect("a constant");
        let range = Range::reserve("a disk that grows", len, ProtFlags::empty())?;
        // SAFETY: nobody has the range yet.
        unsafe { range.clear(0, START, ProtFlags::READ)? };
        let disk = Arc::new(Growing { range, mark: AtomicU64::new(START) });
        Ok((disk.clone(), Grower { disk, end: START }))
    }

    /// Number of bytes that can be read.
    pub fn shown(&self) -> u64 {
        // With `Grower::show`: who sees the mark sees the mappings below it.
        self.mark.load(Ordering::Acquire)
    }

    /// Copies `out.len()` bytes at `offset`; false, with nothing copied, if they are not all there.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        // SAFETY: below the mark everything is mapped, and the grower changes nothing there.
        unsafe { self.range.copy(offset, self.shown(), out) }
    }

    /// Address and length of the whole range.
    pub fn addresses(&self) -> (u64, u64) {
        self.range.addresses()
    }
}

/// Puts images on the disk. There is one for each disk.
pub struct Grower {
    disk: Arc<Growing>,
    /// Where the next segment goes. Between the mark and here lies what is not shown yet.
    end: u64,
}

impl Grower {
    /// Maps a segment behind those before it. The file may be closed afterwards. The guest does not see it yet.
    pub fn map(&mut self, index: usize, file: &File, segment: (u64, u64)) -> Result<(), MemoryError> {
        // SAFETY: it lies above the mark, where nobody reads, and `self` is the only one that maps.
        unsafe { self.disk.range.map(index, self.end, CAPACITY, file, segment)? };
        self.end += segment.1;
        Ok(())
    }

    /// From now on the guest can read what was mapped.
    pub fn show(&mut self) {
        self.disk.mark.store(self.end, Ordering::Release);
    }

    /// Takes away what was mapped since the last `show`.
    pub fn abandon(&mut self) {
        let mark = self.disk.shown();
        // If the kernel refuses, the pages stay out of reach above the mark, and the next image replaces them.
        // SAFETY: as in `map`.
        let _ = unsafe { self.disk.range.clear(mark, self.end, ProtFlags::empty()) };
        self.end = mark;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::super::{PAGE, page_tables};
    use super::*;

    #[test]
    fn images_are_read_one_behind_the_other_and_nothing_before_it_is_complete() {
        let (disk, mut grower) = Growing::reserve().unwrap();
        let mut byte = [9];
        assert!(!disk.read(START, &mut byte));
        grower.map(0, &file(&[1; 8192]), (4096, 4096)).unwrap();
        grower.map(1, &file(&[2; 4096]), (0, 4096)).unwrap();
        assert_eq!((disk.shown(), disk.read(START, &mut byte), byte), (START, false, [9]));
        grower.show();
        let mut out = [0; 8192];
        assert!(disk.read(START, &mut out));
        assert_eq!((out[0], out[4095], out[4096], out[8191]), (1, 1, 2, 2));
        grower.map(0, &file(&[3; 100]), (0, 4096)).unwrap();
        assert!(!disk.read(START + 8192, &mut byte));
        grower.show();
        assert!(disk.read(START + 8191, &mut out[..2]));
        assert_eq!(out[..2], [2, 3]);
        // The rest of a file's last page.
        assert!(disk.read(START + 8192 + 100, &mut byte) && byte == [0]);
    }

    #[test]
    fn before_the_first_image_lie_zeros_from_the_start() {
        let (disk, mut grower) = Growing::reserve().unwrap();
        for _ in 0..2 {
            let mut out = vec![9; START as usize];
            assert!(disk.read(0, &mut out) && out.iter().all(|byte| *byte == 0));
            grower.map(0, &file(&[1; 4096]), (0, 4096)).unwrap();
            grower.show();
        }
        grower.abandon();
        assert!(disk.read(START - 1, &mut [9]));
    }

    #[test]
    fn a_read_that_begins_or_ends_beyond_the_last_image_copies_nothing() {
        let (disk, mut grower) = Growing::reserve().unwrap();
        grower.map(0, &file(&[1; 4096]), (0, 4096)).unwrap();
        grower.show();
        let (mut out, end) = ([9; 2], START + 4096);
        for at in [end - 1, end, end + 4096, CAPACITY - 2, CAPACITY, u64::MAX - 1, u64::MAX] {
            assert!(!disk.read(at, &mut out), "{at}");
            assert_eq!(out, [9; 2]);
        }
        assert!(disk.read(end - 2, &mut out) && out == [1; 2]);
    }

    #[test]
    fn an_image_that_is_abandoned_leaves_its_place_to_the_next() {
        let (disk, mut grower) = Growing::reserve().unwrap();
        grower.map(0, &file(&[1; 4096]), (0, 4096)).unwrap();
        grower.show();
        grower.map(0, &file(&[2; 8192]), (0, 8192)).unwrap();
        for (segment, is_past) in
            [((0, 8192), true), ((8192, 4096), true), ((1, 4096), false), ((0, 0), false)]
        {
            let error = grower.map(1, &file(&[3; 4096]), segment).unwrap_err();
            assert_eq!(matches!(error, MemoryError::PastEnd { .. }), is_past, "{error}");
        }
        grower.abandon();
        grower.show();
        assert_eq!(disk.shown(), START + 4096);
        grower.map(0, &file(&[4; 4096]), (0, 4096)).unwrap();
        grower.show();
        let mut out = [0; 8192];
        assert!(disk.read(START, &mut out));
        assert_eq!((out[4095], out[4096]), (1, 4));
        assert!(!disk.read(START + 8192, &mut out[..1]));
    }

    #[test]
    fn the_end_of_the_addresses_is_the_end_of_the_disk() {
        let (disk, mut grower) = Growing::reserve().unwrap();
        grower.end = CAPACITY - PAGE;
        assert!(grower.map(0, &file(&[1; 8192]), (0, 8192)).is_err());
        grower.map(0, &file(&[1; 8192]), (0, 4096)).unwrap();
        assert!(grower.map(1, &file(&[1; 8192]), (0, 4096)).is_err());
        assert_eq!(disk.addresses().1, CAPACITY);
    }

    /// Bytes of page tables of this process, from the kernel.
    fn page_tables_of_this_process() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
    }

    /// With a limit that grew less, the kernel would end the home of somebody who reads all that is there.
    #[test]
    fn a_guest_that_reads_everything_causes_no_more_page_tables_than_its_limit_was_raised_by() {
        const PART: u64 = 1 << 30;
        let sparse = file(&[]);
        sparse.set_len(PART).unwrap();
        let (disk, mut grower) = Growing::reserve().unwrap();
        // Begins in the middle of a table.
        grower.map(0, &sparse, (0, PAGE)).unwrap();
        for index in 1..=4 {
            grower.map(index, &sparse, (0, PART)).unwrap();
        }
        grower.show();
        let before = page_tables_of_this_process();
        // One page for each table is enough to have the table.
        for at in (0..disk.shown()).step_by(2 << 20).chain([disk.shown() - 1]) {
            let mut byte = [9];
            assert!(disk.read(at, &mut byte));
            assert_eq!(std::hint::black_box(byte), [0]);
        }
        let caused = page_tables_of_this_process() - before;
        let raised = page_tables(disk.shown());
        assert!(caused >= 4 * PART / 512 && caused <= raised, "{caused} {raised}");
        // Nor are there much fewer than that.
        assert!(raised < caused + (256 << 10), "{caused} {raised}");
        assert!(page_tables(CAPACITY) < CAPACITY / 512 + CAPACITY / 512 / 256);
    }
}
