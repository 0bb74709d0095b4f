//! Results of builds, by build key: the same key has the same result, whichever member asks.
//!
//! The store does not check the results; the caller decides what a key covers and which failures are worth
//! keeping.

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::{CAHash, StorePath};

/// The end of a build with some key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRecord {
    /// The derivation that was built. Another one may have the same key.
    pub drv: StorePath,
    /// When it ended, in Unix seconds.
    pub time: i64,
    /// The outcome.
    pub end: RecordEnd,
}

/// The outcome of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordEnd {
    /// The build succeeded, with these outputs.
    Built {
        /// By output name.
        outputs: BTreeMap<String, RecordedOutput>,
        /// Name of the log file.
        log: Option<String>,
    },
    /// The build itself failed.
    Failed {
        /// Nix's number for it (`BuildResult::Status`).
        status: u32,
        /// The message for the client.
        message: String,
        /// Name of the log file.
        log: Option<String>,
    },
    /// The build was ended at a time limit. The same build may end in time with a longer one, or when the machine has
    /// less to do: a reader decides whether this is an answer.
    TimedOut {
        /// Which limit.
        limit: TimeLimit,
        /// The limit.
        seconds: u64,
        /// Name of the log file.
        log: Option<String>,
    },
}

/// A limit on the time of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// On the whole build.
    Wall,
    /// On the time without output.
    Silence,
}

impl RecordEnd {
    /// Whether there are outputs. Only so many records without are kept.
    pub(crate) fn is_built(&self) -> bool {
        matches!(self, RecordEnd::Built { .. })
    }
}

/// One output, with all that [`crate::View::adopt`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedOutput {
    /// Its path.
    pub path: StorePath,
    /// SHA-256 of its NAR, which names the object.
    pub nar_hash: [u8; 32],
    /// Bytes of the NAR.
    pub nar_size: u64,
    /// The paths that it refers to.
    pub references: BTreeSet<StorePath>,
    /// Its content address, if it has one.
    pub ca: Option<CAHash>,
}

impl BuildRecord {
    /// The objects this record names.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &[u8; 32]> {
        let outputs = match &self.end {
            RecordEnd::Built { outputs, .. } => Some(outputs),
            RecordEnd::Failed { .. } | RecordEnd::TimedOut { .. } => None,
        };
        outputs.into_iter().flat_map(BTreeMap::values).map(|output| &output.nar_hash)
    }
}
