//! The reason why a build gave no outputs, in Nix's words, with the status that decides the client's next step.

use members::SetBy;
use nix::BuildStatus;
use nix_derivation::StorePath;
use sandbox::{BuilderStatus, SandboxError};
use store::{ImportError, NarError};

use crate::limits::Origins;

/// Lines of log repeated in the error of a failed builder (Nix: `log-lines`, 25 in newer versions, 10 before).
pub const TAIL_LINES: usize = 10;

/// Longest message, in bytes. Names and lists in it are a client's, and can be as long as a derivation.
const MAX_MESSAGE: usize = 32 << 10;

/// A failed build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub status: BuildStatus,
    /// Text for the person who asked; may have several lines.
    pub message: String,
    pub cause: Cause,
}

/// The cause of a failure, which decides whether another attempt can end differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The build itself: the same build fails the same way for everybody.
    Build,
    /// A limit that can differ for another member or client.
    Limit(Limit),
    Cancelled,
    /// The sandbox: with the next one the same build may end differently.
    Sandbox,
    /// Anything else of the box.
    Box,
    /// Any other cause, such as the request or the network.
    Other,
}

/// The limits that differ between requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Wall,
    Silence,
    Log,
    Output,
    /// The memory of the envelope, which is part of the build key.
    Memory,
    /// The processor time of the owner of the run, or of a group of the owner, in this month.
    Month,
    /// The ticket with which the owner of the run acts.
    Ticket,
    /// The room of the member's paths in the store.
    Store,
    /// A limit that is the same for every request that shares the run: set for the whole box, or part of the build key.
    OfRun,
}

impl Failure {
    pub fn new(status: BuildStatus, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
            message.push_str(" [cut]");
        }
        Self { status, message, cause: Cause::Other }
    }

    /// The derivation asks for something that this box cannot or must not do.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self::new(BuildStatus::InputRejected, message)
    }

    /// A failure of the box: trying again, here or elsewhere, may work.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(BuildStatus::TransientFailure, message).because(Cause::Box)
    }

    /// An output breaks a rule.
    pub fn output(message: impl Into<String>) -> Self {
        Self::new(BuildStatus::OutputRejected, message).because(Cause::Build)
    }

    /// The store could not take in an output or a download. `what` is a clause without an end.
    pub fn of_import(what: String, error: &ImportError) -> Self {
        match error.is_callers_fault() {
            true => Self::output(format!("{what}: {error}")),
            false => Self::of_box(what, error),
        }
    }

    /// Contents from the store could not be read in the format that they must have.
    pub fn of_contents(what: String, error: &NarError) -> Self {
        match error.is_the_boxs_fault() {
            false => Self::output(format!("{what}: {error}")),
            true => Self::of_box(what, error),
        }
    }

    /// A failure of a disk, a limit of the kernel or the index: never the builder's fault, and never recorded.
    fn of_box(what: String, error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "{what}");
        Self::transient(format!(
            "{what}; this is an error of the box, not of the build: {error}; try again later"
        ))
    }

    /// The same failure with another cause.
    #[must_use]
    pub fn because(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }

    /// Rewrites the message for a request whose derivation is `mine`. A message names the derivation that was built;
    /// that can be another one with the same build key, and only those who have it may learn its name.
    #[must_use]
    pub fn about(mut self, built: &StorePath, mine: &StorePath) -> Self {
        if built != mine {
            self.message = self.message.replace(&built.to_absolute_path(), &mine.to_absolute_path());
        }
        self
    }

    /// Rewrites the message about a limit for a request with an equal limit that somebody else set.
    #[must_use]
    pub fn limited_by(mut self, theirs: &Origins, mine: &Origins) -> Self {
        let of = |origins: &Origins| {
            Some(match self.cause {
                Cause::Limit(Limit::Wall) => origins.wall.clone(),
                Cause::Limit(Limit::Silence) => origins.silent.clone(),
                Cause::Limit(Limit::Log) => origins.log.clone(),
                Cause::Limit(Limit::Output) => origins.output.clone(),
                Cause::Limit(Limit::Memory) => origins.memory.clone(),
                _ => return None,
            })
        };
        if let (Some(theirs), Some(mine)) = (of(theirs), of(mine))
            && theirs != mine
        {
            let message = self.message.replacen(&theirs.to_string(), &mine.to_string(), 1);
            self.message = message.replacen(theirs.ask(), mine.ask(), 1);
        }
        self
    }

    /// Nobody waits for the build any more, or its member left the roster.
    pub fn cancelled(drv: &StorePath) -> Self {
        Self::new(BuildStatus::MiscFailure, format!("build of '{}' was cancelled", drv.to_absolute_path()))
            .because(Cause::Cancelled)
    }

    pub fn is_cancelled(&self) -> bool {
        self.cause == Cause::Cancelled
    }
}

