//! What devices are apart from their configuration: the part of a VM's snapshot that is in neither memory nor vCPUs.
//!
//! The state was written by a VMM of this project and is not an attacker's. It may still be cut short, of another
//! version, or of another VM: then restoring is an error, never a panic, and changes nothing.
//! Not here: guest memory, which must be restored before the devices; and what a descriptor leads to. A restored vsock
//! has a new stream, whose other end the agent must bring to the same place.

use serde::{Deserialize, Serialize};

use super::vsock::connection;

/// One device behind a transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "device", rename_all = "lowercase")]
pub enum DeviceState {
    /// Remembers nothing.
    Rng,
    /// The region that the guest has mapped.
    Pmem {
        start: u64,
        len: u64,
    },
    /// The size that the guest has read.
    Blk {
        bytes: u64,
    },
    Vsock(connection::State),
}

/// Going on would give the guest a device that contradicts what its driver knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot restore the {device}: {why}")]
pub struct RestoreError {
    pub device: &'static str,
    pub why: String,
}

impl RestoreError {
    pub fn new(device: &'static str, why: impl Into<String>) -> RestoreError {
        RestoreError { device, why: why.into() }
    }

    /// `what` is not what the device has here.
    pub fn differs<T: std::fmt::Debug>(device: &'static str, what: &str, saved: T, here: T) -> RestoreError {
        RestoreError { device, why: format!("its {what} was {saved:?} and is {here:?} here") }
    }
}

/// For a device whose state is only what it must have in common with the saved one.
pub fn same(device: &'static str, saved: &DeviceState, here: DeviceState) -> Result<(), RestoreError> {
    match *saved == here {
        true => Ok(()),
        false => Err(RestoreError::differs(device, "state", saved, &here)),
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
