//! Shared by device tests: an interrupt that counts, a driver that follows the rules, and its queue memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::mmio::{Transport, TransportState, register, status};
use super::restore_error::RestoreError;
use super::vsock::GUEST_CID;
use super::vsock::connection::{HOST_CID, Hangup, Header, TYPE_STREAM};
use super::{Device, Interrupt};

#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Interrupt for Count {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

pub const RAM: u64 = 1 << 20;

/// The port that the agent listens on in tests of vsock.
pub const PORT: u32 = 1024;
/// A second one, in tests that have two.
pub const OTHER_PORT: u32 = 1025;

/// The agent's end of a vsock stream: takes up to `room` bytes, and returns the bytes of `input`.
#[derive(Default)]
pub struct Agent {
    pub taken: Vec<u8>,
    pub room: usize,
    pub input: VecDeque<u8>,
    pub ended: bool,
    pub hung_up: u32,
}

impl Read for Agent {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return if self.ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        self.input.read(out)
    }
}

impl Write for Agent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.room);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= n;
        self.taken.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Hangup for Agent {
    fn hang_up(&mut self) {
        self.hung_up += 1;
    }
}

/// The header of a packet from the guest to the agent, to [`PORT`].
pub fn vsock_header(op: u16) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: 77,
        dst_port: PORT,
        type_: TYPE_STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

pub fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// A transport, its interrupt, and the guest's side of its queues. Queue `i` lies at `(i + 1) * 0x4000`:
/// descriptors, then, 0x1000 later each, available and used rings.
pub struct Driver {
    pub transport: Transport,
    pub interrupt: Count,
    pub memory: GuestMemoryMmap,
    /// Entries of each queue; at most 256, for which there is room.
    pub size: u16,
    next_descriptor: Vec<u16>,
    available: Vec<u16>,
    collected: Vec<u16>,
}

/// Entries of a queue, if nothing else is set.
const SIZE: u16 = 16;

impl Driver {
    pub fn new(device: Box<dyn Device>) -> Driver {
        let memory = ram();
        let interrupt = Count::default();
        let transport = Transport::new(device, memory.clone(), Box::new(interrupt.clone()));
        let queues = transport.queue_count();
        Driver {
            transport,
            interrupt,
            memory,
            size: SIZE,
            next_descriptor: vec![0; queues],
            available: vec![0; queues],
            collected: vec![0; queues],
        }
    }

    /// Replaces the device by this one of the same kind, as restoring a snapshot does: the state goes through
    /// its text form, and the memory stays.
    pub fn move_to(&mut self, device: Box<dyn Device>) -> Result<(), RestoreError> {
        let text = serde_json::to_string(&self.transport.save()).unwrap();
        let state: TransportState = serde_json::from_str(&text).unwrap();
        assert_eq!(state, self.transport.save());
        let mut transport = Transport::new(device, self.memory.clone(), Box::new(self.interrupt.clone()));
        transport.restore(&state)?;
        self.transport = transport;
        Ok(())
    }

    pub fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn add_status(&mut self, bit: u32) {
        let value = self.get(register::STATUS) | bit;
        self.set(register::STATUS, value);
    }

    /// Starts the device with all offered features and all queues, in the order of virtio 1.2, 3.1.1.
    pub fn start(&mut self) {
        self.negotiate();
        for queue in 0..self.available.len() as u32 {
            self.configure(queue);
        }
        self.add_status(status::DRIVER_OK);
    }

    /// Resets the device and starts it again, with empty queues.
    pub fn restart(&mut self) {
        self.set(register::STATUS, 0);
        for queue in 0..self.available.len() {
            (self.next_descriptor[queue], self.available[queue], self.collected[queue]) = (0, 0, 0);
            for ring in [0x1000, 0x2000] {
                self.memory.write_obj(0u32, GuestAddress(base(queue) + ring)).unwrap();
            }
        }
        self.start();
    }

    pub fn negotiate(&mut self) {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        for page in 0..2 {
            self.set(register::DEVICE_FEATURES_SELECT, page);
            self.set(register::DRIVER_FEATURES_SELECT, page);
            let features = self.get(register::DEVICE_FEATURES);
            self.set(register::DRIVER_FEATURES, features);
        }
        self.add_status(status::FEATURES_OK);
    }

    pub fn configure(&mut self, queue: u32) {
        let base = base(queue as usize) as u32;
        self.set(register::QUEUE_SELECT, queue);
        self.set(register::QUEUE_SIZE, self.size.into());
        self.set(register::QUEUE_DESC_LOW, base);
        self.set(register::QUEUE_DRIVER_LOW, base + 0x1000);
        self.set(register::QUEUE_DEVICE_LOW, base + 0x2000);
        self.set(register::QUEUE_READY, 1);
    }

    pub fn descriptor(&mut self, queue: usize, index: u16, buffer: Buffer, flags: u32, next: u16) {
        let at = base(queue) + u64::from(index) * 16;
        let flags = flags | if buffer.writable { VRING_DESC_F_WRITE } else { 0 };
        self.memory.write_obj(buffer.address, GuestAddress(at)).unwrap();
        self.memory.write_obj(buffer.len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags as u16, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Offers a chain, without notifying.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor[queue];
        for (i, buffer) in buffers.iter().enumerate() {
            let index = (head + i as u16) % self.size;
            let last = i + 1 == buffers.len();
            self.descriptor(
                queue,
                index,
                *buffer,
                if last { 0 } else { VRING_DESC_F_NEXT },
                (index + 1) % self.size,
            );
        }
        self.next_descriptor[queue] = (head + buffers.len() as u16) % self.size;
        self.offer_head(queue, head);
        head
    }

    pub fn offer_head(&mut self, queue: usize, head: u16) {
        let ring = base(queue) + 0x1000;
        let slot = u64::from(self.available[queue] % self.size);
        self.memory.write_obj(head, GuestAddress(ring + 4 + slot * 2)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.memory.write_obj(self.available[queue], GuestAddress(ring + 2)).unwrap();
    }

    pub fn kick(&mut self, queue: usize) {
        self.set(register::QUEUE_NOTIFY, queue as u32);
    }

    /// The used entries since the last call: (head, written).
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = base(queue) + 0x2000;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let mut used = Vec::new();
        while self.collected[queue] != index {
            let at = ring + 4 + u64::from(self.collected[queue] % self.size) * 8;
            let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            used.push((head, len));
            self.collected[queue] = self.collected[queue].wrapping_add(1);
        }
        used
    }
}

pub fn base(queue: usize) -> u64 {
    (queue as u64 + 1) * 0x4000
}
