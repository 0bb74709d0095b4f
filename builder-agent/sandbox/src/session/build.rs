//! The session of a build: starts a machine, sends the job, reads the guest's frames, ends the machine.
//!
//! The guest is hostile. `guest::protocol` bounds each frame, `guest::order` their sequence, and `conversation` has the
//! budgets of a whole build. Whatever the guest does or leaves undone, `run` returns; only a `Host` that blocks can
//! hold it.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::protocol::{self, Bytes, Decoder, MAX_DATA};
use rustix::event::PollFlags;

use super::conversation::{Conversation, Late, PATIENCE, hostile};
use super::stream::{died, unavailable, wait};
use crate::backend::{Backend, FarEnd, Started, Streams};
use crate::cancel::Cancel;
use crate::error::SandboxError;
use crate::job::{BuilderStatus, Finished, Host, Job, Limits, Run};
use crate::paused::{Paused, PausedSession};

/// Runs jobs to their end. The agent uses a sandbox through this trait, which every [`Backend`] implements.
pub trait JobRunner: Send + Sync {
    /// The name in logs.
    fn name(&self) -> &'static str;

    /// Blocks until the job is over. Nothing of the machine is left running when it returns.
    fn run(&self, job: Job, host: &mut dyn Host, cancel: &Cancel) -> Run;
}

impl<B: Backend> JobRunner for B {
    fn name(&self) -> &'static str {
        Backend::name(self)
    }

    fn run(&self, job: Job, host: &mut dyn Host, cancel: &Cancel) -> Run {
        let began = Instant::now();
        match self.start(job.machine(), cancel) {
            Ok(Started { mut far_end, streams, network, plugs: _ }) => {
                let machine = InMachine { streams, network, started: began.elapsed() };
                run_in(&mut *far_end, machine, &job, host, cancel)
            }
            Err(error) => Err(error).into(),
        }
    }
}

/// What the start of a machine gave, and how long it took.
pub(crate) struct InMachine {
    pub streams: Streams,
    pub network: Option<protocol::Network>,
    pub started: Duration,
}

/// Runs a job in a machine, and ends the machine.
///
/// On error the sinks of complete outputs have been finished, and that of an incomplete one was dropped
/// unfinished.
pub(crate) fn run_in(
    far_end: &mut dyn FarEnd,
    machine: InMachine,
    job: &Job,
    host: &mut dyn Host,
    cancel: &Cancel,
) -> Run {
    let InMachine { streams, network, started } = machine;
    let mut conversation = Conversation::new(PATIENCE, job, network, host);
    conversation.phases.machine_started = Some(started);
    let run = drive(conversation, streams.guest, &[], cancel, far_end);
    conclude(run, far_end, &job.limits, host)
}

/// Goes on with a job in a machine that another program has paused, and ends the machine. `received`: the first bytes of a
/// frame.
pub(crate) fn go_on_in(
    far_end: &mut dyn FarEnd,
    stream: UnixStream,
    received: &[u8],
    paused: &PausedSession,
    host: &mut dyn Host,
    cancel: &Cancel,
) -> Run {
    let conversation = Conversation::resumed(PATIENCE, paused, host);
    let run = drive(conversation, stream, received, cancel, far_end);
    conclude(run, far_end, &paused.limits, host)
}

fn conclude(mut run: Run, far_end: &mut dyn FarEnd, limits: &Limits, host: &mut dyn Host) -> Run {
    let used = far_end.end();
    far_end.network_events().into_iter().for_each(|event| host.connected(event));
    run.usage.network = used.network;
    run.usage.cpu = used.cpu;
    run.usage.vmm_overhead = used.vmm_overhead;
    // The host's number if there is one, otherwise the guest's.
    run.usage.peak_memory = used.peak_memory.or(run.usage.peak_memory);
    match &run.result {
        Err(SandboxError::GuestDied { console }) if far_end.ran_out_of_memory(console) => {
            run.result = Err(SandboxError::OutOfMemory { mib: limits.memory_mib });
        }
        _ => {}
    }
    run
}

