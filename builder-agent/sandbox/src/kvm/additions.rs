//! The messages about a growing disk, over a socket of its own between the agent and the VMM of a home.
//!
//! To the VMM, for each image: an [`Addition`] as in `handover`, then its files in batches, each with one byte. Back: one
//! [`Answer`]. The VMM trusts the agent. The agent does not trust the VMM: an answer is bounded, and where the image lies on
//! the disk is the agent's own number.

use serde::{Deserialize, Serialize};

/// What the guest believes to be the size of the disk. Reads of what was not added yet fail.
pub const CAPACITY: u64 = 1 << 40;
/// Most bytes of an answer.
pub const ANSWER_MAX: u32 = 4 << 10;

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
