//! The limits of one run, and who set each, so that the message of a build that reaches one can say so.
//!
//! Plain data: it goes to the place of the run with the task. Not here: how they are chosen (`schedule::shared`), and
//! where they are enforced (the sandbox, `watch`, `realise::follow`).

use members::SetBy;
use sandbox::Limits;

/// The limits of a run, or of a request that waits for one.
#[derive(Debug, Clone)]
pub struct RunLimits {
    pub of_sandbox: Limits,
    pub set_by: Origins,
}

/// Who set each limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    pub memory: SetBy,
    pub wall: SetBy,
    pub silent: SetBy,
    pub log: SetBy,
    pub output: SetBy,
}

impl Default for Origins {
    /// The box set all of them.
    fn default() -> Self {
        Self {
            memory: SetBy::Box("sandbox.memory-mib"),
            wall: SetBy::Box("limits.max-build-seconds"),
            silent: SetBy::Box("limits.max-silent-seconds"),
            log: SetBy::Box("limits.max-log-mib"),
            output: SetBy::Box("limits.max-output-mib"),
        }
    }
}
