//! What a VMM that a guest has taken over finds around it: nothing.
//!
//! Steps, in the order in which they can be taken. The first ones need privileges and a path, the last one is
//! taken once all threads exist and before any of them enters the guest:
//!
//! 1. `cgroup` (by the agent): memory and task limits, where a writable cgroup v2 hierarchy exists;
//! 2. [`namespaces`]: own mounts, network, IPC, host name, cgroups, and process ids; an empty read-only root;
//! 3. [`privileges`]: an unprivileged uid that no other process has, no capability, no new privileges, tight limits;
//! 4. [`filesystem`]: Landlock denies what the empty root already lacks;
//! 5. [`seccomp`]: the few system calls of a running VMM; any other kills it.
//!
//! A step the host cannot give (no Landlock in an old kernel, no privileges for namespaces) is left out and named
//! in [`Report::missing`]; uid, capabilities, no-new-privileges and seccomp are never left out.

pub mod cgroup;
pub mod filesystem;
pub mod namespaces;
pub mod privileges;
pub mod seccomp;

use std::io;

use serde::{Deserialize, Serialize};

/// A step that could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct JailError {
    pub what: &'static str,
    pub source: io::Error,
}

pub(crate) fn cannot<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError { what, source: source.into() }
}

/// Which steps are in force. For the log, the probe and the tests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub active: Vec<String>,
    pub missing: Vec<String>,
}

impl Report {
    pub fn active(&mut self, step: &str) {
        self.active.push(step.to_owned());
    }

    pub fn missing(&mut self, step: &str, why: impl std::fmt::Display) {
        self.missing.push(format!("{step}: {why}"));
    }
}

/// Steps 2 to 4, for this process, which must still have only one thread.
pub fn enter(uid: Option<u32>, report: &mut Report) -> Result<(), JailError> {
    privileges::set_limits()?;
    namespaces::enter(uid.is_some(), report)?;
    privileges::drop_all(uid, report)?;
    filesystem::deny_all(report);
    Ok(())
}