/// Runs the protocol with the guest until the job is over. The machine may still be running then.
pub(super) fn drive(
    mut conversation: Conversation<'_>,
    stream: UnixStream,
    received: &[u8],
    cancel: &Cancel,
    far_end: &mut dyn FarEnd,
) -> Run {
    let result = follow(&mut conversation, stream, received, cancel, far_end);
    let Conversation { phases, usage, .. } = conversation;
    Run { result, phases, usage }
}

fn follow(
    conversation: &mut Conversation<'_>,
    mut stream: UnixStream,
    received: &[u8],
    cancel: &Cancel,
    far_end: &mut dyn FarEnd,
) -> Result<Finished, SandboxError> {
    let no_event = |e| unavailable("cannot create an eventfd", e);
    let cancelled = cancel.event().map_err(no_event)?;
    let asked_to_pause = cancel.pause_event().map_err(no_event)?;
    stream
        .set_nonblocking(true)
        .map_err(|e| unavailable("cannot make the guest's stream non-blocking", e))?;
    let mut network = Network { is_there: far_end.network_stream().is_some(), ended: None };
    let mut decoder = Decoder::new();
    if decoder.next(&mut &*received).map_err(hostile)?.is_some() {
        return Err(SandboxError::GuestProtocol { why: "a whole frame was left over".into() });
    }
    let mut buffer = vec![0u8; MAX_DATA];
    loop {
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        if cancel.is_asked_to_pause()
            && conversation.is_building()
            && network.ended.is_none()
            && let Some(machine) = far_end.written_down()
        {
            let began = Instant::now();
            cancel.pause(Paused {
                machine,
                stream: stream.as_raw_fd(),
                received: Bytes(decoder.begun()),
                session: conversation.written_down(),
            });
            conversation.was_paused(began.elapsed());
            continue;
        }
        let timeout = match conversation.time_left() {
            Ok(left) => left,
            Err(Late::Limit(error)) => return Err(error),
            Err(Late::Guest(what)) => return Err(died(what, far_end)),
        };
        network.listen(far_end, conversation);
        let writing = conversation.has_to_send();
        let wakers = [&*cancelled, &*asked_to_pause];
        let timeout = timeout.into_iter().chain(network.time_left()).min();
        let ready = wait(&stream, &wakers, far_end.network_stream(), writing, timeout)?;
        if writing && ready.contains(PollFlags::OUT) {
            conversation.send(&mut stream);
        }
        if !ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            if network.time_left().is_some_and(|left| left.is_zero()) {
                return Err(SandboxError::NetworkEnded);
            }
            continue;
        }
        let n = match stream.read(&mut buffer) {
            Ok(0) if decoder.is_between_frames() => return Err(died("it hung up", far_end)),
            Ok(0) => return Err(died("it hung up inside a frame", far_end)),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(e) => return Err(died(&e.to_string(), far_end)),
        };
        conversation.usage.bytes_out += n as u64;
        let mut input = &buffer[..n];
        while let Some(frame) = decoder.next(&mut input).map_err(hostile)? {
            if let Some(finished) = conversation.accept(frame)? {
                // Bytes after the last frame are never read.
                network.listen(far_end, conversation);
                let has_failed = finished.status != BuilderStatus::Exited(0);
                return if has_failed && network.ended.is_some() {
                    Err(SandboxError::NetworkEnded)
                } else {
                    Ok(finished)
                };
            }
            if cancel.is_cancelled() {
                return Err(SandboxError::Cancelled);
            }
        }
    }
}

/// From the end of a network to the end of its machine, if that has ended for a reason of its own, which is then told.
const MOMENT: Duration = Duration::from_millis(500);

/// The network of the machine.
struct Network {
    is_there: bool,
    /// It has ended before the machine did.
    ended: Option<Instant>,
}

impl Network {
    fn listen(&mut self, far_end: &mut dyn FarEnd, conversation: &mut Conversation<'_>) {
        far_end.network_events().into_iter().for_each(|event| conversation.connected(event));
        if self.is_there && far_end.network_stream().is_none() {
            self.ended.get_or_insert_with(Instant::now);
        }
    }

    /// How long the machine may go on without.
    fn time_left(&self) -> Option<Duration> {
        self.ended.map(|ended| MOMENT.saturating_sub(ended.elapsed()))
    }
}

#[cfg(test)]
#[path = "build_test.rs"]
mod tests;
