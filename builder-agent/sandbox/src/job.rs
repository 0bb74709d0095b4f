//! The request of the agent to a build's session, and the result. The same for every backend.
//!
//! Everything in a [`Job`] was decided by the agent; nothing in it comes from a guest. Everything in a [`Run`] was
//! learned from a hostile guest, or measured, and has been bounded on the way here.
//! Not here: the machine that a job runs in (`backend`) and the conversation with the guest (`session`).

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use egress::Event;
use serde::{Deserialize, Serialize};

use crate::backend::{Image, Inputs, Machine};
use crate::error::SandboxError;
use crate::usage::Usage;

/// One builder to run, once.
#[derive(Debug, Clone)]
pub struct Job {
    /// Names the job in logs; the guest does not get it.
    pub id: String,
    /// Nix system, such as `x86_64-linux`.
    pub system: String,
    /// Absolute path of the builder inside the sandbox. This and the following may have any bytes except NUL.
    pub builder: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    /// The final environment, complete: the guest adds nothing.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Written into `/build` before the builder starts: `passAsFile`, `.attrs.json`, `.attrs.sh`.
    pub files: Vec<(String, Vec<u8>)>,
    /// Written into `/etc`, for a builder with a network: certificates, as [`CERTIFICATES`](guest::etc::CERTIFICATES).
    pub etc: Vec<(String, Vec<u8>)>,
    /// Output name to the absolute store path where the builder writes it.
    pub outputs: BTreeMap<String, String>,
    pub inputs: Inputs,
    /// Whether the builder sees the entries of each directory in a random order, another one in each run.
    pub random_order: bool,
    /// Whether the builder has a network. Without, it has a loopback interface and no other.
    pub network: bool,
    pub limits: Limits,
}

impl Job {
    /// A shell, with nothing around it.
    pub(crate) fn shell(script: &str, patience: Duration) -> Job {
        Job {
            id: "probe".to_owned(),
            system: format!("{}-linux", std::env::consts::ARCH),
            builder: b"/bin/sh".to_vec(),
            args: vec![b"-c".to_vec(), script.as_bytes().to_vec()],
            env: BTreeMap::new(),
            files: Vec::new(),
            etc: Vec::new(),
            outputs: BTreeMap::new(),
            inputs: Inputs::Image(Image::default()),
            random_order: false,
            network: false,
            limits: Limits {
                vcpus: 1,
                memory_mib: 256,
                wall: Some(patience),
                silent: None,
                log_bytes: 64 << 10,
                output_bytes: 0,
                processes: 64,
            },
        }
    }

    /// The machine to run it in.
    pub fn machine(&self) -> Machine<'_> {
        Machine {
            id: &self.id,
            vcpus: self.limits.vcpus,
            memory_mib: self.limits.memory_mib,
            inputs: &self.inputs,
            network: self.network,
            home: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Receives the results of a running job, as they arrive.
pub trait Host: Send {
    fn log(&mut self, bytes: &[u8]);
    /// The builder's network has connected something, or refused to.
    fn connected(&mut self, _event: Event) {}
    /// Opens the sink for the NAR of one output. Only called for names in [`Job::outputs`].
    fn output(&mut self, name: &str) -> io::Result<Box<dyn OutputSink>>;
    /// What this host needs to go on in another program. Called when the job is paused.
    fn written_down(&mut self) -> String {
        String::new()
    }
}

/// Takes the NAR bytes of one output.
pub trait OutputSink: io::Write + Send {
    /// Ends the NAR, which is complete. If a sink is dropped without this call, its NAR was cut short.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuilderStatus {
    Exited(i32),
    Signalled(i32),
}

/// The duration of each part of a run, in their order. None for a part that did not end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// From the start of the run to a running machine.
    pub machine_started: Option<Duration>,
    /// To the guest's first frame.
    pub guest_ready: Option<Duration>,
    pub job_sent: Option<Duration>,
    pub builder_started: Option<Duration>,
    pub builder: Option<Duration>,
    pub outputs: Option<Duration>,
}

impl Phases {
    /// The parts that ended, by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        [
            ("machine started", self.machine_started),
            ("guest ready", self.guest_ready),
            ("job sent", self.job_sent),
            ("builder started", self.builder_started),
            ("builder", self.builder),
            ("outputs", self.outputs),
        ]
        .into_iter()
        .filter_map(|(name, took)| Some((name, took?)))
    }
}

/// The outcome of a builder that ended; its outputs were streamed only if it exited with 0.
#[derive(Debug, Clone)]
pub struct Finished {
    pub status: BuilderStatus,
    /// `uname -r` of the guest, or of the host for the namespace backend.
    pub kernel: String,
}

/// The result of one run with its measurements, also if the run failed.
#[derive(Debug)]
pub struct Run {
    pub result: Result<Finished, SandboxError>,
    pub phases: Phases,
    pub usage: Usage,
}

/// A run without usage: no machine was started for it.
impl From<Result<Finished, SandboxError>> for Run {
    fn from(result: Result<Finished, SandboxError>) -> Run {
        Run { result, phases: Phases::default(), usage: Usage::default() }
    }
}
