//! A build in the middle, written down: what another program needs to go on with it.
//!
//! A build can be paused while its builder runs: before, the job is on its way into the machine, and afterwards outputs are on
//! their way out. The machine knows nothing of a pause: what it sends meanwhile stays in its stream. The numbers of
//! descriptors here are those of the program that paused; execve(2) keeps them.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use guest::protocol::Bytes;
use serde::{Deserialize, Serialize};

use crate::job::{Limits, Phases};
use crate::moment::Moment;
use crate::usage::Usage;

/// A paused build.
#[derive(Debug, Serialize, Deserialize)]
pub struct Paused {
    pub machine: PausedMachine,
    /// Our end of the stream to the guest.
    pub stream: RawFd,
    /// The first bytes of a frame whose other bytes have not been read yet.
    pub received: Bytes,
    pub session: PausedSession,
}

/// The machine seen from outside.
#[derive(Debug, Serialize, Deserialize)]
pub enum PausedMachine {
    Kvm {
        pid: u32,
        control: RawFd,
        console: RawFd,
        stderr: RawFd,
        /// Address ranges of the process that are guest memory or closure.
        guest: Vec<(u64, u64)>,
        cgroup: Option<PathBuf>,
        /// The first bytes of a report, and how many bytes of reports there were.
        reports: (Bytes, usize),
        network: Option<PausedNetwork>,
    },
    Namespace {
        pid: u32,
        /// A descriptor of the first process of the sandbox.
        init: Option<RawFd>,
        stderr: RawFd,
        /// The directory with the files of /etc, and its lock. Several machines have the same.
        scratch: (PathBuf, RawFd),
    },
}

/// The network of a micro-VM.
#[derive(Debug, Serialize, Deserialize)]
pub struct PausedNetwork {
    pub guard: u32,
    pub control: RawFd,
    pub stderr: RawFd,
    pub begun: Bytes,
    pub bytes: u64,
    pub ports: usize,
}

impl PausedNetwork {
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.control, self.stderr]
    }
}

/// The conversation with the guest.
#[derive(Debug, Serialize, Deserialize)]
pub struct PausedSession {
    pub limits: Limits,
    /// The names of the outputs that the guest has to send.
    pub outputs: Vec<String>,
    pub kernel: String,
    pub started: Moment,
    pub last_log: Moment,
    pub log_bytes: u64,
    pub phases: Phases,
    pub phase_began: Moment,
    pub usage: Usage,
    /// When the pause began. Nothing could be read since, so the builder was not silent since.
    pub since: Moment,
    /// What the host of the job wants to have again.
    pub host: String,
}

impl Paused {
    /// All descriptors that belong to the build.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all = vec![self.stream];
        match &self.machine {
            PausedMachine::Kvm { control, console, stderr, network, .. } => {
                all.extend([control, console, stderr]);
                all.extend(network.iter().flat_map(PausedNetwork::descriptors));
            }
            PausedMachine::Namespace { init, stderr, scratch, .. } => {
                all.extend([*stderr, scratch.1]);
                all.extend(init);
            }
        }
        all
    }
}

impl PausedSession {
    /// For how long the build has been paused.
    pub(crate) fn pause(&self) -> Duration {
        self.since.instant().elapsed()
    }
}