/// A builder that ran and failed. `fixed` derivations depend on the network, so trying again may work (as in Nix).
pub fn builder_failed(drv: &StorePath, status: BuilderStatus, fixed: bool, tail: &[String]) -> Failure {
    let how = match status {
        BuilderStatus::Exited(code) => format!("failed with exit code {code}"),
        BuilderStatus::Signalled(signal) => {
            format!("failed due to signal {signal}{}", signal_name(signal))
        }
    };
    let killed = status == BuilderStatus::Signalled(9);
    let mut message = format!("builder for '{}' {how}", drv.to_absolute_path());
    if !tail.is_empty() {
        message.push_str(&format!(";\nlast {} log lines:", tail.len()));
        for line in tail {
            message.push_str("\n> ");
            message.push_str(line);
        }
    }
    let (status, cause) = match fixed {
        true => (BuildStatus::TransientFailure, Cause::Other),
        // The builder may have killed itself, or the kernel did because the box ran out of memory. The agent cannot
        // tell, so the failure is reported but not recorded.
        false if killed => (BuildStatus::PermanentFailure, Cause::Other),
        false => (BuildStatus::PermanentFailure, Cause::Build),
    };
    Failure::new(status, message).because(cause)
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (Illegal instruction)",
        6 => " (Aborted)",
        7 => " (Bus error)",
        8 => " (Floating point exception)",
        9 => " (Killed)",
        11 => " (Segmentation fault)",
        13 => " (Broken pipe)",
        15 => " (Terminated)",
        31 => " (Bad system call)",
        _ => "",
    }
}

/// The sandbox ended the build. The message names the limit, its value, who set it, and what the reader can do about it.
pub fn sandbox_failed(
    drv: &StorePath,
    outputs: &[(String, StorePath)],
    error: &SandboxError,
    set_by: &Origins,
) -> Failure {
    let path = drv.to_absolute_path();
    let cause = match error {
        SandboxError::Timeout { .. } => Cause::Limit(Limit::Wall),
        SandboxError::Silent { .. } => Cause::Limit(Limit::Silence),
        SandboxError::LogLimit { .. } => Cause::Limit(Limit::Log),
        SandboxError::OutputLimit { .. } => Cause::Limit(Limit::Output),
        // These limits are the same for all requests that share a run.
        SandboxError::OutOfMemory { .. } => Cause::Limit(Limit::Memory),
        SandboxError::ProcessLimit { .. } => Cause::Limit(Limit::OfRun),
        SandboxError::OutputMissing { .. }
        | SandboxError::OutputInvalid { .. }
        | SandboxError::CannotStart { .. } => Cause::Build,
        SandboxError::Cancelled => Cause::Cancelled,
        SandboxError::GuestProtocol { .. }
        | SandboxError::GuestDied { .. }
        | SandboxError::NetworkEnded
        | SandboxError::Setup { .. } => Cause::Sandbox,
        // A disk is full, or no sandbox can be started at all: at once it is no better.
        SandboxError::Sink { .. } | SandboxError::Unavailable { .. } => Cause::Box,
    };
    let failure = match error {
        SandboxError::Timeout { .. }
        | SandboxError::Silent { .. }
        | SandboxError::LogLimit { .. }
        | SandboxError::OutputLimit { .. }
        | SandboxError::OutOfMemory { .. }
        | SandboxError::ProcessLimit { .. } => limit_reached(&path, error, set_by),
        SandboxError::OutputMissing { name } => {
            let output = outputs.iter().find(|(output, _)| output == name);
            let place =
                output.map(|(_, path)| format!(" at '{}'", path.to_absolute_path())).unwrap_or_default();
            Failure::output(format!(
                "builder for '{path}' failed to produce output path for output '{name}'{place}"
            ))
        }
        SandboxError::OutputInvalid { name, why } => {
            Failure::output(format!("output '{name}' of '{path}' cannot be a store path: {why}"))
        }
        SandboxError::CannotStart { why } => Failure::new(
            BuildStatus::PermanentFailure,
            format!("builder for '{path}' could not be started: {why}"),
        ),
        SandboxError::Cancelled => Failure::cancelled(drv),
        other => {
            // The cause can be one step down the chain of errors, for example a full disk.
            let cause = std::error::Error::source(other).map(|e| format!(": {e}")).unwrap_or_default();
            Failure::transient(format!(
                "the sandbox of '{path}' failed; this is not an error of the builder: {other}{cause}"
            ))
        }
    };
    failure.because(cause)
}

