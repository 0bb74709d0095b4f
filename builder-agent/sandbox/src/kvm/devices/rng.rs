//! virtio-rng (virtio 1.2, 5.4): random bytes from the host's kernel.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::restore_error::RestoreError;
use super::state::{self, DeviceState};
use super::{Device, Used};

const KIND: u32 = 4;
const QUEUE_SIZE: u16 = 16;
/// Most random bytes for one request. Linux asks for 64 at a time; more only costs the host time.
const MAX_REQUEST: usize = 4096;

#[derive(Default)]
pub struct Rng;

impl Device for Rng {
    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn kicked(&mut self, _index: usize, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        let mut used = Vec::with_capacity(QUEUE_SIZE.into());
        let mut random = [0u8; MAX_REQUEST];
        for chain in queues[0].iter(memory)? {
            let head = chain.head_index();
            let mut given = 0;
            for descriptor in chain.writable() {
                let want = (descriptor.len() as usize).min(MAX_REQUEST - given);
                let bytes = &mut random[..want];
                if want == 0
                    || rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()) != Ok(want)
                    || memory.write_slice(bytes, descriptor.addr()).is_err()
                {
                    break;
                }
                given += want;
            }
            used.push((head, given as u32));
        }
        for (head, len) in &used {
            queues[0].add_used(memory, *head, *len)?;
        }
        Ok(!used.is_empty())
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        state::same("rng", state, self.save())
    }
}
