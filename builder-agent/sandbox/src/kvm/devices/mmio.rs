//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2): one page of registers in front of a device.
//!
//! The guest writes any value to any offset in any order. A register access that is not four aligned bytes,
//! or that has no register, has no effect; a step out of order leaves the state unchanged. The device gets
//! its queues only when the driver has set DRIVER_OK and each queue lies inside guest RAM.

mod transport_state;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::{Broken, Device, Interrupt, PlugError, Used, Watched};
pub use transport_state::TransportState;

pub mod register {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC_LOW: u64 = 0x80;
    pub const QUEUE_DESC_HIGH: u64 = 0x84;
    pub const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    /// Length and base of a shared memory region we do not have: all ones.
    pub const SHM_FIRST: u64 = 0xb0;
    pub const SHM_LAST: u64 = 0xbc;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

const MAGIC_VALUE: u32 = 0x7472_6976;
const VERSION_2: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"BARN");
const FEATURE_VERSION_1: u64 = 1 << 32;
const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// A device and its registers. Shared, under one lock, by the vCPU threads and the event thread.
pub struct Transport {
    device: Box<dyn Device>,
    queues: Vec<Queue>,
    memory: GuestMemoryMmap,
    interrupt: Box<dyn Interrupt>,
    interrupt_status: Arc<AtomicU32>,
    status: u32,
    driver_features: u64,
    device_features_page: u32,
    driver_features_page: u32,
    queue: u32,
}

impl Transport {
    pub fn new(device: Box<dyn Device>, memory: GuestMemoryMmap, interrupt: Box<dyn Interrupt>) -> Transport {
        let queues = new_queues(device.as_ref());
        Transport {
            device,
            queues,
            memory,
            interrupt,
            interrupt_status: Arc::default(),
            status: 0,
            driver_features: 0,
            device_features_page: 0,
            driver_features_page: 0,
            queue: 0,
        }
    }

    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    fn offered(&self) -> u64 {
        self.device.features() | FEATURE_VERSION_1
    }

    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            let config = self.device.config();
            for (byte, value) in
                data.iter_mut().zip(config.iter().skip(usize::try_from(at).unwrap_or(usize::MAX)))
            {
                *byte = *value;
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue as usize);
        match offset {
            register::MAGIC => MAGIC_VALUE,
            register::VERSION => VERSION_2,
            register::DEVICE_ID => self.device.kind(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => page(self.offered(), self.device_features_page),
            register::QUEUE_SIZE_MAX => queue.map_or(0, |q| q.max_size().into()),
            register::QUEUE_READY => queue.is_some_and(|q| q.ready()).into(),
            register::INTERRUPT_STATUS => self.interrupt_status.load(Ordering::SeqCst),
            register::STATUS => self.status,
            register::SHM_FIRST..=register::SHM_LAST => u32::MAX,
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(word);
        match offset {
            register::DEVICE_FEATURES_SELECT => self.device_features_page = value,
            register::DRIVER_FEATURES_SELECT => self.driver_features_page = value,
            register::QUEUE_SELECT => self.queue = value,
            register::INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            register::DRIVER_FEATURES => self.accept_features(value),
            register::STATUS => self.set_status(value),
            register::QUEUE_NOTIFY => self.kick(value as usize),
            _ => self.configure_queue(offset, value),
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & status::DRIVER == 0 || self.status & status::FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_features_page {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // Bits can only be added, each one after the bits that it requires.
        let added = value & !self.status;
        if value & self.status != self.status & !status::NEEDS_RESET {
            return;
        }
        let allowed = match added {
            0 => true,
            status::FAILED | status::ACKNOWLEDGE => true,
            status::DRIVER => self.has(status::ACKNOWLEDGE),
            status::FEATURES_OK => {
                // A refusal is shown by the missing bit: virtio 1.2, 3.1.1 step 6.
                self.has(status::DRIVER)
                    && self.driver_features & !self.offered() == 0
                    && self.driver_features & FEATURE_VERSION_1 != 0
            }
            status::DRIVER_OK => self.has(status::FEATURES_OK),
            _ => false,
        };
        if !allowed {
            return;
        }
        self.status |= added;
        if added == status::DRIVER_OK && !self.queues.iter().all(|q| q.is_valid(&self.memory)) {
            self.stop();
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn configure_queue(&mut self, offset: u64, value: u32) {
        if !self.has(status::FEATURES_OK) || self.has(status::DRIVER_OK) {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue as usize) else { return };
        if offset == register::QUEUE_READY {
            queue.set_ready(value == 1);
            return;
        }
        if queue.ready() {
            return;
        }
        match offset {
            // A size that is zero, no power of two or too large is ignored by `set_size`.
            register::QUEUE_SIZE => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn is_live(&self) -> bool {
        self.has(status::DRIVER_OK) && !self.has(status::NEEDS_RESET) && !self.has(status::FAILED)
    }

    /// The driver put buffers on a queue.
    pub fn kick(&mut self, index: usize) {
        if self.is_live() && index < self.queues.len() {
            let used = self.device.kicked(index, &mut self.queues, &self.memory);
            self.finish(used);
        }
    }

    /// The descriptors and events that the event thread must wait for on behalf of this device.
    pub fn watch(&self) -> Vec<Watched> {
        if self.is_live() { self.device.watch() } else { Vec::new() }
    }

    /// The queue that has to be kicked again, after the other devices.
    pub fn unfinished(&self) -> Option<usize> {
        self.device.unfinished().filter(|_| self.is_live())
    }

    pub fn ready(&mut self, id: u32, events: EventSet) {
        if self.is_live() {
            let used = self.device.ready(id, events, &mut self.queues, &self.memory);
            self.finish(used);
        }
    }

    /// The event thread waits for nothing but what [`Transport::watch`] lists now.
    pub fn release(&mut self) {
        self.device.release();
    }

    /// Gives the device a stream, which is non-blocking, for one connection of the guest to `port`. The driver must have
    /// started the device: otherwise nobody would notice that the agent gives the stream up.
    pub fn plug(&mut self, port: u32, stream: UnixStream) -> Result<(), PlugError> {
        if !self.is_live() {
            return Err(PlugError::NotReady);
        }
        self.device.plug(port, stream)
    }

    fn finish(&mut self, used: Used) {
        match used {
            Ok(true) => self.interrupt(INTERRUPT_USED),
            Ok(false) => {}
            Err(Broken) => self.stop(),
        }
    }

    fn stop(&mut self) {
        self.status |= status::NEEDS_RESET;
        self.interrupt(INTERRUPT_CONFIG);
    }

    fn interrupt(&self, why: u32) {
        // Set the reason first: the guest reads it as soon as the interrupt arrives.
        self.interrupt_status.fetch_or(why, Ordering::SeqCst);
        self.interrupt.trigger();
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues = new_queues(self.device.as_ref());
        self.interrupt_status.store(0, Ordering::SeqCst);
        self.status = 0;
        self.driver_features = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.queue = 0;
    }
}

fn new_queues(device: &dyn Device) -> Vec<Queue> {
    let new = |size: &u16| Queue::new(*size).expect("queue sizes are powers of two, fixed by the device");
    device.queue_sizes().iter().map(new).collect()
}

fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
