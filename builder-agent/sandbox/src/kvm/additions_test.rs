//! Images go from the agent's end of a disk to the guest's driver: real files, the real socket, the device's own queue.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::backend::{Image, Segment};
use crate::disk::Disk;
use crate::kvm::devices::blk::Blk;
use crate::kvm::devices::testing::{Driver, readable, writable};
use crate::kvm::handover::{DeviceKind, Shape};
use crate::kvm::jail::{self, seccomp};
use crate::kvm::memory::growing::{Growing, START};
use crate::kvm::memory::{PAGE, SEGMENTS_MAX};
use crate::process::memory_file;

/// A file whose page `i` has the bytes `first + i`.
fn file(first: u8, pages: u8) -> Arc<File> {
    let file = memory_file("test").unwrap();
    for page in 0..pages {
        file.write_all_at(&[first + page; PAGE as usize], u64::from(page) * PAGE).unwrap();
    }
    Arc::new(file)
}

fn segment(file: &Arc<File>, page: u64, pages: u64) -> Segment {
    Segment { file: file.clone(), offset: page * PAGE, len: pages * PAGE }
}

/// The agent's end, the VMM's thread, and the disk that the guest's driver has.
fn disk() -> (Disk, JoinHandle<()>, Driver) {
    let (agent, vmm) = UnixStream::pair().unwrap();
    let (bytes, grower) = Growing::reserve().unwrap();
    let additions = Additions::new(vmm, grower);
    let thread = std::thread::spawn(move || additions.run());
    let mut driver = Driver::new(Box::new(Blk::new(bytes)));
    driver.start();
    (Disk::new(agent, 0, None).unwrap(), thread, driver)
}

/// The page at this offset of the disk, or none if the device says that it cannot be read.
fn page(d: &mut Driver, at: u64) -> Option<[u8; PAGE as usize]> {
    let (request, data, status) = (0x8_0000, 0x9_0000, 0xa_0000);
    d.memory.write_slice(&[0; 8], GuestAddress(request)).unwrap();
    d.memory.write_obj(at / 512, GuestAddress(request + 8)).unwrap();
    d.offer(0, &[readable(request, 16), writable(data, PAGE as u32), writable(status, 1)]);
    d.kick(0);
    assert_eq!(d.used(0).len(), 1);
    let mut bytes = [0; PAGE as usize];
    d.memory.read_slice(&mut bytes, GuestAddress(data)).unwrap();
    (d.memory.read_obj::<u8>(GuestAddress(status)).unwrap() == 0).then_some(bytes)
}

#[test]
fn the_guest_reads_what_the_agent_has_added_and_nothing_else() {
    let (mut disk, _vmm, mut d) = disk();
    let (one, two) = (file(10, 4), file(20, 4));
    assert_eq!(page(&mut d, 0), Some([0; PAGE as usize]));
    assert_eq!(page(&mut d, START), None);
    let first = Image { segments: vec![segment(&one, 1, 2), segment(&two, 3, 1)] };
    assert_eq!(disk.add(&first).unwrap(), START);
    // More parts than one message has descriptors.
    let second = Image { segments: (0..300).map(|i| segment(&two, i % 4, 1)).collect() };
    assert_eq!(disk.add(&second).unwrap(), START + 3 * PAGE);
    let expected = [11, 12, 23].into_iter().chain((0..300).map(|i| 20 + i % 4));
    for (index, byte) in expected.enumerate() {
        assert_eq!(page(&mut d, START + index as u64 * PAGE), Some([byte as u8; PAGE as usize]), "{index}");
    }
    assert_eq!(page(&mut d, START + 303 * PAGE), None);
}

#[test]
fn an_image_that_cannot_be_mapped_is_refused_and_the_next_one_takes_its_place() {
    let (mut disk, _vmm, mut d) = disk();
    let whole = file(10, 4);
    assert_eq!(disk.add(&Image { segments: vec![segment(&whole, 0, 1)] }).unwrap(), START);
    // Its files in the middle and at the end of the second message are shorter than they should be.
    let mut segments: Vec<_> = (0..256).map(|_| segment(&whole, 1, 1)).collect();
    (segments[200], segments[255]) = (segment(&whole, 3, 2), segment(&whole, 9, 1));
    let why = disk.add(&Image { segments }).unwrap_err().to_string();
    assert!(
        why.contains("the VMM says: segment 200 (offset 12288, length 8192) ends after its file"),
        "{why}"
    );
    assert_eq!(page(&mut d, START + PAGE), None);
    assert_eq!(disk.add(&Image { segments: vec![segment(&whole, 2, 1)] }).unwrap(), START + PAGE);
    assert_eq!(page(&mut d, START + PAGE), Some([12; PAGE as usize]));
    assert_eq!(page(&mut d, START + 2 * PAGE), None);
}

