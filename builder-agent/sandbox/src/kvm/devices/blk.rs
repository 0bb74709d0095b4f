//! virtio-blk (virtio 1.2, 5.2), read-only: the closure for guests that cannot use persistent memory, and the disk of a home,
//! which grows.
//!
//! Reads are copies out of files that are mapped in this process; for the closure out of the same mapping that virtio-pmem
//! would show. The guest tells the two apart by their serials.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::restore_error::RestoreError;
use super::state::{self, DeviceState};
use super::{Device, Used};
use crate::kvm::memory::Closure;
use crate::kvm::memory::growing::{CAPACITY, Growing};

const KIND: u32 = 2;
const QUEUE_SIZE: u16 = 128;
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;
const SECTOR: u64 = 512;

const REQUEST_IN: u32 = 0;
const REQUEST_FLUSH: u32 = 4;
const REQUEST_GET_ID: u32 = 8;
/// Virtio 1.2, 5.2.6: bytes of the answer to GET_ID, with zeros behind a shorter name.
const ID_BYTES: usize = 20;
const HEADER: u32 = 16;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// Most bytes one request may read. Linux asks for at most 128 descriptors of up to 64 KiB. A chain of 4 GiB
/// descriptors would keep the event thread busy for a long time (it serves this guest only).
const MAX_REQUEST: u64 = 8 << 20;
/// Bytes after which the other devices have their turn: a read of a file that the host has on its disk alone takes a while,
/// and keystrokes must not wait for a whole queue of them.
const TURN: u32 = 1 << 20;
/// Copies go through a buffer of this size.
const BOUNCE: usize = 64 << 10;

/// The bytes of a disk.
pub trait Source: Send + Sync {
    /// Tells the guest which disk it is. At most 20 bytes.
    fn serial(&self) -> &'static str;

    /// What the guest believes to be its size, in bytes.
    fn capacity(&self) -> u64;

    /// Copies `out.len()` bytes at `offset`; false if they are not all there.
    fn read(&self, offset: u64, out: &mut [u8]) -> bool;

    fn save(&self) -> DeviceState;
}

impl Source for Closure {
    fn serial(&self) -> &'static str {
        "closure"
    }

    fn capacity(&self) -> u64 {
        self.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        Closure::read(self, offset, out)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk { bytes: self.len() }
    }
}

impl Source for Growing {
    fn serial(&self) -> &'static str {
        "growing-disk"
    }

    fn capacity(&self) -> u64 {
        CAPACITY
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        Growing::read(self, offset, out)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Disk { bytes: self.shown() }
    }
}

pub struct Blk {
    source: Arc<dyn Source>,
    /// Capacity in sectors (8 bytes), largest segment (4, not offered), most segments (4).
    config: [u8; 16],
    bounce: Vec<u8>,
    /// The queue may have more requests, which no notification will announce again.
    has_more: bool,
}

impl Blk {
    pub fn new(source: Arc<dyn Source>) -> Blk {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(source.capacity() / SECTOR).to_le_bytes());
        // A chain is a header, the segments, and a status byte.
        config[12..].copy_from_slice(&(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        Blk { source, config, bounce: vec![0; BOUNCE], has_more: false }
    }

    /// Serves one request; gives the number of bytes written to the guest.
    fn serve(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) -> u32 {
        let mut chain = chain;
        let Some(header) = chain.next().filter(|d| !d.is_write_only() && d.len() >= HEADER) else { return 0 };
        // Copy the header once, and use only the copy.
        let mut bytes = [0u8; HEADER as usize];
        if memory.read_slice(&mut bytes, header.addr()).is_err() {
            return 0;
        }
        let kind = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(bytes[8..].try_into().expect("eight bytes"));
        // The last writable descriptor holds the status byte; those before it the data.
        let mut data: Vec<_> = chain.collect();
        let Some(status_at) = data.pop().filter(|d| d.is_write_only() && d.len() >= 1) else { return 0 };
        let done = match kind {
            REQUEST_IN => self.read(sector, &data, memory).ok_or(STATUS_IO_ERROR),
            REQUEST_FLUSH => Ok(0),
            REQUEST_GET_ID => self.identify(&data, memory).ok_or(STATUS_IO_ERROR),
            _ => Err(STATUS_UNSUPPORTED),
        };
        let (written, status) = done.map_or_else(|status| (0, status), |written| (written, STATUS_OK));
        if memory.write_obj(status, status_at.addr()).is_err() {
            return 0;
        }
        written + 1
    }

    /// Fills the buffers with the disk's bytes from this sector on, and gives their number. None if there is one that cannot
    /// be read or written.
    fn read(&mut self, sector: u64, data: &[Descriptor], memory: &GuestMemoryMmap) -> Option<u32> {
        let total: u64 = data.iter().map(|d| u64::from(d.len())).sum();
        if total > MAX_REQUEST || !data.iter().all(Descriptor::is_write_only) {
            return None;
        }
        let mut at = sector.checked_mul(SECTOR)?;
        for descriptor in data {
            self.copy(at, descriptor.addr(), descriptor.len(), memory)?;
            at = at.checked_add(descriptor.len().into())?;
        }
        u32::try_from(total).ok()
    }

    fn copy(&mut self, at: u64, to: GuestAddress, len: u32, memory: &GuestMemoryMmap) -> Option<()> {
        let mut done = 0u64;
        while done < len.into() {
            let n = (u64::from(len) - done).min(BOUNCE as u64);
            let bounce = &mut self.bounce[..n as usize];
            let place = GuestAddress(to.0.checked_add(done)?);
            if !self.source.read(at.checked_add(done)?, bounce) {
                return None;
            }
            memory.write_slice(bounce, place).ok()?;
            done += n;
        }
        Some(())
    }

    /// Writes the serial into the buffers, as far as there is room, and gives the number of bytes.
    fn identify(&self, data: &[Descriptor], memory: &GuestMemoryMmap) -> Option<u32> {
        let mut id = [0; ID_BYTES];
        let serial = self.source.serial().as_bytes();
        id[..serial.len()].copy_from_slice(serial);
        let mut left = &id[..];
        for descriptor in data {
            if !descriptor.is_write_only() {
                return None;
            }
            let (now, later) = left.split_at(left.len().min(descriptor.len() as usize));
            memory.write_slice(now, descriptor.addr()).ok()?;
            left = later;
        }
        Some((ID_BYTES - left.len()) as u32)
    }
}

impl Device for Blk {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        FEATURE_SEG_MAX | FEATURE_READ_ONLY | FEATURE_FLUSH
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn kicked(&mut self, _index: usize, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        self.has_more = false;
        // A queue full of requests is a turn, too, however little they read.
        let (mut served, mut bytes) = (0, 0u32);
        while let Some(chain) = queues[0].iter(memory)?.next() {
            let head = chain.head_index();
            let len = self.serve(chain, memory);
            queues[0].add_used(memory, head, len)?;
            (served, bytes) = (served + 1, bytes.saturating_add(len));
            if bytes >= TURN || served == QUEUE_SIZE {
                self.has_more = true;
                break;
            }
        }
        Ok(served > 0)
    }

    fn unfinished(&self) -> Option<usize> {
        self.has_more.then_some(0)
    }

    fn reset(&mut self) {
        self.has_more = false;
    }

    fn save(&self) -> DeviceState {
        self.source.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        // A request ends before `kicked` returns, so none is ever in progress.
        state::same("blk", state, self.save())
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod tests;
