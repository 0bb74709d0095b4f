//! virtio-pmem (virtio 1.2, 5.19): shows the guest the address of the closure. Reads then need no device.
//!
//! The memory itself is a read-only KVM slot (`memory`). The queue carries flush requests, and there is nothing
//! to flush: each is answered "done".

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::restore_error::RestoreError;
use super::state::{self, DeviceState};
use super::{Device, Used};

const KIND: u32 = 27;
const QUEUE_SIZE: u16 = 16;
const STATUS_OK: u32 = 0;

pub struct Pmem {
    start: u64,
    len: u64,
    /// Guest address and length of the region, little-endian.
    config: [u8; 16],
}

impl Pmem {
    pub fn new(start: u64, len: u64) -> Pmem {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&start.to_le_bytes());
        config[8..].copy_from_slice(&len.to_le_bytes());
        Pmem { start, len, config }
    }
}

impl Device for Pmem {
    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn kicked(&mut self, _index: usize, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        let mut used = Vec::with_capacity(QUEUE_SIZE.into());
        for chain in queues[0].iter(memory)? {
            let head = chain.head_index();
            // The answer goes to the first writable buffer that is large enough; the contents of the request
            // do not matter.
            let answer = chain.writable().find(|d| d.len() >= 4);
            let written = answer.is_some_and(|d| memory.write_obj(STATUS_OK.to_le(), d.addr()).is_ok());
            used.push((head, if written { 4 } else { 0 }));
        }
        for (head, len) in &used {
            queues[0].add_used(memory, *head, *len)?;
        }
        Ok(!used.is_empty())
    }

    fn save(&self) -> DeviceState {
        DeviceState::Pmem { start: self.start, len: self.len }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        state::same("pmem", state, self.save())
    }
}
