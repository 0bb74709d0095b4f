//! The agent's side of a running sandbox: sends the job, reads the guest's frames, enforces every limit.
//!
//! The guest is hostile. `guest::protocol` bounds each frame, `guest::order` their sequence; here are the budgets
//! of a whole build: time, silence, log bytes, output bytes. Whatever the far end does or leaves undone, `drive`
//! returns; only a `Host` that blocks can hold it.
//! Not here: starting and killing the far end. The backend does both, the second also after an error from here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::order::{Event, Order};
use guest::protocol::{self, Bytes, Decoder, ExitStatus, Failure, FailureKind, GuestLimits, MAX_DATA, Tag};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::job::{BuilderStatus, Cancel, Finished, Host, Inputs, Job, OutputSink, Phases, SandboxError};
use crate::text;

/// What a backend knows about its far end besides the stream.
pub trait FarEnd {
    /// The last it said outside the protocol (console, stderr), bounded. Asked once, when the stream ended early.
    fn last_words(&mut self) -> String;
}

/// How long the guest's own work may take, where no limit of the job applies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the start of the far end to its hello. A VM in a VM without hardware help boots in 4 s when idle.
    pub hello: Duration,
    /// Between two signs of progress while the job is sent or outputs come.
    pub stall: Duration,
    /// From the last byte of the job to the start of the builder: mounts and a few files.
    pub start: Duration,
    /// All outputs together; stops a guest that sends a byte per `stall`.
    pub outputs: Duration,
}

pub(crate) const PATIENCE: Patience = Patience {
    hello: Duration::from_secs(180),
    stall: Duration::from_secs(120),
    start: Duration::from_secs(120),
    outputs: Duration::from_secs(3600),
};

/// Runs one job over `stream` to its end.
///
/// On error sinks of complete outputs have been finished, a half one was dropped unfinished, and the far end may
/// still be running: the caller kills it.
pub fn drive(
    stream: UnixStream,
    job: &Job,
    host: &mut dyn Host,
    cancel: &Cancel,
    far_end: &mut dyn FarEnd,
) -> Result<Finished, SandboxError> {
    drive_with(PATIENCE, stream, job, host, cancel, far_end)
}

pub(crate) fn drive_with(
    patience: Patience,
    mut stream: UnixStream,
    job: &Job,
    host: &mut dyn Host,
    cancel: &Cancel,
    far_end: &mut dyn FarEnd,
) -> Result<Finished, SandboxError> {
    let unavailable = |what: &str, e: io::Error| SandboxError::Unavailable { why: format!("{what}: {e}") };
    let cancelled = cancel.event().map_err(|e| unavailable("cannot create an eventfd", e))?;
    stream
        .set_nonblocking(true)
        .map_err(|e| unavailable("cannot make the guest's stream non-blocking", e))?;

    let mut session = Session::new(patience, job, host);
    let mut decoder = Decoder::new();
    let mut buffer = vec![0u8; MAX_DATA];
    loop {
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        let timeout = match session.time_left() {
            Ok(left) => left,
            Err(Late::Limit(error)) => return Err(error),
            Err(Late::Guest(what)) => {
                return Err(SandboxError::GuestDied { console: last_words(what, far_end) });
            }
        };
        let writing = session.outgoing.as_mut().is_some_and(Outgoing::has_more);
        let interest = if writing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let ready = {
            let mut fds = [PollFd::new(&stream, interest), PollFd::new(&*cancelled, PollFlags::IN)];
            // Rounded up, so that a deadline is over when poll says so and we do not spin towards it.
            let timeout = timeout.map(|t| t + Duration::from_millis(1));
            let timespec = timeout.and_then(|t| Timespec::try_from(t).ok());
            match poll(&mut fds, timespec.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(unavailable("cannot wait for the guest", e.into())),
            }
            fds[0].revents()
        };
        if writing && ready.contains(PollFlags::OUT) {
            session.send(&mut stream);
        }
        if !ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            continue;
        }
        let n = match stream.read(&mut buffer) {
            Ok(0) => {
                let what =
                    if decoder.is_between_frames() { "it hung up" } else { "it hung up inside a frame" };
                return Err(SandboxError::GuestDied { console: last_words(what, far_end) });
            }
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(e) => {
                return Err(SandboxError::GuestDied { console: last_words(&e.to_string(), far_end) });
            }
        };
        let mut input = &buffer[..n];
        while let Some(frame) = decoder.next(&mut input).map_err(hostile)? {
            let event = session.order.accept(frame).map_err(hostile)?;
            if let Some(finished) = session.handle(event)? {
                // What a guest says after its last word is never read.
                return Ok(finished);
            }
            if cancel.is_cancelled() {
                return Err(SandboxError::Cancelled);
            }
        }
    }
}

