//! The state of devices: the part of a VM's snapshot that is neither memory nor vCPUs.
//!
//! The state was written by a VMM of this project and is not an attacker's. It may still be cut short, of another
//! version, or of another VM: then restoring is an error, never a panic, and changes nothing.
//! Not here: guest memory, which must be restored before the devices; and the other end of a descriptor. A restored vsock
//! has new streams, and the agent must bring the other ends of them to the same point of the conversation. A restored network
//! card has a new socket; the connections of the guest's programs do not go on there.

use serde::{Deserialize, Serialize};

use super::net;
use super::restore_error::RestoreError;
use super::vsock::connection;

/// One device behind a transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "device", rename_all = "lowercase")]
pub enum DeviceState {
    /// This device has no state.
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
    /// The images that the guest has been told of.
    Disk {
        bytes: u64,
    },
    /// Of the connection that is there from the start. Those that were plugged in end with their VMM: a machine that has them is
    /// not written down.
    Vsock {
        connection: connection::State,
    },
    Net(net::State),
}

/// For a device without state of its own: its properties must be those of the saved device.
pub fn same(device: &'static str, saved: &DeviceState, here: DeviceState) -> Result<(), RestoreError> {
    match *saved == here {
        true => Ok(()),
        false => Err(RestoreError::differs(device, "state", saved, &here)),
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
