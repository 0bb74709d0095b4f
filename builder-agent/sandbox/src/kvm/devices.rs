//! The devices of the guest. None of them trusts the guest.
//!
//! A device uses the host only through traits and sockets: interrupts are [`Interrupt`], the vsock stream is `Read +
//! Write`, the network a socket. So register and queue tests need no KVM.

pub mod blk;
pub mod console;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod restore_error;
pub mod rng;
pub mod state;
#[cfg(test)]
pub mod testing;
pub mod vsock;

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use restore_error::RestoreError;
use state::DeviceState;

/// Tells the guest that a device wants its attention.
pub trait Interrupt: Send {
    fn trigger(&self);
}

/// The driver broke the rules of a queue; the device stops until it is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest's driver broke the rules of the queue")]
pub struct Broken;

impl From<virtio_queue::Error> for Broken {
    fn from(_: virtio_queue::Error) -> Self {
        Broken
    }
}

/// Whether the driver must be notified of used buffers.
pub type Used = Result<bool, Broken>;

/// A descriptor to wait on, and its events. Without events nobody waits for it now.
pub type Watched = (RawFd, EventSet);

/// A virtio device behind a transport. Called with the transport's lock held.
pub trait Device: Send {
    /// Virtio 1.2, section 5: device types.
    fn kind(&self) -> u32;

    /// Features offered besides VERSION_1.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16];

    /// Device configuration; read-only for all devices we have.
    fn config(&self) -> &[u8];

    /// The driver offered buffers on queue `index`. Only called once every queue is valid.
    fn kicked(&mut self, index: usize, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used;

    /// The descriptors to wait on, each once; called again after every other call.
    fn watch(&self) -> Vec<Watched> {
        Vec::new()
    }

    /// One of the watched descriptors is ready for these events. It is not named: no call of a device blocks, so the device
    /// tries each.
    fn ready(&mut self, _events: EventSet, _queues: &mut [Queue], _memory: &GuestMemoryMmap) -> Used {
        Ok(false)
    }

    /// The queue in whose middle it stopped, so that other devices have their turn. It is to be called for it again.
    fn unfinished(&self) -> Option<usize> {
        None
    }

    /// The driver reset the device.
    fn reset(&mut self) {}

    /// The state of the device, with the parts of its configuration that the driver relies on.
    fn save(&self) -> DeviceState;

    /// Continues from the state of another device of this kind. On error nothing has changed.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// Locks a device that several threads use. A panic ends the process (see `vmm`), so a poisoned lock is never seen.
pub fn lock<D>(device: &Mutex<D>) -> MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