/// The message of a build that was ended at a limit.
fn limit_reached(path: &str, error: &SandboxError, set_by: &Origins) -> Failure {
    // The limit, and what to do about it.
    let told = |limit: String, set_by: &SetBy, instead: &str| {
        format!("{limit} ({set_by}); {instead}, or {}", set_by.ask())
    };
    match error {
        SandboxError::Timeout { after } => Failure::new(
            BuildStatus::TimedOut,
            told(
                format!(
                    "building of '{path}' timed out after {} seconds, which is the limit",
                    after.as_secs()
                ),
                &set_by.wall,
                "split the derivation",
            ),
        ),
        SandboxError::Silent { after } => Failure::new(
            BuildStatus::TimedOut,
            told(
                format!("building of '{path}' timed out after {} seconds of silence", after.as_secs()),
                &set_by.silent,
                "have the builder print its progress",
            ),
        ),
        SandboxError::LogLimit { limit } => Failure::new(
            BuildStatus::LogLimitExceeded,
            told(
                format!("builder for '{path}' killed after writing more than {limit} bytes of log output"),
                &set_by.log,
                "make the build quieter",
            ),
        ),
        SandboxError::OutputLimit { limit } => Failure::output(told(
            format!("the outputs of '{path}' are larger than {limit} bytes"),
            &set_by.output,
            "install less, split the derivation",
        )),
        SandboxError::OutOfMemory { mib } => Failure::new(
            BuildStatus::PermanentFailure,
            told(
                format!("builder for '{path}' ran out of memory: the limit is {mib} MiB"),
                &set_by.memory,
                "build with fewer parallel jobs",
            ),
        ),
        SandboxError::ProcessLimit { limit } => Failure::new(
            BuildStatus::PermanentFailure,
            told(
                format!("builder for '{path}' started more than {limit} processes"),
                &SetBy::Box("limits.max-processes"),
                "build with fewer parallel jobs",
            ),
        ),
        other => Failure::transient(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn drv() -> StorePath {
        StorePath::from_basename(b"ib3sh3pcz10wsmavxvkdbayhqivbghlq-hello-2.12.1.drv").expect("a path")
    }

    #[test]
    fn a_failed_builder_is_reported_as_nix_does() {
        let tail = ["checking for gcc... no".to_owned(), "error: no C compiler".to_owned()];
        let failure = builder_failed(&drv(), BuilderStatus::Exited(77), false, &tail);
        assert_eq!(
            failure.message,
            "builder for '/nix/store/ib3sh3pcz10wsmavxvkdbayhqivbghlq-hello-2.12.1.drv' failed with exit code 77;\n\
             last 2 log lines:\n> checking for gcc... no\n> error: no C compiler"
        );
        assert_eq!(failure.status, BuildStatus::PermanentFailure);
        let failure = builder_failed(&drv(), BuilderStatus::Signalled(9), true, &[]);
        assert!(failure.message.ends_with("failed due to signal 9 (Killed)"), "{}", failure.message);
        assert_eq!(failure.status, BuildStatus::TransientFailure);
    }

    #[test]
    fn who_was_killed_by_nobody_knows_whom_is_not_remembered_as_failed() {
        let cause = |status| builder_failed(&drv(), status, false, &[]).cause;
        assert_eq!(cause(BuilderStatus::Signalled(9)), Cause::Other);
        assert_eq!(
            (cause(BuilderStatus::Signalled(11)), cause(BuilderStatus::Exited(9))),
            (Cause::Build, Cause::Build)
        );
    }

    #[test]
    fn every_limit_names_its_value_and_a_way_out() {
        for (error, status, part) in [
            (
                SandboxError::Timeout { after: Duration::from_secs(7) },
                BuildStatus::TimedOut,
                "timed out after 7 seconds, which is the limit (the client's `timeout`, or that of `ssh box settings`)",
            ),
            (
                SandboxError::Silent { after: Duration::from_secs(8) },
                BuildStatus::TimedOut,
                "timed out after 8 seconds of silence",
            ),
            (
                SandboxError::LogLimit { limit: 99 },
                BuildStatus::LogLimitExceeded,
                "more than 99 bytes of log",
            ),
            (SandboxError::OutputLimit { limit: 98 }, BuildStatus::OutputRejected, "larger than 98 bytes"),
            (SandboxError::OutOfMemory { mib: 97 }, BuildStatus::PermanentFailure, "the limit is 97 MiB"),
            (
                SandboxError::ProcessLimit { limit: 96 },
                BuildStatus::PermanentFailure,
                "more than 96 processes",
            ),
        ] {
            let origins = Origins { wall: SetBy::Client("timeout"), ..Origins::default() };
            let failure = sandbox_failed(&drv(), &[], &error, &origins);
            assert_eq!(failure.status, status);
            assert!(failure.message.contains(part) && failure.message.contains("; "), "{}", failure.message);
            let more = ["set a higher one", "ask the operator of the box for more"];
            assert!(more.iter().any(|more| failure.message.ends_with(more)), "{}", failure.message);
        }
    }

    #[test]
    fn who_joined_a_run_is_told_who_set_the_limit_of_their_own() {
        let theirs = Origins { output: SetBy::Member("max-output-mib"), ..Origins::default() };
        let error = SandboxError::OutputLimit { limit: 98 };
        let failure = sandbox_failed(&drv(), &[], &error, &theirs);
        assert!(failure.message.contains("(your `max-output-mib` in the roster)"), "{}", failure.message);
        let mine = failure.clone().limited_by(&theirs, &Origins::default());
        assert_eq!(mine, sandbox_failed(&drv(), &[], &error, &Origins::default()));
        let theirs_of_memory = Origins { memory: SetBy::Member("max-memory-mib"), ..Origins::default() };
        let mine_of_memory = Origins { memory: SetBy::Client("max-mem"), ..Origins::default() };
        let error = SandboxError::OutOfMemory { mib: 97 };
        let out = sandbox_failed(&drv(), &[], &error, &theirs_of_memory);
        let mine = sandbox_failed(&drv(), &[], &error, &mine_of_memory);
        assert_eq!(out.limited_by(&theirs_of_memory, &mine_of_memory), mine);
        let unlike = Origins { wall: SetBy::Client("timeout"), ..theirs.clone() };
        assert_eq!(failure.clone().limited_by(&theirs, &unlike), failure);
    }

    #[test]
    fn trouble_of_the_builder_is_not_blamed_on_the_box() {
        for error in [
            SandboxError::OutputInvalid { name: "out".into(), why: "/o is a fifo".into() },
            SandboxError::CannotStart { why: "executing '/b': No such file".into() },
            SandboxError::OutputMissing { name: "out".into() },
        ] {
            assert!(error.is_builders_fault());
            let failure = sandbox_failed(&drv(), &[], &error, &Origins::default());
            assert_ne!(failure.status, BuildStatus::TransientFailure, "{}", failure.message);
            assert!(!failure.message.contains("not an error of the builder"), "{}", failure.message);
        }
    }

    #[test]
    fn trouble_of_the_box_is_not_blamed_on_the_builder() {
        let full = || std::io::Error::from_raw_os_error(enospc());
        let file = || store::FileError { what: "write object", path: "/s/tmp/1".into(), source: full() };
        for failure in [
            sandbox_failed(
                &drv(),
                &[],
                &SandboxError::Unavailable { why: "no kvm".into() },
                &Origins::default(),
            ),
            sandbox_failed(
                &drv(),
                &[],
                &SandboxError::Sink { name: "out".into(), source: full() },
                &Origins::default(),
            ),
            Failure::of_import("cannot take it in".into(), &ImportError::File(file())),
            Failure::of_import("cannot take it in".into(), &ImportError::ReadBack(NarError::File(file()))),
            Failure::of_contents("cannot hash it".into(), &NarError::File(file())),
        ] {
            assert_eq!(failure.status, BuildStatus::TransientFailure, "{}", failure.message);
            assert_eq!(failure.cause, Cause::Box, "{}", failure.message);
            assert!(
                failure.message.contains("No space left") || failure.message.contains("no kvm"),
                "{}",
                failure.message
            );
        }
        let mine = NarError::NotAFile { path: "/nix/store/x".into(), found: "directory" };
        assert_eq!(Failure::of_contents("cannot hash it".into(), &mine).cause, Cause::Build);
    }

    fn enospc() -> i32 {
        rustix::io::Errno::NOSPC.raw_os_error()
    }
}