fn hostile(error: impl std::error::Error) -> SandboxError {
    SandboxError::GuestProtocol { why: error.to_string() }
}

fn last_words(what: &str, far_end: &mut dyn FarEnd) -> String {
    let words = protocol::bounded(far_end.last_words().trim_end());
    if words.is_empty() { format!("({what})") } else { format!("{words}\n({what})") }
}

/// A deadline that is over, and whose it was.
enum Late {
    Limit(SandboxError),
    Guest(&'static str),
}

struct Session<'a> {
    patience: Patience,
    job: &'a Job,
    host: &'a mut dyn Host,
    order: Order,
    /// The job on its way to the guest; from the hello on.
    outgoing: Option<Outgoing<'a>>,
    /// When the guest must have made its next step, and what that is.
    step: Option<(Instant, &'static str)>,
    /// When the guest must be done with its outputs.
    outputs_end: Option<Instant>,
    started: Option<Instant>,
    last_log: Instant,
    log_bytes: u64,
    output_bytes: u64,
    output: Option<(String, Box<dyn OutputSink>)>,
    kernel: String,
    exit: Option<protocol::Exit>,
    phases: Phases,
    phase_began: Instant,
}

impl<'a> Session<'a> {
    fn new(patience: Patience, job: &'a Job, host: &'a mut dyn Host) -> Session<'a> {
        let now = Instant::now();
        Session {
            patience,
            job,
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
        }
    }

    /// Time until the next deadline; none if the job has no limits and the builder runs.
    fn time_left(&self) -> Result<Option<Duration>, Late> {
        let now = Instant::now();
        let limits = &self.job.limits;
        let mut nearest: Option<Duration> = None;
        let mut check = |from: Instant, after: Duration, late: Late| {
            // `None`: so far in the future that the clock cannot say it.
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

    fn send(&mut self, stream: &mut UnixStream) {
        let Some(outgoing) = &mut self.outgoing else { return };
        match outgoing.write_some(stream) {
            Ok(true) => self.expect(self.patience.stall, "it stopped reading its job"),
            Ok(false) => {
                self.outgoing = None;
                self.phase("job sent");
                self.expect(self.patience.start, "it did not start the builder in time");
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // It closed its ear. Its mouth may still hold the reason; the reader finds that, or the end.
            Err(_) => self.outgoing = None,
        }
    }

    fn handle(&mut self, event: Event) -> Result<Option<Finished>, SandboxError> {
        match event {
            Event::Hello(hello) => {
                self.kernel = hello.kernel;
                self.phase("guest ready");
                self.outgoing = Some(Outgoing::new(self.job)?);
                self.expect(self.patience.stall, "it stopped reading its job");
            }
            Event::Started => {
                if self.outgoing.take().is_some() {
                    return Err(SandboxError::GuestProtocol {
                        why: "the builder was started before the whole job was read".into(),
                    });
                }
                self.phase("builder started");
                self.started = Some(self.phase_began);
                self.last_log = self.phase_began;
                self.step = None;
            }
            Event::Log(bytes) => self.log(&bytes)?,
            Event::Exit(exit) => {
                self.phase("builder");
                self.exit = Some(exit);
                self.outputs_end = Some(self.phase_began + self.patience.outputs);
                self.expect(self.patience.stall, "it stopped between builder and outputs");
            }
            Event::OutputBegin(name) => {
                let sink = self.host.output(&name).map_err(|e| sink_error(&name, e))?;
                self.output = Some((name, sink));
                self.expect(self.patience.stall, "it stopped inside an output");
            }
            Event::OutputData(bytes) => {
                self.output_bytes = self.output_bytes.saturating_add(bytes.len() as u64);
                if self.output_bytes > self.job.limits.output_bytes {
                    return Err(SandboxError::OutputLimit { limit: self.job.limits.output_bytes });
                }
                if let Some((name, sink)) = &mut self.output {
                    sink.write_all(&bytes).map_err(|e| sink_error(name, e))?;
                }
                self.expect(self.patience.stall, "it stopped inside an output");
            }
            Event::OutputEnd => {
                if let Some((name, sink)) = self.output.take() {
                    sink.finish().map_err(|e| sink_error(&name, e))?;
                }
                self.expect(self.patience.stall, "it stopped between outputs");
            }
            Event::Done => return self.finish().map(Some),
            Event::Failed(failure) => return Err(failed(failure)),
        }
        Ok(None)
    }

    fn log(&mut self, bytes: &[u8]) -> Result<(), SandboxError> {
        let limit = self.job.limits.log_bytes;
        let room = limit - self.log_bytes;
        // What fits is passed on: the last lines before the limit tell why it was reached.
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
        self.phase("outputs");
        let Some(exit) = self.exit.take() else {
            return Err(SandboxError::GuestProtocol { why: "done without an exit".into() });
        };
        let limits = &self.job.limits;
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
            phases: std::mem::take(&mut self.phases),
            vmm_overhead_bytes: None,
        })
    }

    /// Ends the running phase under this name.
    fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.0.push((name, now - self.phase_began));
        self.phase_began = now;
    }

