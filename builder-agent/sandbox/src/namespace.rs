//! The weaker sandbox, for machines without KVM: Linux namespaces, made by bubblewrap, with the guest as PID 1.
//!
//! The builder shares the host's kernel. It gets no capability, no user namespace, no network but its own
//! loopback, and an unprivileged user outside of the sandbox too: an agent that is root becomes that user
//! before bubblewrap starts.
//! Not here: the conversation with the guest (`session`), and the guest itself (crate `guest`).

mod arguments;
mod far_end;
mod scratch;
mod stage;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Backend, Inputs, Machine, Started, Streams};
use crate::cancel::Cancel;
use crate::error::SandboxError;

pub(crate) use far_end::taken_over;
use scratch::Scratch;

/// The programs and the user that the backend needs from the host.
#[derive(Debug, Clone)]
pub struct NamespaceConfig {
    /// The static `guest` binary.
    pub guest: PathBuf,
    /// A static shell; it becomes /bin/sh.
    pub shell: PathBuf,
    /// bubblewrap, found in PATH if it has no slash.
    pub bwrap: PathBuf,
    /// A directory for a few small files. Every user must be able to reach it.
    pub scratch: PathBuf,
    /// User and group of bubblewrap outside of the sandbox when the agent is root. Root would be exempt from
    /// the process limit, and an error in the kernel's namespaces would make the builder root on the host.
    pub user: (u32, u32),
}

impl NamespaceConfig {
    /// Uses bubblewrap from PATH, the system's temporary directory, and the user `nobody`.
    pub fn new(guest: PathBuf, shell: PathBuf) -> NamespaceConfig {
        NamespaceConfig {
            guest,
            shell,
            bwrap: "bwrap".into(),
            scratch: std::env::temp_dir(),
            user: (65534, 65534),
        }
    }
}

/// Runs jobs under bubblewrap. Cheap to keep; runs any number of jobs at a time.
#[derive(Debug)]
pub struct NamespaceBackend {
    config: NamespaceConfig,
    /// Created for the first job, and shared by all running jobs.
    scratch: Mutex<Option<Arc<Scratch>>>,
}

impl NamespaceBackend {
    /// Checks that the files exist, and removes directories that a killed process left in `scratch`. Whether namespaces
    /// work is known only when the first job starts.
    pub fn new(config: NamespaceConfig) -> Result<NamespaceBackend, SandboxError> {
        for (what, path) in [("guest binary", &config.guest), ("shell", &config.shell)] {
            if let Err(e) = std::fs::metadata(path) {
                return Err(SandboxError::Unavailable {
                    why: format!("the {what} {} cannot be read: {e}", path.display()),
                });
            }
        }
        scratch::sweep(&config.scratch);
        Ok(NamespaceBackend { config, scratch: Mutex::default() })
    }

    fn scratch(&self) -> Result<Arc<Scratch>, SandboxError> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scratch) = scratch.as_ref().filter(|scratch| scratch.is_whole()) {
            return Ok(scratch.clone());
        }
        let new = Scratch::new(&self.config.scratch).map_err(|e| SandboxError::Unavailable {
            why: format!("cannot make a directory for the files of /etc: {e}"),
        })?;
        Ok(scratch.insert(Arc::new(new)).clone())
    }
}

impl Backend for NamespaceBackend {
    fn name(&self) -> &'static str {
        "namespace"
    }

    fn start(&self, machine: Machine<'_>, _cancel: &Cancel) -> Result<Started, SandboxError> {
        if machine.home {
            return Err(SandboxError::Unavailable {
                why: "the namespace sandbox has no homes; `sandbox.backend = \"kvm\"` has them".into(),
            });
        }
        let Inputs::Trees(trees) = machine.inputs else {
            return Err(SandboxError::Unavailable {
                why: "the namespace sandbox takes trees, and the agent brought an image".into(),
            });
        };
        if machine.network {
            return Err(SandboxError::Unavailable {
                why: "the namespace sandbox has no network; backend = \"kvm\" has one".into(),
            });
        }
        let (far_end, guest) = far_end::start(&self.config, self.scratch()?, trees, machine.memory_mib)?;
        let streams = Streams { guest };
        Ok(Started { far_end: Box::new(far_end), streams, network: None, plugs: None })
    }
}

#[cfg(test)]
#[path = "namespace_test.rs"]
mod tests;
