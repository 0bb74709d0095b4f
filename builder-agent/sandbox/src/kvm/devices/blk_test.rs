//! Reads of a disk: what is there, what is not, and what a hostile driver asks for.

use vm_memory::{Bytes, GuestAddress};

use super::super::mmio::register;
use super::super::testing::{Buffer, Driver, readable, writable};
use super::*;
use crate::kvm::memory::growing::START;
use crate::kvm::memory::tests::file;

fn device() -> Blk {
    let mut closure = Closure::reserve(4096).unwrap();
    closure.map(0, 0, &file(&[7; 4096]), 0, 4096).unwrap();
    Blk::new(Arc::new(closure))
}

const REQUEST: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const STATUS: u64 = 0xa_0000;

/// Serves a request of this kind with these buffers for its data. Gives the status, and the bytes that were written.
fn request(d: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    d.memory.write_obj(kind, GuestAddress(REQUEST)).unwrap();
    d.memory.write_obj(sector, GuestAddress(REQUEST + 8)).unwrap();
    d.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    let mut chain = vec![readable(REQUEST, 16)];
    chain.extend_from_slice(data);
    chain.push(writable(STATUS, 1));
    d.offer(0, &chain);
    d.kick(0);
    let used = d.used(0);
    assert_eq!(used.len(), 1);
    (d.memory.read_obj(GuestAddress(STATUS)).unwrap(), used[0].1)
}

fn bytes(d: &Driver, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    d.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// Offers a read of the first sector.
fn offer_read(d: &mut Driver, data: u64) {
    d.memory.write_slice(&[0; 16], GuestAddress(REQUEST)).unwrap();
    d.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    d.offer(0, &[readable(REQUEST, 16), writable(data, 512), writable(STATUS, 1)]);
}

fn sector(d: &Driver) -> [u8; 512] {
    let mut read = [0; 512];
    d.memory.read_slice(&mut read, GuestAddress(DATA)).unwrap();
    read
}

#[test]
fn a_block_request_is_over_before_the_driver_can_reset_the_device() {
    let mut d = Driver::new(Box::new(device()));
    d.start();
    offer_read(&mut d, DATA);
    assert_eq!(sector(&d), [0; 512]);
    d.kick(0);
    // The register access that began the request also ended it: no completion is left for a queue that is
    // gone.
    assert_eq!(d.used(0), [(0, 513)]);
    assert_eq!(sector(&d), [7; 512]);
    let interrupts = d.interrupt.get();
    d.memory.write_slice(&[0; 512], GuestAddress(DATA)).unwrap();
    offer_read(&mut d, DATA);
    d.set(register::STATUS, 0);
    d.kick(0);
    assert!(d.transport.watch().is_empty());
    assert_eq!((sector(&d), d.interrupt.get()), ([0; 512], interrupts));
}

#[test]
fn a_read_into_memory_that_is_none_says_so_and_changes_nothing() {
    let mut d = Driver::new(Box::new(device()));
    d.start();
    offer_read(&mut d, u64::MAX - 100);
    d.kick(0);
    assert_eq!(d.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), STATUS_IO_ERROR);
}

#[test]
fn a_growing_disk_has_its_capacity_from_the_start_and_its_bytes_when_they_are_added() {
    let (disk, mut grower) = Growing::reserve().unwrap();
    let mut d = Driver::new(Box::new(Blk::new(disk)));
    d.start();
    let capacity: Vec<_> = [0x100, 0x104].map(|at| d.get(at)).into();
    assert_eq!(capacity, [(CAPACITY / SECTOR) as u32, 0]);
    let (page, first) = ([writable(DATA, 4096)], START / SECTOR);
    assert_eq!(request(&mut d, REQUEST_IN, first, &page), (STATUS_IO_ERROR, 1));
    for (number, sector) in [(5, first), (6, first + 8)] {
        grower.map(0, &file(&[number; 4096]), (0, 4096)).unwrap();
        assert_eq!(
            request(&mut d, REQUEST_IN, sector, &page),
            (STATUS_IO_ERROR, 1),
            "not before it is shown"
        );
        grower.show();
        assert_eq!(request(&mut d, REQUEST_IN, sector, &page), (STATUS_OK, 4097));
        assert_eq!(bytes(&d, DATA, 4096), [number; 4096]);
    }
    // Over the border of two images.
    assert_eq!(request(&mut d, REQUEST_IN, first + 7, &[writable(DATA, 1024)]), (STATUS_OK, 1025));
    assert_eq!((bytes(&d, DATA, 512), bytes(&d, DATA + 512, 512)), (vec![5; 512], vec![6; 512]));
}

