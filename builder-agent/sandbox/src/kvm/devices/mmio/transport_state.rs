//! Saves and restores a transport: its registers and its queues.

use std::mem::discriminant;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use super::{FEATURE_VERSION_1, INTERRUPT_CONFIG, INTERRUPT_USED, Transport, status};
use crate::kvm::devices::restore_error::RestoreError;
use crate::kvm::devices::state::DeviceState;

/// All state that a driver can change, and that of the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub kind: u32,
    pub status: u32,
    pub driver_features: u64,
    pub device_features_page: u32,
    pub driver_features_page: u32,
    pub selected_queue: u32,
    pub interrupt_status: u32,
    pub queues: Vec<SavedQueue>,
    pub device: DeviceState,
}

/// The addresses of a queue in guest memory, and the device's position in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    pub max_size: u16,
    pub size: u16,
    pub ready: bool,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub next_available: u16,
    pub next_used: u16,
}

impl SavedQueue {
    fn of(queue: &Queue) -> SavedQueue {
        let state = queue.state();
        SavedQueue {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            next_available: state.next_avail,
            next_used: state.next_used,
        }
    }

    /// Refuses sizes and addresses that no driver could have set.
    fn queue(&self) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(QueueState {
            max_size: self.max_size,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
            next_avail: self.next_available,
            next_used: self.next_used,
            // Never offered.
            event_idx_enabled: false,
        })
    }
}

impl Transport {
    pub fn save(&self) -> TransportState {
        TransportState {
            kind: self.device.kind(),
            status: self.status,
            driver_features: self.driver_features,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            selected_queue: self.queue,
            interrupt_status: self.interrupt_status.load(Ordering::SeqCst),
            queues: self.queues.iter().map(SavedQueue::of).collect(),
            device: self.device.save(),
        }
    }

    /// Continues from the state of another transport with a device of the same kind. Guest memory must be restored already. On error
    /// nothing has changed.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        if state.kind != self.device.kind() {
            return Err(RestoreError::differs("device", "kind", state.kind, self.device.kind()));
        }
        let queues = self.restored_queues(state)?;
        self.check_status(state)?;
        let running = state.status & status::DRIVER_OK != 0 && state.status & status::NEEDS_RESET == 0;
        if running && !queues.iter().all(|queue| queue.is_valid(&self.memory)) {
            return Err(RestoreError::new(
                "queues",
                "the driver runs, and a queue is not inside guest memory",
            ));
        }
        // A driver that has not looked at its device relies on nothing of it.
        if state.status & status::DRIVER != 0 {
            self.device.restore(&state.device)?;
        } else if discriminant(&state.device) != discriminant(&self.device.save()) {
            return Err(RestoreError::new("device", "the state is another device's"));
        }
        self.queues = queues;
        self.status = state.status;
        self.driver_features = state.driver_features;
        self.device_features_page = state.device_features_page;
        self.driver_features_page = state.driver_features_page;
        self.queue = state.selected_queue;
        self.interrupt_status.store(state.interrupt_status, Ordering::SeqCst);
        // Interrupts and notifications may have been on their way. A superfluous one does no harm.
        if state.interrupt_status != 0 {
            self.interrupt.trigger();
        }
        for index in 0..self.queues.len() {
            self.kick(index);
        }
        Ok(())
    }

    fn restored_queues(&self, state: &TransportState) -> Result<Vec<Queue>, RestoreError> {
        let (saved, here) = (state.queues.len(), self.queues.len());
        if saved != here {
            return Err(RestoreError::differs("queues", "number", saved, here));
        }
        let restored = state.queues.iter().zip(&self.queues).map(|(saved, here)| {
            if saved.max_size != here.max_size() {
                return Err(RestoreError::differs("queue", "largest size", saved.max_size, here.max_size()));
            }
            saved.queue().map_err(|error| RestoreError::new("queue", error.to_string()))
        });
        restored.collect()
    }

    /// Accepts only states that [`Transport::write`] can reach.
    fn check_status(&self, state: &TransportState) -> Result<(), RestoreError> {
        use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
        let has = |bit| state.status & bit != 0;
        let steps = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
        let known = steps.iter().fold(NEEDS_RESET | FAILED, |all, step| all | step);
        let in_order = steps.windows(2).all(|pair| has(pair[0]) || !has(pair[1]));
        if state.status & !known != 0 || !in_order {
            return Err(RestoreError::new("status register", format!("{:#x} is no status", state.status)));
        }
        let features = state.driver_features;
        if has(FEATURES_OK) && (features & !self.offered() != 0 || features & FEATURE_VERSION_1 == 0) {
            return Err(RestoreError::differs("features", "choice", features, self.offered()));
        }
        if state.interrupt_status & !(INTERRUPT_USED | INTERRUPT_CONFIG) != 0 {
            let bits = format!("{:#x} has unknown bits", state.interrupt_status);
            return Err(RestoreError::new("interrupt status", bits));
        }
        Ok(())
    }
}
