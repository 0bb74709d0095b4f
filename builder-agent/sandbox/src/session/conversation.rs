//! The state of a build's session: events of the guest, deadlines, and the budgets of a whole build.
//!
//! Its only I/O is the write of the job's next piece. Not here: waiting for the stream and reading it (`build`).

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use egress::Event;
use guest::order::{self, Order};
use guest::protocol::{self, ExitStatus, Failure, FailureKind, Frame};

use super::outgoing::Outgoing;
use crate::error::SandboxError;
use crate::job::{BuilderStatus, Finished, Host, Job, Limits, OutputSink, Phases};
use crate::moment::Moment;
use crate::paused::PausedSession;
use crate::text;
use crate::usage::Usage;

/// Time limits for the guest's own work, where no limit of the job applies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the start of the machine to its `Hello`. A VM in a VM without hardware support boots in 4 s on an
    /// idle host.
    pub hello: Duration,
    /// Between two signs of progress while the job is sent or outputs arrive.
    pub stall: Duration,
    /// From the last byte of the job to the start of the builder: mounts and a few files.
    pub start: Duration,
    /// All outputs together; stops a guest that sends a byte per `stall`.
    pub outputs: Duration,
}

pub(super) const PATIENCE: Patience = Patience {
    hello: Duration::from_secs(180),
    stall: Duration::from_secs(120),
    start: Duration::from_secs(120),
    outputs: Duration::from_secs(3600),
};

/// A deadline that has passed: one of the job's limits, or one of the guest's own work.
pub(super) enum Late {
    Limit(SandboxError),
    Guest(&'static str),
}

/// One build's conversation with its guest: the events so far, and the deadlines of the next one.
pub(super) struct Conversation<'a> {
    patience: Patience,
    limits: &'a Limits,
    /// The job to send. `None`: the guest has it already.
    job: Option<(&'a Job, Option<protocol::Network>)>,
    host: &'a mut dyn Host,
    order: Order,
    /// The rest of the job to send; set from the `Hello` on.
    outgoing: Option<Outgoing<'a>>,
    /// The deadline for the guest's next step, and the message if it is missed.
    step: Option<(Instant, &'static str)>,
    /// The deadline for all outputs.
    outputs_end: Option<Instant>,
    started: Option<Instant>,
    last_log: Instant,
    log_bytes: u64,
    output_bytes: u64,
    output: Option<(String, Box<dyn OutputSink>)>,
    kernel: String,
    exit: Option<protocol::Exit>,
    pub(super) phases: Phases,
    phase_began: Instant,
    /// Bytes on the stream in both directions, and the guest's own count of its memory.
    pub(super) usage: Usage,
}

impl<'a> Conversation<'a> {
    /// `network`: what the guest is told about its network, if it has one.
    pub(super) fn new(
        patience: Patience,
        job: &'a Job,
        network: Option<protocol::Network>,
        host: &'a mut dyn Host,
    ) -> Conversation<'a> {
        let now = Instant::now();
        Conversation {
            patience,
            limits: &job.limits,
            job: Some((job, network)),
            host,
            order: Order::new(job.outputs.keys().cloned()),
            outgoing: None,
            step: Some((now + patience.hello, "it did not say hello in time")),
            outputs_end: None,
            started: None,
            last_log: now,
            log_bytes: 0,
            output_bytes: 0,
            output: None,
            kernel: String::new(),
            exit: None,
            phases: Phases::default(),
            phase_began: now,
            usage: Usage::default(),
        }
    }

    /// Goes on with a conversation that was paused.
    pub(super) fn resumed(
        patience: Patience,
        paused: &'a PausedSession,
        host: &'a mut dyn Host,
    ) -> Conversation<'a> {
        let mut conversation = Conversation {
            patience,
            limits: &paused.limits,
            job: None,
            host,
            order: Order::running(paused.outputs.iter().cloned()),
            outgoing: None,
            step: None,
            outputs_end: None,
            started: Some(paused.started.instant()),
            last_log: paused.last_log.instant(),
            log_bytes: paused.log_bytes,
            output_bytes: 0,
            output: None,
            kernel: paused.kernel.clone(),
            exit: None,
            phases: paused.phases,
            phase_began: paused.phase_began.instant(),
            usage: paused.usage,
        };
        conversation.was_paused(paused.pause());
        conversation
    }

