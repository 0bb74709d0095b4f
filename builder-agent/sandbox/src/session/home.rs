//! The session of a home: a machine in which a member works, until the agent ends it.
//!
//! [`start`] makes the machine and returns when it takes requests. A [`Control`] makes requests, from any thread; the
//! [`Keeper`], which owns the machine, sends them to the guest, reads its answers, and enforces every limit. The guest is
//! hostile: `guest::protocol` bounds each frame, `guest::order::home` says which may come, and each answer has a deadline.
//! Whatever the guest does or leaves undone, the keeper returns when it is told to.
//! Not here: what is said over the streams of sshds, and who may have a home (the agent).

mod control;
mod talk;

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use egress::Event;
use guest::order::home;
use guest::protocol::{self, Tag};

use control::{Attachments, Request, Requests};
pub use control::{Connection, Control, Port, RequestError, SmallFile};
use talk::Talk;

use super::conversation::failed;
use super::outgoing::Outgoing;
use super::stream::unavailable;
use crate::backend::{Backend, FarEnd, Image, Inputs, Machine, Started};
use crate::cancel::Cancel;
use crate::cpu_meter::CpuMeter;
use crate::error::SandboxError;
use crate::usage::Usage;

/// A home to start. The agent has decided everything in it.
#[derive(Debug, Clone)]
pub struct HomeJob {
    /// Names the home in logs; the guest does not get it.
    pub id: String,
    /// The member's UNIX user name there.
    pub user: String,
    pub hostname: String,
    pub vcpus: u8,
    pub memory_mib: u32,
    /// The root file system.
    pub root: Image,
    /// Whether it has a network. Without, it has a loopback interface and no other.
    pub network: bool,
    /// Written into `/etc`, in place of files of the image: certificates, as [`CERTIFICATES`](guest::etc::CERTIFICATES).
    pub etc: Vec<(String, Vec<u8>)>,
    /// The private key of the sshds, in the format of OpenSSH.
    pub ssh_host_key: String,
    /// The one key that opens the home, in one line.
    pub authorized_key: String,
    /// Most processes and threads of the member at one time. A fork above it fails.
    pub processes: u32,
    /// For `/etc/motd`.
    pub greeting: String,
}

/// Receives what a home does, as it happens.
pub trait HomeHost: Send {
    /// The home's network has connected something, or refused to.
    fn connected(&mut self, event: Event);
}

/// A home that runs.
pub struct Home {
    pub control: Control,
    pub keeper: Keeper,
}

/// Owns the machine. Dropping it ends the home.
pub struct Keeper {
    far_end: Box<dyn FarEnd>,
    talk: Talk,
    requests: Requests,
    memory_mib: u32,
    patience: Patience,
}

/// Why a home is over.
#[derive(Debug)]
pub enum HomeEnd {
    Cancelled,
    /// The guest died, broke its protocol, or did not answer in time.
    Failed(SandboxError),
}

/// Time limits for the guest's own work.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From the start of the machine to its `Hello`, as for builds.
    hello: Duration,
    /// Until the guest has read what the home is like: a few files.
    send: Duration,
    /// From then on, until it takes requests: mounts and a few files.
    start: Duration,
    /// From the first byte of a request to its answer. 60,000 mounts take seconds.
    answer: Duration,
}

const PATIENCE: Patience = Patience {
    hello: Duration::from_secs(180),
    send: Duration::from_secs(120),
    start: Duration::from_secs(120),
    answer: Duration::from_secs(60),
};

/// Starts a machine with a home in it. Blocks until it takes requests; on an error nothing of it is left.
pub fn start(backend: &dyn Backend, job: &HomeJob, cancel: &Cancel) -> Result<Home, SandboxError> {
    let inputs = Inputs::Image(job.root.clone());
    let machine = Machine {
        id: &job.id,
        vcpus: job.vcpus,
        memory_mib: job.memory_mib,
        inputs: &inputs,
        network: job.network,
        home: true,
    };
    let Started { far_end, streams, network, plugs } = backend.start(machine, cancel)?;
    let Some(plugs) = plugs else {
        let why =
            format!("the sandbox `{}` has no homes; `sandbox.backend = \"kvm\"` has them", backend.name());
        return Err(SandboxError::Unavailable { why });
    };
    let talk = Talk::new(streams.guest)?;
    start_in(far_end, talk, network, Box::new(plugs), job, PATIENCE, cancel)
}

