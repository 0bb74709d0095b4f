//! What the agent adds to the VM of a home while it runs: images for its growing disk, and streams for ports of its vsock. They
//! arrive over a socket of their own between the agent and the VMM.
//!
//! To the VMM: an [`Addition`] as in `handover`, then its descriptors in batches, each with one byte. Back: one [`Answer`]
//! for each. The VMM trusts the agent. The agent does not trust the VMM: an answer is bounded, and where an image lies on the
//! disk is the agent's own number.
//! The VMM receives and maps in a thread of its own: an image of many parts takes a while, and the events of the devices do
//! not wait for it. A file is closed as soon as it is mapped, so that few are open at once.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::Bus;
use super::devices::PlugError;
use super::events::Kick;
use super::handover::{self, Segments};
use super::memory::MemoryError;
use super::memory::growing::Grower;
use super::vmm::chain;

/// Most bytes of an answer.
pub const ANSWER_MAX: u32 = 4 << 10;
/// Longest reason in an answer, in characters; of up to four bytes each, or six in JSON.
const REASON_MAX: usize = 500;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "add", rename_all = "lowercase")]
pub enum Addition {
    /// An image that goes behind those that the disk has, with a file for each segment.
    Image {
        /// Offset and length of each segment, in the order of the descriptors.
        segments: Vec<(u64, u64)>,
    },
    /// One descriptor, which is a stream, for one connection of the guest to this port. It is non-blocking, which the agent
    /// has seen to: the VMM lacks the system call.
    Stream { port: u32 },
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// The guest can read it, or connect to it.
    Done,
    /// All is as it was before.
    Refused { why: String },
}

/// The VMM's side.
pub struct Additions {
    agent: UnixStream,
    disk: Grower,
    ports: Ports,
}

/// The way to the vsock, whose events another thread serves.
pub struct Ports {
    machine: Arc<Bus>,
    vsock: usize,
    plugged: EventFd,
}

impl Ports {
    /// For the device with this index. The event thread is to serve the notification.
    pub fn new(machine: Arc<Bus>, vsock: usize) -> io::Result<(Ports, Kick)> {
        let plugged = EventFd::new(EFD_NONBLOCK)?;
        let kick = Kick { event: plugged.try_clone()?, device: vsock, queue: 0 };
        Ok((Ports { machine, vsock, plugged }, kick))
    }

    fn plug(&self, port: u32, stream: UnixStream) -> Result<(), PlugError> {
        self.machine.device(self.vsock).plug(port, stream)?;
        // From now on the event thread waits for the agent's end to hang up, even if the guest never connects. Adding one to
        // a counter that is read again and again cannot fail.
        let _ = self.plugged.write(1);
        Ok(())
    }
}

impl Additions {
    pub fn new(agent: UnixStream, disk: Grower, ports: Ports) -> Additions {
        Additions { agent, disk, ports }
    }

    /// Serves the agent as long as there is one. When it has hung up, or cannot be understood, all stays as it is.
    pub fn run(mut self) {
        while self.serve().is_ok() {}
    }

    /// Receives one addition, and answers.
    fn serve(&mut self) -> io::Result<()> {
        let done = match handover::receive_json(&self.agent)? {
            Addition::Image { segments } => {
                let mapped = self.map(&segments)?;
                match &mapped {
                    Ok(()) => self.disk.show(),
                    Err(_) => self.disk.abandon(),
                }
                mapped.map_err(|error| chain(&error))
            }
            Addition::Stream { port } => {
                let mut descriptors = handover::receive_batch(&self.agent)?;
                let (Some(stream), true) = (descriptors.pop(), descriptors.is_empty()) else {
                    return Err(io::Error::other("a stream is one descriptor"));
                };
                self.ports.plug(port, stream.into()).map_err(|error| error.to_string())
            }
        };
        let answer = match done {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Refused { why: why.chars().take(REASON_MAX).collect() },
        };
        handover::send_json(&self.agent, &answer)
    }

    /// Maps the segments with the files that follow. All files are received, also after one that cannot be mapped: the next
    /// message is behind them.
    fn map(&mut self, segments: &[(u64, u64)]) -> io::Result<Result<(), MemoryError>> {
        let mut mapped = Ok(());
        let mut left = segments.iter().enumerate();
        for batch in (Segments { socket: &self.agent, left: segments.len() }) {
            for (file, (index, segment)) in batch?.iter().zip(&mut left) {
                mapped = mapped.and_then(|()| self.disk.map(index, file, *segment));
            }
        }
        Ok(mapped)
    }
}

#[cfg(test)]
#[path = "additions_test.rs"]
mod tests;
