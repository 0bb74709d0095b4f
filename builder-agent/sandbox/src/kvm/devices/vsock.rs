//! virtio-vsock (virtio 1.2, 5.10): carries byte streams between the guest and the agent, one for each port.
//!
//! This file moves packets between the queues and [`Connections`], whose members interpret them. Payloads are copied once out
//! of guest memory and once into it.
//! Not virtio-vsock's `VsockPacket`: it needs a payload in one descriptor, and Linux sends large ones in
//! several.

pub mod connection;
pub mod connections;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::restore_error::RestoreError;
use super::state::DeviceState;
use super::{Broken, Device, PlugError, Used, Watched};
use connection::{HEADER, Hangup, Header, MAX_PAYLOAD};
use connections::{Connections, FIRST};

const KIND: u32 = 19;
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 128;
/// The guest's address; the host is 2 (VMADDR_CID_HOST).
pub const GUEST_CID: u64 = 3;
/// Most packets of the guest that one call takes. Then the agent's bytes and the other devices have their turn: a driver that
/// always has another packet, for one port, does not keep those of the other port waiting.
const TURN: usize = 64;

/// `S` is a socket to the agent, non-blocking.
pub struct Vsock<S> {
    connections: Connections<S>,
    config: [u8; 8],
    payload: Vec<u8>,
    /// The guest's queue may have more packets, which no notification will announce again.
    has_more: bool,
}

impl<S: Read + Write + AsRawFd + Send + Hangup> Vsock<S> {
    /// Connects the guest's connection to this port of the host with this stream. The guest may connect once.
    pub fn new(port: u32, stream: S) -> Vsock<S> {
        Vsock {
            connections: Connections::new(port, stream, GUEST_CID),
            config: GUEST_CID.to_le_bytes(),
            payload: vec![0; MAX_PAYLOAD as usize],
            has_more: false,
        }
    }

    /// Moves the packets that can move, in both directions; of the guest's at most [`TURN`].
    fn pump(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        let (mut used, mut left) = (false, TURN);
        self.has_more = false;
        loop {
            self.connections.flush();
            self.connections.settle();
            // Receiving first: an answer must have left before the packets that cause the next one are taken.
            let gave = self.give_guest_packets(&mut queues[RX], memory)?;
            let taken = self.take_guest_packets(&mut queues[TX], memory, left)?;
            used |= gave || taken > 0;
            left -= taken;
            self.has_more = left == 0;
            if self.has_more || (!gave && taken == 0) {
                return Ok(used);
            }
        }
    }

    /// Takes at most `most` of the guest's packets, and gives their number. Stops when the limit of unsent answers is reached:
    /// the guest must offer buffers first.
    fn take_guest_packets(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        most: usize,
    ) -> Result<usize, Broken> {
        let mut taken = 0;
        // One packet at a time, so that after a stop the others are still in the queue.
        while taken < most && self.connections.can_take() {
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            match self.read_packet(chain, memory) {
                Some((header, len)) => self.connections.from_guest(header, &self.payload[..len]),
                // Without this packet a stream would have a gap, and what is left of the packet may name the wrong one.
                None => self.connections.reset(),
            }
            queue.add_used(memory, head, 0)?;
            taken += 1;
        }
        Ok(taken)
    }

    /// Gives the guest answers and data, as long as it has buffers for them.
    fn give_guest_packets(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Used {
        let mut moved = false;
        while self.connections.has_for_guest() {
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
        let Some((header, payload)) = self.connections.for_guest(room) else { return 0 };
        // `for_guest` gave at most `room` bytes, and the writer has checked every address.
        let bytes = header.to_bytes(payload.len() as u32);
        match writer.write_all(&bytes).and_then(|()| writer.write_all(&payload)) {
            Ok(()) => (HEADER + payload.len()) as u32,
            Err(_) => 0,
        }
    }
}

impl<S: Read + Write + AsRawFd + Send + Hangup + From<UnixStream>> Device for Vsock<S> {
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

    fn watch(&self) -> Vec<Watched> {
        let watched = self.connections.iter().map(|(id, connection)| {
            let mut events = EventSet::empty();
            // For the port to be free again. Without the first one the agent has no use for the machine, and ends it.
            events.set(EventSet::HANG_UP, id != FIRST && !connection.has_ended());
            events.set(EventSet::IN, connection.wants_input());
            events.set(EventSet::OUT, connection.has_for_agent());
            Watched { fd: connection.stream().as_raw_fd(), id, events }
        });
        watched.collect()
    }

    fn ready(&mut self, id: u32, events: EventSet, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        if events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            self.connections.ready(id, events.intersects(EventSet::HANG_UP | EventSet::ERROR));
        }
        self.pump(queues, memory)
    }

    fn release(&mut self) {
        self.connections.release();
    }

    fn plug(&mut self, port: u32, stream: UnixStream) -> Result<(), PlugError> {
        self.connections.plug(port, stream.into())
    }

    fn unfinished(&self) -> Option<usize> {
        self.has_more.then_some(TX)
    }

    fn reset(&mut self) {
        self.has_more = false;
        self.connections.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock { connection: self.connections.save() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock { connection } = state else {
            return Err(RestoreError::new("vsock", "the state is another device's"));
        };
        self.connections.restore(connection)
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
