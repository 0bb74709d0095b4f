//! The jail of a VMM process: a guest that has taken over the process finds no file, no network and no other process.
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
//! The jail is complete, or there is no VM: a [`Step`] that the host cannot give is an error unless the configuration
//! names it as one that may be missing, and those that are no `Step` (resource limits, capabilities, no new privileges,
//! seccomp) are never left out.

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

/// A step that a host may be unable to give, and that `sandbox.allow-missing` can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Memory and task limits from outside.
    Cgroup,
    /// Mounts, network, IPC, host name, cgroups of its own, and with them the empty root.
    Namespaces,
    PidNamespace,
    /// A user that no other process has.
    OwnUid,
    Landlock,
}

impl Step {
    pub const ALL: [Step; 5] =
        [Step::Cgroup, Step::Namespaces, Step::PidNamespace, Step::OwnUid, Step::Landlock];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Step::Cgroup => "cgroup",
            Step::Namespaces => "namespaces",
            Step::PidNamespace => "pid-namespace",
            Step::OwnUid => "own-uid",
            Step::Landlock => "landlock",
        }
    }

    /// The advice to the operator for a missing step.
    fn hint(self) -> &'static str {
        match self {
            Step::Cgroup => {
                "boot with cgroup v2, and run the agent with its units, which give `sandbox.cgroup` to it"
            }
            Step::Namespaces => "run the agent as root, or allow user namespaces",
            Step::PidNamespace | Step::OwnUid => "run the agent as root",
            Step::Landlock => "Linux 6.12 or later, with `landlock` in the kernel's `lsm=` list",
        }
    }
}

impl std::str::FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Step, String> {
        let names = || Step::ALL.map(Step::name).join(", ");
        let named = Step::ALL.into_iter().find(|step| step.name() == text);
        named.ok_or_else(|| format!("there is no step '{text}'; the steps are {}", names()))
    }
}

/// The steps that are in force. For the log, the probe and the tests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub active: Vec<String>,
    pub missing: Vec<Missing>,
}

/// A step that the host did not give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub step: Step,
    pub why: String,
}

/// Going on would put a guest into a jail that is weaker than the operator believes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Incomplete(Vec<Missing>);

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the jail of a VM would be incomplete, so no build is started:")?;
        for Missing { step, why } in &self.0 {
            write!(f, " {} ({why}; hint: {});", step.name(), step.hint())?;
        }
        let names: Vec<_> = self.0.iter().map(|missing| format!("\"{}\"", missing.step.name())).collect();
        write!(f, " or accept it in the configuration: `sandbox.allow-missing = [{}]`", names.join(", "))
    }
}

impl Report {
    pub fn active(&mut self, step: &str) {
        self.active.push(step.to_owned());
    }

    pub fn missing(&mut self, step: Step, why: impl std::fmt::Display) {
        self.missing.push(Missing { step, why: why.to_string() });
    }

    /// Fails if a step is missing that is not in `allowed`.
    pub fn accept(&self, allowed: &[Step]) -> Result<(), Incomplete> {
        let refused: Vec<_> =
            self.missing.iter().filter(|missing| !allowed.contains(&missing.step)).cloned().collect();
        if refused.is_empty() { Ok(()) } else { Err(Incomplete(refused)) }
    }
}

/// Whether this process may choose users for others.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Takes steps 2 to 4 in this process, which must still have only one thread. Steps that the host cannot give are listed
/// in the report.
pub fn enter(uid: Option<u32>, report: &mut Report) -> Result<(), JailError> {
    privileges::set_limits()?;
    namespaces::note_pid_namespace(report);
    namespaces::enter(uid.is_some(), report)?;
    privileges::drop_all(uid, report)?;
    filesystem::deny_all(report);
    Ok(())
}

#[cfg(test)]
#[path = "jail_test.rs"]
mod tests;
