//! virtio-blk (virtio 1.2, 5.2), read-only: the closure for guests that cannot use persistent memory.
//!
//! Reads are copies out of the same mapping that virtio-pmem would show.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::restore_error::RestoreError;
use super::state::{self, DeviceState};
use super::{Device, Used};
use crate::kvm::memory::Closure;

const KIND: u32 = 2;
const QUEUE_SIZE: u16 = 128;
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;
const SECTOR: u64 = 512;

const REQUEST_IN: u32 = 0;
const REQUEST_FLUSH: u32 = 4;
const HEADER: u32 = 16;

const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

/// Most bytes one request may read. Linux asks for at most 128 descriptors of up to 64 KiB. A chain of 4 GiB
/// descriptors would keep the event thread busy for a long time (it serves this guest only).
const MAX_REQUEST: u64 = 8 << 20;
/// Copies go through a buffer of this size.
const BOUNCE: usize = 64 << 10;

pub struct Blk {
    closure: Arc<Closure>,
    /// Capacity in sectors (8 bytes), largest segment (4, not offered), most segments (4).
    config: [u8; 16],
    bounce: Vec<u8>,
}

impl Blk {
    pub fn new(closure: Arc<Closure>) -> Blk {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(closure.len() / SECTOR).to_le_bytes());
        // A chain is a header, the segments, and a status byte.
        config[12..].copy_from_slice(&(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        Blk { closure, config, bounce: vec![0; BOUNCE] }
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
        let mut written = 0;
        let status = match kind {
            REQUEST_IN => {
                let mut offset = sector.checked_mul(SECTOR);
                let total: u64 = data.iter().map(|d| u64::from(d.len())).sum();
                let mut ok = total <= MAX_REQUEST && data.iter().all(|d| d.is_write_only());
                for descriptor in &data {
                    if !ok {
                        break;
                    }
                    ok = offset.is_some_and(|at| self.copy(at, descriptor.addr(), descriptor.len(), memory));
                    offset = offset.and_then(|at| at.checked_add(descriptor.len().into()));
                    // Cannot overflow: all together are at most `MAX_REQUEST`.
                    written += descriptor.len();
                }
                if ok { STATUS_OK } else { STATUS_IO_ERROR }
            }
            REQUEST_FLUSH => STATUS_OK,
            _ => STATUS_UNSUPPORTED,
        };
        if status != STATUS_OK {
            written = 0;
        }
        if memory.write_obj(status, status_at.addr()).is_err() {
            return 0;
        }
        written + 1
    }

    fn copy(&mut self, at: u64, to: vm_memory::GuestAddress, len: u32, memory: &GuestMemoryMmap) -> bool {
        let mut done = 0u64;
        while done < len.into() {
            let n = (u64::from(len) - done).min(BOUNCE as u64);
            let bounce = &mut self.bounce[..n as usize];
            let place = to.0.checked_add(done).map(vm_memory::GuestAddress);
            let source = at.checked_add(done);
            let copied = source.is_some_and(|s| self.closure.read(s, bounce))
                && place.is_some_and(|p| memory.write_slice(bounce, p).is_ok());
            if !copied {
                return false;
            }
            done += n;
        }
        true
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
        let chains: Vec<_> = queues[0].iter(memory)?.collect();
        let any = !chains.is_empty();
        for chain in chains {
            let head = chain.head_index();
            let len = self.serve(chain, memory);
            queues[0].add_used(memory, head, len)?;
        }
        Ok(any)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk { bytes: self.closure.len() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        // A request ends before `kicked` returns, so none is ever in progress.
        state::same("blk", state, self.save())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress};

    use super::super::mmio::register;
    use super::super::testing::{Driver, readable, writable};
    use super::*;

    fn device() -> Blk {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(&[7; 4096]).unwrap();
        let mut closure = Closure::reserve(4096).unwrap();
        closure.map(0, 0, &file, 0, 4096).unwrap();
        Blk::new(Arc::new(closure))
    }

    const REQUEST: u64 = 0x8_0000;
    const DATA: u64 = 0x9_0000;
    const STATUS: u64 = 0xa_0000;

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
}