#[test]
fn a_read_of_a_growing_disk_ends_where_its_bytes_end() {
    let (disk, mut grower) = Growing::reserve().unwrap();
    grower.map(0, &file(&[5; 4096]), (0, 4096)).unwrap();
    grower.show();
    let mut d = Driver::new(Box::new(Blk::new(disk)));
    d.start();
    let (first, sectors) = (START / SECTOR, CAPACITY / SECTOR);
    let cases: [(u64, &[Buffer]); 9] = [
        (first + 8, &[writable(DATA, 512)]),
        (first + 7, &[writable(DATA, 1024)]),
        (first + 7, &[writable(DATA, 512), writable(DATA + 512, 512)]),
        (first, &[writable(DATA, 4097)]),
        (sectors - 1, &[writable(DATA, 512)]),
        (sectors, &[writable(DATA, 512)]),
        (u64::MAX / 512, &[writable(DATA, 1024)]),
        (u64::MAX / 512 + 1, &[writable(DATA, 512)]),
        (u64::MAX, &[writable(DATA, 512)]),
    ];
    for (sector, data) in cases {
        assert_eq!(request(&mut d, REQUEST_IN, sector, data), (STATUS_IO_ERROR, 1), "{sector}");
    }
    assert_eq!(request(&mut d, REQUEST_IN, first + 7, &[writable(DATA, 512)]), (STATUS_OK, 513));
}

#[test]
fn a_disk_is_written_by_nobody() {
    let mut d = Driver::new(Box::new(device()));
    d.start();
    // Write; discard; write zeros; erase.
    for kind in [1, 11, 13, 14] {
        let buffers = [readable(DATA, 512)];
        assert_eq!(request(&mut d, kind, 0, &buffers), (STATUS_UNSUPPORTED, 1));
    }
    assert_eq!(request(&mut d, REQUEST_IN, 0, &[readable(DATA, 512)]), (STATUS_IO_ERROR, 1));
    assert_eq!(request(&mut d, REQUEST_IN, 0, &[writable(DATA, 512)]), (STATUS_OK, 513));
    assert_eq!(bytes(&d, DATA, 512), [7; 512]);
}

#[test]
fn the_serial_tells_the_growing_disk_from_the_closure() {
    let disks: [(Blk, &[u8]); 2] =
        [(device(), b"closure"), (Blk::new(Growing::reserve().unwrap().0), b"growing-disk")];
    for (device, serial) in disks {
        let mut d = Driver::new(Box::new(device));
        d.start();
        d.memory.write_slice(&[0xee; 64], GuestAddress(DATA)).unwrap();
        assert_eq!(request(&mut d, REQUEST_GET_ID, 0, &[writable(DATA, 64)]), (STATUS_OK, 21));
        let mut expected = serial.to_vec();
        expected.resize(ID_BYTES, 0);
        assert_eq!(bytes(&d, DATA, ID_BYTES), expected);
        assert_eq!(bytes(&d, DATA + ID_BYTES as u64, 4), [0xee; 4]);
        // In pieces, without room, and where it cannot be written.
        let pieces = [writable(DATA + 100, 3), writable(DATA + 200, 17)];
        assert_eq!(request(&mut d, REQUEST_GET_ID, 0, &pieces), (STATUS_OK, 21));
        assert_eq!([bytes(&d, DATA + 100, 3), bytes(&d, DATA + 200, 17)].concat(), expected);
        assert_eq!(request(&mut d, REQUEST_GET_ID, 0, &[writable(DATA, 2)]), (STATUS_OK, 3));
        assert_eq!(request(&mut d, REQUEST_GET_ID, 0, &[]), (STATUS_OK, 1));
        assert_eq!(request(&mut d, REQUEST_GET_ID, 0, &[readable(DATA, 20)]), (STATUS_IO_ERROR, 1));
    }
}

#[test]
fn a_request_of_more_than_8_mib_reads_nothing() {
    let mut d = Driver::new(Box::new(Blk::new(Arc::new(Closure::reserve(16 << 20).unwrap()))));
    d.size = 64;
    d.start();
    // The same memory again and again.
    let part = 0x4_0000;
    let data = vec![writable(0xb_0000, part); (MAX_REQUEST / u64::from(part)) as usize];
    assert_eq!(request(&mut d, REQUEST_IN, 0, &data), (STATUS_OK, MAX_REQUEST as u32 + 1));
    let more = [&data[..], &[writable(DATA, 512)]].concat();
    assert_eq!(request(&mut d, REQUEST_IN, 0, &more), (STATUS_IO_ERROR, 1));
    assert_eq!(request(&mut d, REQUEST_IN, 0, &[writable(DATA, u32::MAX - 100)]), (STATUS_IO_ERROR, 1));
}

#[test]
fn a_queue_of_reads_leaves_turns_to_the_other_devices() {
    let mut d = Driver::new(Box::new(Blk::new(Arc::new(Closure::reserve(16 << 20).unwrap()))));
    d.start();
    d.memory.write_slice(&[0; 16], GuestAddress(REQUEST)).unwrap();
    for _ in 0..5 {
        // With the status byte it is half a turn and more.
        d.offer(0, &[readable(REQUEST, 16), writable(0x4_0000, TURN / 2), writable(STATUS, 1)]);
    }
    d.kick(0);
    assert_eq!((d.used(0).len(), d.transport.unfinished()), (2, Some(0)));
    d.transport.kick(0);
    assert_eq!((d.used(0).len(), d.transport.unfinished()), (2, Some(0)));
    d.transport.kick(0);
    assert_eq!((d.used(0).len(), d.transport.unfinished()), (1, None));
    // Nor does a device that was reset go on.
    for _ in 0..5 {
        d.offer(0, &[readable(REQUEST, 16), writable(0x4_0000, TURN / 2), writable(STATUS, 1)]);
    }
    d.kick(0);
    d.set(register::STATUS, 0);
    assert_eq!(d.transport.unfinished(), None);
}