#[test]
fn a_disk_without_an_agent_stays_as_it_is() {
    let (mut disk, vmm, mut d) = disk();
    disk.add(&Image { segments: vec![segment(&file(10, 1), 0, 1)] }).unwrap();
    drop(disk);
    vmm.join().unwrap();
    assert_eq!(page(&mut d, START), Some([10; PAGE as usize]));
    assert_eq!(page(&mut d, START + PAGE), None);

    // Nor does half an image appear.
    let (agent, ours) = UnixStream::pair().unwrap();
    let (bytes, grower) = Growing::reserve().unwrap();
    handover::send_json(&agent, &Addition { segments: vec![(0, PAGE); 2] }).unwrap();
    let file = file(10, 1);
    handover::send_batch(&agent, &[std::os::fd::AsFd::as_fd(&*file)]).unwrap();
    drop(agent);
    Additions::new(ours, grower).run();
    assert_eq!(bytes.shown(), START);
}

#[test]
fn as_many_parts_as_a_home_may_have_are_added_and_no_file_stays_open() {
    let (mut disk, _vmm, mut d) = disk();
    let file = file(10, 3);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    // Pages that do not follow each other, so that the kernel does not merge two of them into one mapping.
    let image = Image { segments: (0..SEGMENTS_MAX as u64).map(|i| segment(&file, 2 - i % 3, 1)).collect() };
    let began = std::time::Instant::now();
    assert_eq!(disk.add(&image).unwrap(), START);
    eprintln!("{SEGMENTS_MAX} parts in {:?}", began.elapsed());
    assert_eq!(open(), before);
    let last = START + (SEGMENTS_MAX as u64 - 1) * PAGE;
    assert_eq!(page(&mut d, last), Some([10; PAGE as usize]));
    assert_eq!(page(&mut d, last - PAGE), Some([11; PAGE as usize]));
    let why = disk.add(&Image { segments: vec![segment(&file, 0, 1)] }).unwrap_err().to_string();
    assert!(why.contains("60000 is the most"), "{why}");
}

/// Receives two images in a forked process that has gone to jail, with the filter of a VMM of this shape, and reads a byte of
/// each page. Gives what the agent's side says, and the bytes, or the signal that ended the process.
fn in_jail(devices: Vec<DeviceKind>) -> (Vec<bool>, Result<Vec<u8>, i32>) {
    let shape = Shape { vcpus: 1, memory_mib: 128, devices };
    let (agent, vmm) = UnixStream::pair().unwrap();
    let (mut from, mut to) = std::io::pipe().unwrap();
    // SAFETY: under nextest a test has a process of its own, whose other thread only waits for this one: no lock is held
    // that the child would miss. The child ends with _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        drop((agent, from));
        let (bytes, grower) = Growing::reserve().unwrap();
        let mut additions = Additions::new(vmm, grower);
        let filter = seccomp::filter(&shape).unwrap();
        let uid = jail::is_root().then_some(0x7000_0002);
        jail::enter(uid, &mut jail::Report::default()).unwrap();
        seccomp::install(&filter).unwrap();
        for _ in 0..2 {
            additions.serve().unwrap();
        }
        let pages = (bytes.shown() - START) / PAGE;
        let mut firsts = vec![0; pages as usize];
        for (page, first) in firsts.iter_mut().enumerate() {
            assert!(bytes.read(START + page as u64 * PAGE, std::slice::from_mut(first)));
        }
        let _ = to.write_all(&firsts);
        // SAFETY: a number, and it does not return.
        unsafe { libc::_exit(0) };
    }
    drop((vmm, to));
    let mut disk = Disk::new(agent, 0, None).unwrap();
    let file = file(1, 4);
    // More files than a VMM may have open at once.
    let large = Image { segments: (0..2000).map(|i| segment(&file, i % 4, 1)).collect() };
    let small = Image { segments: vec![segment(&file, 3, 1)] };
    let added = [large, small].iter().map(|image| disk.add(image).is_ok()).collect();
    let mut read = Vec::new();
    from.read_to_end(&mut read).unwrap();
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    (added, if libc::WIFSIGNALED(status) { Err(libc::WTERMSIG(status)) } else { Ok(read) })
}

#[test]
fn a_jailed_vmm_of_a_home_maps_images_and_one_of_a_build_is_killed_for_it() {
    let (added, read) = in_jail(vec![DeviceKind::Disk]);
    let expected = (0..2000).map(|i| 1 + i as u8 % 4).chain([4]).collect();
    assert_eq!((added, read), (vec![true; 2], Ok(expected)));
    let (added, read) = in_jail(vec![DeviceKind::Vsock { streams: 1 }, DeviceKind::Rng, DeviceKind::Net]);
    assert_eq!((added, read), (vec![false; 2], Err(libc::SIGSYS)));
}
