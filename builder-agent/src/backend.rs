//! The sandbox that the configuration asks for. There is no fallback from one to the other.

use std::path::Path;
use std::sync::Arc;

use sandbox::Backend;

use crate::config::Sandbox;

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("cannot start the {kind} sandbox: {why}")]
    Open { kind: &'static str, why: String },
}

/// Opens the configured backend. Does not boot anything; that is what `builder-agent sandbox probe` is for.
pub fn open(_config: &Sandbox) -> Result<Arc<dyn Backend>, BackendError> {
    Err(BackendError::Open { kind: "kvm", why: "tbd".into() })
}

pub fn probe(_kernel: &Path, _initrd: &Path) -> Result<String, BackendError> {
    Err(BackendError::Open { kind: "kvm", why: "tbd".into() })
}
