//! The sandbox that the configuration asks for. There is no fallback from one to the other.

use std::path::Path;
use std::sync::Arc;

use sandbox::Backend;
use sandbox::kvm::{KvmBackend, KvmConfig};
use sandbox::namespace::{NamespaceBackend, NamespaceConfig};

use crate::config::{BackendKind, Sandbox};

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("{what} {} cannot be read: {cause}\nhint: `netboot-image guest` makes it; `sandbox.{key}` says where it is", path.display())]
    Missing { what: &'static str, key: &'static str, path: std::path::PathBuf, cause: std::io::Error },
    #[error("cannot open the namespace sandbox: {0}")]
    Namespace(sandbox::SandboxError),
}

/// Opens the configured backend. Does not boot anything; that is what `builder-agent sandbox probe` is for.
pub fn open(config: &Sandbox) -> Result<Arc<dyn Backend>, BackendError> {
    match config.backend {
        BackendKind::Kvm => {
            readable("the guest kernel", "kernel", &config.kernel)?;
            readable("the guest initrd", "initrd", &config.initrd)?;
            Ok(Arc::new(KvmBackend::new(KvmConfig::new(&config.kernel, &config.initrd))))
        }
        BackendKind::Namespace => {
            readable("the guest binary", "guest", &config.guest)?;
            readable("the shell", "shell", &config.shell)?;
            let config = NamespaceConfig::new(config.guest.clone(), config.shell.clone());
            Ok(Arc::new(NamespaceBackend::new(config).map_err(BackendError::Namespace)?))
        }
    }
}

/// Found now rather than by the first member's build.
fn readable(what: &'static str, key: &'static str, path: &Path) -> Result<(), BackendError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(cause) => Err(BackendError::Missing { what, key, path: path.to_owned(), cause }),
    }
}

/// Boots a guest for real. Returns what there is to say about it.
pub fn probe(kernel: &Path, initrd: &Path) -> Result<String, ProbeError> {
    readable("the guest kernel", "kernel", kernel)?;
    readable("the guest initrd", "initrd", initrd)?;
    let backend = KvmBackend::new(KvmConfig::new(kernel, initrd));
    let probed = sandbox::probe::probe(&backend, sandbox::probe::PATIENCE)?;
    let mut text = probed.to_string();
    for (name, duration) in &probed.phases.0 {
        text.push_str(&format!("\n  {name}: {:.1} ms", duration.as_secs_f64() * 1e3));
    }
    text.push_str(&format!("\n  jail: {}", probed.jail_active.join(", ")));
    if !probed.jail_missing.is_empty() {
        text.push_str(&format!("\n  jail, not possible on this host: {}", probed.jail_missing.join(", ")));
    }
    Ok(text)
}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Images(#[from] BackendError),
    #[error(
        "KVM cannot run a guest here: {0}\nhint: members' builds need it; or choose the weaker `backend = \"namespace\"` in [sandbox]"
    )]
    Guest(#[from] sandbox::SandboxError),
}