    /// The network of the machine has something to tell.
    pub(super) fn connected(&mut self, event: Event) {
        self.host.connected(event);
    }

    /// Whether the builder runs: the only time at which another program can go on with the conversation.
    pub(super) fn is_building(&self) -> bool {
        self.started.is_some() && self.order.is_running()
    }

    /// The conversation while the builder runs.
    pub(super) fn written_down(&mut self) -> PausedSession {
        PausedSession {
            limits: self.limits.clone(),
            outputs: self.order.wanted().cloned().collect(),
            kernel: self.kernel.clone(),
            started: Moment::of(self.started.unwrap_or(self.phase_began)),
            last_log: Moment::of(self.last_log),
            log_bytes: self.log_bytes,
            phases: self.phases,
            phase_began: Moment::of(self.phase_began),
            usage: self.usage,
            since: Moment::of(Instant::now()),
            host: self.host.written_down(),
        }
    }

    /// Nobody read the log for so long, which the builder is not to blame for.
    pub(super) fn was_paused(&mut self, time: Duration) {
        self.last_log += time;
    }

    /// Time until the next deadline; none if the job has no limits and the builder runs.
    pub(super) fn time_left(&self) -> Result<Option<Duration>, Late> {
        let now = Instant::now();
        let limits = self.limits;
        let mut nearest: Option<Duration> = None;
        let mut check = |from: Instant, after: Duration, late: Late| {
            // `None`: further in the future than the clock can represent.
            let Some(at) = from.checked_add(after) else { return Ok(()) };
            if at <= now {
                return Err(late);
            }
            nearest = Some(nearest.map_or(at - now, |n| n.min(at - now)));
            Ok(())
        };
        if let (Some(started), Some(after)) = (self.started, limits.wall) {
            check(started, after, Late::Limit(SandboxError::Timeout { after }))?;
        }
        if let (Some(_), Some(after), None) = (self.started, limits.silent, &self.exit) {
            check(self.last_log, after, Late::Limit(SandboxError::Silent { after }))?;
        }
        if let Some((at, what)) = self.step {
            check(at, Duration::ZERO, Late::Guest(what))?;
        }
        if let Some(at) = self.outputs_end {
            check(at, Duration::ZERO, Late::Guest("its outputs took too long"))?;
        }
        Ok(nearest)
    }

    /// Whether a part of the job still has to be written.
    pub(super) fn has_to_send(&mut self) -> bool {
        self.outgoing.as_mut().is_some_and(Outgoing::has_more)
    }

