//! Images for a growing disk, which arrive while its VM runs, over a socket of their own between the agent and the VMM of a
//! home.
//!
//! To the VMM, for each image: an [`Addition`] as in `handover`, then its files in batches, each with one byte. Back: one
//! [`Answer`]. The VMM trusts the agent. The agent does not trust the VMM: an answer is bounded, and where the image lies on
//! the disk is the agent's own number.
//! The VMM receives and maps in a thread of its own: an image of many parts takes a while, and the events of the devices do
//! not wait for it. A file is closed as soon as it is mapped, so that few are open at once.

use std::io;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::handover::{self, Segments};
use super::memory::MemoryError;
use super::memory::growing::Grower;
use super::vmm::chain;

/// Most bytes of an answer.
pub const ANSWER_MAX: u32 = 4 << 10;
/// Longest reason in an answer, in characters; of up to four bytes each, or six in JSON.
const REASON_MAX: usize = 500;

/// An image that goes behind those that the disk has.
#[derive(Debug, Serialize, Deserialize)]
pub struct Addition {
    /// Offset and length of each segment, in the order of the descriptors.
    pub segments: Vec<(u64, u64)>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// The guest can read it.
    Mapped,
    /// The disk is as it was before.
    Refused { why: String },
}

/// The VMM's side of a growing disk.
pub struct Additions {
    agent: UnixStream,
    disk: Grower,
}

impl Additions {
    pub fn new(agent: UnixStream, disk: Grower) -> Additions {
        Additions { agent, disk }
    }

    /// Serves the agent as long as there is one. When it has hung up, or cannot be understood, the disk stays as it is.
    pub fn run(mut self) {
        while self.serve().is_ok() {}
    }

    /// Receives one image, and answers.
    fn serve(&mut self) -> io::Result<()> {
        let Addition { segments } = handover::receive_json(&self.agent)?;
        let answer = match self.map(&segments)? {
            Ok(()) => {
                self.disk.show();
                Answer::Mapped
            }
            Err(error) => {
                self.disk.abandon();
                Answer::Refused { why: chain(&error).chars().take(REASON_MAX).collect() }
            }
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
