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
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest::protocol::SSH_PORTS;
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

/// A descriptor to wait on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    pub fd: RawFd,
    /// Which one of the device's it is. The number of a closed descriptor comes back as another's, an id does not.
    pub id: u32,
    /// Without events nobody waits for it now. A hang-up alone can be waited for, too.
    pub events: EventSet,
}

/// Why a device takes no stream. Then nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlugError {
    #[error("port {port} is not one of {} to {}", SSH_PORTS.start(), SSH_PORTS.end())]
    NoSuchPort { port: u32 },
    #[error("port {port} is in use")]
    InUse { port: u32 },
    #[error("the guest's driver is not ready")]
    NotReady,
    #[error("the device has no ports")]
    NoPorts,
}

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

    /// The descriptor with this id is ready for these events, or was a moment ago: the device may have ended it since.
    fn ready(
        &mut self,
        _id: u32,
        _events: EventSet,
        _queues: &mut [Queue],
        _memory: &GuestMemoryMmap,
    ) -> Used {
        Ok(false)
    }

    /// Nobody waits any more for what [`Device::watch`] does not list, so it may be closed. Until this call the device keeps
    /// each descriptor open that it has listed.
    fn release(&mut self) {}

    /// Takes a stream, which is non-blocking, for one connection of the guest to `port`.
    fn plug(&mut self, _port: u32, _stream: UnixStream) -> Result<(), PlugError> {
        Err(PlugError::NoPorts)
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
