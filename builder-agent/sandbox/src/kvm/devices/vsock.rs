//! virtio-vsock (virtio 1.2, 5.10): carries one byte stream between the guest and the agent's socket.
//!
//! This file moves packets between the queues and [`Connection`](connection::Connection), which decides what they
//! mean. Payloads are copied once out of guest memory and once into it.

pub mod connection;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::{GuestMemoryMmap, VolatileMemory, VolatileSlice};
use vmm_sys_util::epoll::EventSet;

use super::{Device, Used};
use connection::{Connection, Header, MAX_PAYLOAD};

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
    /// Connects the guest's port `port` of the host to `stream`. The guest may connect once.
    pub fn new(stream: S, port: u32) -> Vsock<S> {
        Vsock {
            connection: Connection::new(stream, GUEST_CID, port),
            config: GUEST_CID.to_le_bytes(),
            payload: vec![0; MAX_PAYLOAD as usize],
        }
    }

    /// Moves everything that can move, both ways.
    fn pump(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        let mut used = false;
        loop {
            self.connection.flush();
            // Receiving first: an answer must have left before the packets that cause the next one are taken.
            let moved = self.to_guest(&mut queues[RX], memory)? | self.from_guest(&mut queues[TX], memory)?;
            if !moved {
                return Ok(used);
            }
            used = true;
        }
    }

    /// Takes the guest's packets. Stops when answers pile up: then the guest must make room for them first.
    fn from_guest(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Used {
        let mut moved = false;
        // One at a time, so that a stop leaves the rest where it is.
        while self.connection.can_take() {
            let Some(mut chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            if let Ok(packet) = VsockPacket::from_tx_virtq_chain(memory, &mut chain, MAX_PAYLOAD) {
                let header = Header::read(&packet);
                let payload = match packet.data_slice() {
                    // The length was checked against `MAX_PAYLOAD` by the parser.
                    Some(data) => {
                        let payload = &mut self.payload[..data.len()];
                        data.copy_to(payload);
                        &*payload
                    }
                    None => &[],
                };
                self.connection.from_guest(header, payload);
            }
            queue.add_used(memory, head, 0)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Gives the guest answers and data, as long as it has buffers for them.
    fn to_guest(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Used {
        let mut moved = false;
        while self.connection.has_for_guest() {
            let Some(mut chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            let mut len = 0;
            if let Ok(mut packet) = VsockPacket::from_rx_virtq_chain(memory, &mut chain, MAX_PAYLOAD) {
                let room = packet.data_slice().map_or(0, VolatileSlice::len);
                if let Some((header, payload)) = self.connection.for_guest(room) {
                    if let Some(data) = packet.data_slice() {
                        // `for_guest` gave at most `room` bytes.
                        if let Ok(part) = data.get_slice(0, payload.len()) {
                            part.copy_from(&payload);
                        }
                    }
                    header.write(&mut packet, payload.len() as u32);
                    len = PKT_HEADER_SIZE + payload.len();
                }
            }
            // A buffer that cannot hold a packet is handed back empty: the guest only loses its own buffer.
            queue.add_used(memory, head, len as u32)?;
            moved = true;
        }
        Ok(moved)
    }
}

/// A stream whose sending half can be closed.
pub trait Hangup {
    fn hang_up(&mut self);
}

impl Hangup for std::os::unix::net::UnixStream {
    fn hang_up(&mut self) {
        // Fails only if the agent is gone, and then so are we.
        let _ = self.shutdown(std::net::Shutdown::Write);
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
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