/// Makes a home of a machine that runs.
fn start_in(
    mut far_end: Box<dyn FarEnd>,
    mut talk: Talk,
    network: Option<protocol::Network>,
    attachments: Box<dyn Attachments>,
    job: &HomeJob,
    patience: Patience,
    cancel: &Cancel,
) -> Result<Home, SandboxError> {
    let cancelled = cancel.event().map_err(|e| unavailable("cannot create an eventfd", e))?;
    let mut description = Some(description(job, network)?);
    talk.expect(patience.hello, "it did not say hello in time");
    loop {
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        match talk.turn(&[&cancelled], &mut *far_end)? {
            Some(home::Event::Hello(_)) => {
                // The order of frames has one hello.
                description.take().into_iter().for_each(|description| talk.send(description));
                talk.expect(patience.send, "it did not read the description of the home in time");
            }
            Some(home::Event::Started) if talk.is_sending() => {
                let why = "the home was ready before its description was read".to_owned();
                return Err(SandboxError::GuestProtocol { why });
            }
            Some(home::Event::Started) => break,
            Some(home::Event::Failed(failure)) => return Err(failed(failure)),
            Some(home::Event::Answered(_)) | None => {}
        }
        if description.is_none() && !talk.is_sending() {
            talk.expect_once(patience.start, "the home was not ready in time");
        }
    }
    talk.expect_nothing();
    let (control, requests) =
        control::pair(attachments).map_err(|e| unavailable("cannot create an eventfd", e))?;
    let keeper = Keeper { far_end, talk, requests, memory_mib: job.memory_mib, patience };
    Ok(Home { control, keeper })
}

fn description(job: &HomeJob, network: Option<protocol::Network>) -> Result<Outgoing<'static>, SandboxError> {
    let message = protocol::Home {
        user: job.user.clone(),
        hostname: job.hostname.clone(),
        network,
        ssh_host_key: job.ssh_host_key.clone(),
        authorized_key: job.authorized_key.clone(),
        etc: job.etc.iter().map(|(name, contents)| (name.clone(), contents.len() as u64)).collect(),
        processes: job.processes,
        greeting: job.greeting.clone(),
    };
    let frame = protocol::json_frame(Tag::Home, &message)
        .map_err(|e| SandboxError::CannotStart { why: format!("the description of the home: {e}") })?;
    Ok(Outgoing::new(frame, job.etc.iter().map(|(_, contents)| Cow::from(contents.clone())).collect()))
}

impl Keeper {
    /// To read the processor time of the home while it runs.
    pub fn cpu_meter(&self) -> Option<CpuMeter> {
        self.far_end.cpu_meter()
    }

    /// Blocks until the home is over: the guest has ended it, or `cancel`. Then nothing of the machine is left. Requests that
    /// still wait fail. Returns what the home cost, and why it is over.
    pub fn run(mut self, host: &mut dyn HomeHost, cancel: &Cancel) -> (HomeEnd, Usage) {
        let Err(error) = self.follow(host, cancel);
        self.requests.end();
        let mut usage = self.far_end.end();
        self.far_end.network_events().into_iter().for_each(|event| host.connected(event));
        (usage.bytes_in, usage.bytes_out) = self.talk.bytes();
        let end = match error {
            SandboxError::Cancelled => HomeEnd::Cancelled,
            SandboxError::GuestDied { console } if self.far_end.ran_out_of_memory(&console) => {
                HomeEnd::Failed(SandboxError::OutOfMemory { mib: self.memory_mib })
            }
            error => HomeEnd::Failed(error),
        };
        (end, usage)
    }

    fn follow(&mut self, host: &mut dyn HomeHost, cancel: &Cancel) -> Result<Infallible, SandboxError> {
        let cancelled = cancel.event().map_err(|e| unavailable("cannot create an eventfd", e))?;
        let mut asked = None;
        loop {
            if cancel.is_cancelled() {
                return Err(SandboxError::Cancelled);
            }
            self.far_end.network_events().into_iter().for_each(|event| host.connected(event));
            if asked.is_none()
                && let Some(Request { answer, number, frame, files, reply }) = self.requests.take()
            {
                asked = Some(reply);
                let files = files.into_iter().map(Cow::from).collect();
                self.talk.ask(answer, number, Outgoing::new(frame, files));
                self.talk.expect(self.patience.answer, "it did not answer a request in time");
            }
            match self.talk.turn(&[&cancelled, self.requests.waker()], &mut *self.far_end)? {
                Some(home::Event::Answered(_)) if self.talk.is_sending() => {
                    let why = "a request was answered before it was read".to_owned();
                    return Err(SandboxError::GuestProtocol { why });
                }
                Some(home::Event::Answered(result)) => {
                    self.talk.expect_nothing();
                    // Whoever asked may have gone.
                    asked.take().into_iter().for_each(|reply| drop(reply.send(result.clone())));
                }
                Some(home::Event::Failed(failure)) => return Err(failed(failure)),
                Some(home::Event::Hello(_) | home::Event::Started) | None => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "home_test.rs"]
mod tests;