    fn expect(&mut self, within: Duration, or: &'static str) {
        self.step = Some((Instant::now() + within, or));
    }
}

fn sink_error(name: &str, source: io::Error) -> SandboxError {
    SandboxError::Sink { name: name.to_owned(), source }
}

fn failed(failure: Failure) -> SandboxError {
    let why = failure.text;
    match failure.kind {
        FailureKind::OutputMissing { name } => SandboxError::OutputMissing { name },
        FailureKind::OutputInvalid { name } => SandboxError::OutputInvalid { name, why },
        FailureKind::CannotStart => SandboxError::CannotStart { why },
        FailureKind::Sandbox => SandboxError::Setup { why },
    }
}

/// The job as frames, made one at a time: files may be large and are not copied together.
struct Outgoing<'a> {
    frame: Vec<u8>,
    written: usize,
    files: std::slice::Iter<'a, (String, Vec<u8>)>,
    rest: &'a [u8],
}

impl<'a> Outgoing<'a> {
    fn new(job: &'a Job) -> Result<Outgoing<'a>, SandboxError> {
        let message = protocol::Job {
            system: job.system.clone(),
            builder: Bytes(job.builder.clone()),
            args: job.args.iter().cloned().map(Bytes).collect(),
            env: job.env.iter().map(|(name, value)| (Bytes(name.clone()), Bytes(value.clone()))).collect(),
            files: job.files.iter().map(|(name, contents)| (name.clone(), contents.len() as u64)).collect(),
            outputs: job.outputs.clone(),
            closure: matches!(&job.inputs, Inputs::Image(image) if !image.segments.is_empty()),
            limits: GuestLimits { processes: job.limits.processes, memory_mib: job.limits.memory_mib },
        };
        let frame = protocol::json_frame(Tag::Job, &message)
            .map_err(|e| SandboxError::CannotStart { why: e.to_string() })?;
        Ok(Outgoing { frame, written: 0, files: job.files.iter(), rest: &[] })
    }

    /// Makes the next frame when the last is written; false at the end.
    fn has_more(&mut self) -> bool {
        while self.written == self.frame.len() {
            if self.rest.is_empty() {
                match self.files.next() {
                    Some((_, contents)) => self.rest = contents,
                    None => return false,
                }
                continue;
            }
            let (piece, rest) = self.rest.split_at(self.rest.len().min(MAX_DATA));
            self.frame.clear();
            self.frame.extend_from_slice(&protocol::header(Tag::FileData, piece.len()));
            self.frame.extend_from_slice(piece);
            self.rest = rest;
            self.written = 0;
        }
        true
    }

    /// One write; true while there is more.
    fn write_some(&mut self, stream: &mut UnixStream) -> io::Result<bool> {
        self.written += stream.write(&self.frame[self.written..])?;
        Ok(self.has_more())
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
