//! virtio-vsock (virtio 1.2, 5.10): carries one byte stream between the guest and the agent's socket.
//!
//! This file moves packets between the queues and [`Connection`](connection::Connection), which interprets
//! them. Payloads are copied once out of guest memory and once into it.
//! Not virtio-vsock's `VsockPacket`: it needs a payload in one descriptor, and Linux sends large ones in
//! several.

pub mod connection;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::restore_error::RestoreError;
use super::state::DeviceState;
use super::{Device, Used};
use connection::{Connection, HEADER, Hangup, Header, MAX_PAYLOAD};

const KIND: u32 = 19;
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 128;
/// The guest's address; the host is 2 (VMADDR_CID_HOST).
pub const GUEST_CID: u64 = 3;

/// `S` is the agent's socket, non-blocking.
pub struct Vsock<S> {
    connection: Connection<S>,
    config: [u8; 8],
    payload: Vec<u8>,
}

impl<S: Read + Write + AsRawFd + Send + Hangup> Vsock<S> {
    /// Connects the guest's connections to the host's port `port` with `stream`. The guest may connect once.
    pub fn new(stream: S, port: u32) -> Vsock<S> {
        Vsock {
            connection: Connection::new(stream, GUEST_CID, port),
            config: GUEST_CID.to_le_bytes(),
            payload: vec![0; MAX_PAYLOAD as usize],
        }
    }

    /// Moves all packets that can move, in both directions.
    fn pump(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        let mut used = false;
        loop {
            self.connection.flush();
            // Receiving first: an answer must have left before the packets that cause the next one are taken.
            let moved = self.give_guest_packets(&mut queues[RX], memory)?
                | self.take_guest_packets(&mut queues[TX], memory)?;
            if !moved {
                return Ok(used);
            }
            used = true;
        }
    }

    /// Takes the guest's packets. Stops when the limit of unsent answers is reached: the guest must offer buffers first.
    fn take_guest_packets(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Used {
        let mut moved = false;
        // One packet at a time, so that after a stop the others are still in the queue.
        while self.connection.can_take() {
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            match self.read_packet(chain, memory) {
                Some((header, len)) => self.connection.from_guest(header, &self.payload[..len]),
                // Without this packet the stream would have a gap.
                None => self.connection.reset(),
            }
            queue.add_used(memory, head, 0)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Gives the guest answers and data, as long as it has buffers for them.
    fn give_guest_packets(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Used {
        let mut moved = false;
        while self.connection.has_for_guest() {
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            let len = self.write_packet(chain, memory);
            // A buffer that cannot hold a packet is returned empty: the guest only loses its own buffer.
            queue.add_used(memory, head, len)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Copies one packet out of guest memory, its payload into `self.payload`; returns the header and the
    /// payload's length.
    fn read_packet(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Option<(Header, usize)> {
        let mut reader = chain.reader(memory).ok()?;
        let mut bytes = [0; HEADER];
        reader.read_exact(&mut bytes).ok()?;
        let (header, len) = Header::from_bytes(&bytes);
        if len > MAX_PAYLOAD {
            return None;
        }
        reader.read_exact(&mut self.payload[..len as usize]).ok()?;
        Some((header, len as usize))
    }

    /// Writes the next packet into the guest's buffer; gives the number of bytes written.
    fn write_packet(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) -> u32 {
        let Ok(mut writer) = chain.writer(memory) else { return 0 };
        let Some(room) = writer.available_bytes().checked_sub(HEADER) else { return 0 };
        let Some((header, payload)) = self.connection.for_guest(room) else { return 0 };
        // `for_guest` gave at most `room` bytes, and the writer has checked every address.
        let bytes = header.to_bytes(payload.len() as u32);
        match writer.write_all(&bytes).and_then(|()| writer.write_all(&payload)) {
            Ok(()) => (HEADER + payload.len()) as u32,
            Err(_) => 0,
        }
    }
}

impl<S: Read + Write + AsRawFd + Send + Hangup> Device for Vsock<S> {
    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Receive, transmit, events; the last is for migration and never used.
        &[QUEUE_SIZE; 3]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn kicked(&mut self, _index: usize, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        self.pump(queues, memory)
    }

    fn watch(&self) -> Option<(RawFd, EventSet)> {
        let mut events = EventSet::empty();
        events.set(EventSet::IN, self.connection.wants_input());
        events.set(EventSet::OUT, self.connection.has_for_agent());
        Some((self.connection.stream().as_raw_fd(), events))
    }

    fn ready(&mut self, events: EventSet, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        if events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            self.connection.read_from_agent();
        }
        self.pump(queues, memory)
    }

    fn reset(&mut self) {
        self.connection.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(self.connection.state().clone())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(state) = state else {
            return Err(RestoreError::new("vsock", "the state is another device's"));
        };
        self.connection.restore(state)
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
