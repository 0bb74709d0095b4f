//! Finds the device of an access to an address, or of a notification.

use std::sync::{Arc, Mutex, MutexGuard};

use super::arch::{Architecture, MmioSlot, Native};
use super::devices::console::{Console, ConsoleState};
use super::devices::lock;
use super::devices::mmio::{Transport, TransportState};
use super::devices::restore_error::RestoreError;

/// Held by each vCPU thread and the event thread; lives as long as the process.
pub struct Bus {
    pub console: Mutex<Console>,
    transports: Vec<Mutex<Transport>>,
}

/// Register addresses and interrupt lines for `count` devices, in order.
pub fn slots(count: usize) -> Vec<MmioSlot> {
    (0..count)
        .map(|i| MmioSlot {
            base: Native::MMIO_BASE + i as u64 * Native::MMIO_STRIDE,
            size: Native::MMIO_STRIDE,
            gsi: Native::FIRST_GSI + i as u32,
        })
        .collect()
}

impl Bus {
    pub fn new(console: Console, transports: Vec<Transport>) -> Arc<Bus> {
        let transports = transports.into_iter().map(Mutex::new).collect();
        Arc::new(Bus { console: Mutex::new(console), transports })
    }

    /// The state of all devices, in order. No vCPU may be running.
    pub fn save(&self) -> (ConsoleState, Vec<TransportState>) {
        (lock(&self.console).save(), self.transports.iter().map(|transport| lock(transport).save()).collect())
    }

    /// Continues from that state; the console was made with its own. Guest memory and interrupt controllers must be restored.
    pub fn restore(&self, states: &[TransportState]) -> Result<(), RestoreError> {
        let (saved, here) = (states.len(), self.transports.len());
        if saved != here {
            return Err(RestoreError::differs("devices", "number", saved, here));
        }
        self.transports.iter().zip(states).try_for_each(|(transport, state)| lock(transport).restore(state))
    }

    pub fn device_count(&self) -> usize {
        self.transports.len()
    }

    pub fn device(&self, index: usize) -> MutexGuard<'_, Transport> {
        lock(&self.transports[index])
    }

    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            // No device has this address.
            None => data.fill(0xff),
        }
    }

    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        // A write to an address without a device, or to the read-only closure, has no effect.
        if let Some((mut device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(MutexGuard<'_, Transport>, u64)> {
        let at = address.checked_sub(Native::MMIO_BASE)?;
        let transport = self.transports.get(usize::try_from(at / Native::MMIO_STRIDE).ok()?)?;
        Some((lock(transport), at % Native::MMIO_STRIDE))
    }
}