    pub(super) fn send(&mut self, stream: &mut UnixStream) {
        let Some(outgoing) = &mut self.outgoing else { return };
        let written = outgoing.write_some(stream);
        if let Ok((bytes, _)) = written {
            self.usage.bytes_in += bytes as u64;
        }
        match written {
            Ok((_, true)) => self.expect(self.patience.stall, "it stopped reading its job"),
            Ok((_, false)) => {
                self.outgoing = None;
                self.phases.job_sent = Some(self.next_phase());
                self.expect(self.patience.start, "it did not start the builder in time");
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The guest stopped reading. Its last frames may still say why, so the stream is read on.
            Err(_) => self.outgoing = None,
        }
    }

    /// Handles the next frame. Returns the result of the job if this was the last frame.
    pub(super) fn accept(&mut self, frame: Frame) -> Result<Option<Finished>, SandboxError> {
        let event = self.order.accept(frame).map_err(hostile)?;
        self.handle(event)
    }

    fn handle(&mut self, event: order::Event) -> Result<Option<Finished>, SandboxError> {
        match event {
            order::Event::Hello(hello) => {
                self.kernel = hello.kernel;
                self.phases.guest_ready = Some(self.next_phase());
                let Some((job, network)) = self.job.take() else {
                    return Err(SandboxError::GuestProtocol { why: "it said hello again".into() });
                };
                self.outgoing = Some(Outgoing::job(job, network)?);
                self.expect(self.patience.stall, "it stopped reading its job");
            }
            order::Event::Started => {
                if self.outgoing.take().is_some() {
                    return Err(SandboxError::GuestProtocol {
                        why: "the builder was started before the whole job was read".into(),
                    });
                }
                self.phases.builder_started = Some(self.next_phase());
                self.started = Some(self.phase_began);
                self.last_log = self.phase_began;
                self.step = None;
            }
            order::Event::Log(bytes) => self.log(&bytes)?,
            order::Event::Exit(exit) => {
                self.phases.builder = Some(self.next_phase());
                self.usage.peak_memory = exit.peak_memory;
                self.exit = Some(exit);
                self.outputs_end = Some(self.phase_began + self.patience.outputs);
                self.expect(self.patience.stall, "it stopped between builder and outputs");
            }
            order::Event::OutputBegin(name) => {
                let sink = self.host.output(&name).map_err(|e| sink_error(&name, e))?;
                self.output = Some((name, sink));
                self.expect(self.patience.stall, "it stopped inside an output");
            }
            order::Event::OutputData(bytes) => {
                self.output_bytes = self.output_bytes.saturating_add(bytes.len() as u64);
                if self.output_bytes > self.limits.output_bytes {
                    return Err(SandboxError::OutputLimit { limit: self.limits.output_bytes });
                }
                if let Some((name, sink)) = &mut self.output {
                    sink.write_all(&bytes).map_err(|e| sink_error(name, e))?;
                }
                self.expect(self.patience.stall, "it stopped inside an output");
            }
            order::Event::OutputEnd => {
                if let Some((name, sink)) = self.output.take() {
                    sink.finish().map_err(|e| sink_error(&name, e))?;
                }
                self.expect(self.patience.stall, "it stopped between outputs");
            }
            order::Event::Done => return self.finish().map(Some),
            order::Event::Failed(failure) => return Err(failed(failure)),
        }
        Ok(None)
    }

    fn log(&mut self, bytes: &[u8]) -> Result<(), SandboxError> {
        let limit = self.limits.log_bytes;
        let room = limit - self.log_bytes;
        // The bytes that fit are passed on: the last lines before the limit show why it was reached.
        let fits = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if fits > 0 {
            let whole = if fits < bytes.len() { text::cut(bytes, fits) } else { fits };
            self.host.log(&bytes[..whole]);
            self.log_bytes += fits as u64;
            self.last_log = Instant::now();
        }
        if fits < bytes.len() {
            return Err(SandboxError::LogLimit { limit });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Finished, SandboxError> {
        self.phases.outputs = Some(self.next_phase());
        let Some(exit) = self.exit.take() else {
            return Err(SandboxError::GuestProtocol { why: "done without an exit".into() });
        };
        let limits = self.limits;
        if exit.status != ExitStatus::Exited(0) {
            if exit.process_limit {
                return Err(SandboxError::ProcessLimit { limit: limits.processes });
            }
            if exit.out_of_memory {
                return Err(SandboxError::OutOfMemory { mib: limits.memory_mib });
            }
        }
        Ok(Finished {
            status: match exit.status {
                ExitStatus::Exited(code) => BuilderStatus::Exited(code),
                ExitStatus::Signalled(signal) => BuilderStatus::Signalled(signal),
            },
            kernel: std::mem::take(&mut self.kernel),
        })
    }

    /// Ends the running phase and begins the next; returns its duration.
    fn next_phase(&mut self) -> Duration {
        let now = Instant::now();
        let took = now - self.phase_began;
        self.phase_began = now;
        took
    }

    fn expect(&mut self, within: Duration, or: &'static str) {
        self.step = Some((Instant::now() + within, or));
    }
}

fn sink_error(name: &str, source: io::Error) -> SandboxError {
    SandboxError::Sink { name: name.to_owned(), source }
}

pub(super) fn failed(failure: Failure) -> SandboxError {
    let why = failure.text;
    match failure.kind {
        FailureKind::OutputMissing { name } => SandboxError::OutputMissing { name },
        FailureKind::OutputInvalid { name } => SandboxError::OutputInvalid { name, why },
        FailureKind::CannotStart => SandboxError::CannotStart { why },
        FailureKind::Sandbox => SandboxError::Setup { why },
    }
}

/// The error for a guest that does not follow the protocol.
pub(super) fn hostile(error: impl std::error::Error) -> SandboxError {
    SandboxError::GuestProtocol { why: error.to_string() }
}
