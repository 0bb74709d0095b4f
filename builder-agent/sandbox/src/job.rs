//! What the agent asks of a sandbox, and what it gets back. The same for every backend.
//!
//! Everything in a [`Job`] was decided by the agent; nothing in it comes from a guest. Everything in
//! [`Finished`] and [`SandboxError`] was learned from a hostile guest and has been bounded on the way here.
//! Not here: how a far end is started (`kvm`, `namespace`) and how it is talked to (`session`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// One builder to run, once.
#[derive(Debug, Clone)]
pub struct Job {
    /// Names the job in logs; means nothing to the guest.
    pub id: String,
    /// Nix system, such as `x86_64-linux`.
    pub system: String,
    /// Absolute path of the builder as the builder sees it. This and the following are any bytes but NUL.
    pub builder: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    /// The final environment, complete: the guest adds nothing.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Written into `/build` before the builder starts: `passAsFile`, `.attrs.json`, `.attrs.sh`.
    pub files: Vec<(String, Vec<u8>)>,
    /// Output name to the absolute store path where the builder writes it.
    pub outputs: BTreeMap<String, String>,
    pub inputs: Inputs,
    pub limits: Limits,
}

/// The closure, in the form the backend can show to a builder.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// For kvm: one EROFS image whose root lists exactly the closure.
    Image(Image),
    /// For namespace: absolute store path to a read-only host tree.
    Trees(Vec<(String, PathBuf)>),
}

/// Segments that, concatenated, are one EROFS image.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub segments: Vec<Segment>,
}

/// A part of a file. Offset and length are multiples of 4096.
#[derive(Debug, Clone)]
pub struct Segment {
    pub file: Arc<File>,
    pub offset: u64,
    pub len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Whole build, from builder start.
    pub wall: Option<Duration>,
    /// Longest time without a byte of log.
    pub silent: Option<Duration>,
    pub log_bytes: u64,
    /// All outputs together, as NAR.
    pub output_bytes: u64,
    pub processes: u32,
}

/// Where a running job's results go, as they arrive.
pub trait Host: Send {
    fn log(&mut self, bytes: &[u8]);
    /// Opens the sink for the NAR of one output. Only called for names in [`Job::outputs`].
    fn output(&mut self, name: &str) -> io::Result<Box<dyn OutputSink>>;
}

/// Takes the NAR bytes of one output.
pub trait OutputSink: io::Write + Send {
    /// The NAR is complete. A sink dropped without this was cut short.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuilderStatus {
    Exited(i32),
    Signalled(i32),
}

/// Named spans of a job's life, in the order they happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Phases(pub Vec<(&'static str, Duration)>);

/// A builder that ran to its end; its outputs were streamed only if it exited 0.
#[derive(Debug, Clone)]
pub struct Finished {
    pub status: BuilderStatus,
    /// `uname -r` of the guest, or of the host for the namespace backend.
    pub kernel: String,
    pub phases: Phases,
    /// Peak memory of the VMM process that is not guest memory.
    pub vmm_overhead_bytes: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the build ran longer than its limit of {}s", after.as_secs())]
    Timeout { after: Duration },
    #[error("the build printed nothing for {}s", after.as_secs())]
    Silent { after: Duration },
    #[error("the build's log grew past its limit of {limit} bytes")]
    LogLimit { limit: u64 },
    #[error("the build's outputs grew past their limit of {limit} bytes")]
    OutputLimit { limit: u64 },
    #[error("the build ran out of its {mib} MiB of memory")]
    OutOfMemory { mib: u32 },
    #[error("the build had more than its limit of {limit} processes")]
    ProcessLimit { limit: u32 },
    #[error("the build was cancelled")]
    Cancelled,
    #[error("the sandbox guest broke its protocol: {why}")]
    GuestProtocol { why: String },
    #[error("the sandbox guest died; the last it said:\n{console}")]
    GuestDied { console: String },
    #[error("the builder succeeded but did not create its output '{name}'")]
    OutputMissing { name: String },
    #[error("the builder's output '{name}' cannot be stored: {why}")]
    OutputInvalid { name: String, why: String },
    /// Its program is missing, not executable, or for another system.
    #[error("the builder could not be started: {why}")]
    CannotStart { why: String },
    #[error("cannot store output '{name}'")]
    Sink { name: String, source: io::Error },
    /// The far end ran but could not prepare a place for the builder.
    #[error("the sandbox could not be set up: {why}")]
    Setup { why: String },
    #[error("no sandbox can be started here: {why}")]
    Unavailable { why: String },
}

impl SandboxError {
    /// Whether the same build would fail the same way on another box.
    pub fn is_builders_fault(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::Silent { .. }
                | Self::LogLimit { .. }
                | Self::OutputLimit { .. }
                | Self::OutOfMemory { .. }
                | Self::ProcessLimit { .. }
                | Self::OutputMissing { .. }
                | Self::OutputInvalid { .. }
                | Self::CannotStart { .. }
        )
    }
}

/// Asks a running job to stop. Clones share one flag; cancelling is final.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    cancelled: Mutex<Waiters>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiters {
    cancelled: bool,
    /// Eventfds of those who wait in poll(2); each is owned by its waiter and gone when the waiter is.
    events: Vec<Weak<OwnedFd>>,
}

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    /// Safe to call from any thread, any number of times.
    pub fn cancel(&self) {
        let mut waiters = self.lock();
        waiters.cancelled = true;
        for event in waiters.events.drain(..).filter_map(|e| e.upgrade()) {
            raise(&event);
        }
        self.0.changed.notify_all();
    }

    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Waits until cancelled or until `timeout` is over; true if cancelled.
    pub fn wait(&self, timeout: Duration) -> bool {
        let guard = self.lock();
        self.0
            .changed
            .wait_timeout_while(guard, timeout, |w| !w.cancelled)
            .map(|(g, _)| g.cancelled)
            .unwrap_or_else(|e| e.into_inner().0.cancelled)
    }

    /// A descriptor that polls readable from the moment of cancelling on, for those who wait for other things too.
    pub fn event(&self) -> io::Result<Arc<OwnedFd>> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut waiters = self.lock();
        waiters.events.retain(|e| e.strong_count() > 0);
        if waiters.cancelled {
            raise(&event);
        } else {
            waiters.events.push(Arc::downgrade(&event));
        }
        Ok(event)
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // A panic elsewhere leaves a bool and a list behind, both whole.
        self.0.cancelled.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Adding one to a counter of zero cannot block or overflow, so there is nothing to report.
fn raise(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// A way of running jobs.
pub trait Backend: Send + Sync {
    fn name(&self) -> &'static str;
    /// Blocks until the job is over. Nothing of the far end is left running when it returns.
    fn run(&self, job: Job, host: &mut dyn Host, cancel: &Cancel) -> Result<Finished, SandboxError>;
}
