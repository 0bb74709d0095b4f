//! Parts of a block device as devices of their own: partitions (linux/blkpg.h), of which a disk has at most 255, and loop
//! devices (linux/loop.h), of which there is no such limit, but which need a driver and a copy.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::cvt;

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: i32 = 1;
const BLKPG_DEL_PARTITION: i32 = 2;

#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

#[repr(C)]
struct PartitionRequest {
    operation: i32,
    flags: i32,
    length: i32,
    partition: *mut Partition,
}

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// struct loop_config, with the struct loop_info64 in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Partition>() == 152 && size_of::<LoopConfig>() == 304);

/// Makes `len` bytes of a disk from `offset` on its partition `number`.
pub fn add_partition(disk: &File, number: u32, offset: u64, len: u64) -> io::Result<()> {
    let [start, length] = [offset, len].map(|bytes| i64::try_from(bytes).map_err(io::Error::other));
    change_partition(disk, BLKPG_ADD_PARTITION, number, start?, length?)
}

/// Fails while somebody uses the partition.
pub fn remove_partition(disk: &File, number: u32) -> io::Result<()> {
    change_partition(disk, BLKPG_DEL_PARTITION, number, 0, 0)
}

fn change_partition(disk: &File, operation: i32, number: u32, start: i64, length: i64) -> io::Result<()> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    let mut partition = Partition { start, length, number, device_name: [0; 64], volume_name: [0; 64] };
    let length = size_of::<Partition>() as i32;
    let request = PartitionRequest { operation, flags: 0, length, partition: &raw mut partition };
    // SAFETY: BLKPG reads one request, and the partition that it points to; both have the kernel's layout, which the
    // constant above checks, and live until the call returns.
    cvt(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const request) }).map(drop)
}

/// The number of a loop device that nobody uses. `control`: /dev/loop-control.
pub fn free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: no pointers.
    let number = cvt(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) })?;
    // `cvt` lets no negative number pass.
    Ok(number as u32)
}

/// Makes a loop device show `len` bytes of a disk from `offset` on, until nobody has it open or mounted any more.
pub fn configure_loop_device(device: &File, disk: &File, offset: u64, len: u64) -> io::Result<()> {
    let config = LoopConfig {
        // A descriptor that is open is not negative.
        fd: disk.as_raw_fd() as u32,
        block_size: 0,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset,
        size_limit: len,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one configuration, which has the kernel's layout and lives until the call returns.
    cvt(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) }).map(drop)
}
