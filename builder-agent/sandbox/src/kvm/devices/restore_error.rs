//! The reason why a device does not continue from a saved state.

/// The state does not fit this device. With it the guest's driver and the device would contradict each other.
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

    /// The saved value of `what` is not the value of this device.
    pub fn differs<T: std::fmt::Debug>(device: &'static str, what: &str, saved: T, here: T) -> RestoreError {
        RestoreError { device, why: format!("its {what} was {saved:?} and is {here:?} here") }
    }
}
