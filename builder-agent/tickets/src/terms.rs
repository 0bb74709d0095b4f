//! What a ticket allows, as its maker said.

use serde::{Deserialize, Serialize};

/// What the holder of a ticket may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// To ask about paths and to copy them: those that everybody sees.
    Read,
    /// To upload and build too.
    Build,
}

/// Set when a ticket is made, and never changed. `None`: no limit of the ticket's own; those of its maker hold anyway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Unix seconds. The ticket is of no use from this second on.
    pub expires: u64,
    /// Builds that may be started.
    pub uses: Option<u64>,
    /// Time of all builds together.
    pub max_build_seconds: Option<u64>,
    /// Bytes that the holder sends, of all sessions together.
    pub max_upload_bytes: Option<u64>,
    /// Builds at the same time.
    pub max_jobs: Option<u32>,
    pub scope: Scope,
    /// The ssh key, as `type base64`, that the holder has to prove besides.
    pub bind_key: Option<String>,
}

impl Terms {
    /// The limit on builds at the same time. With a limit on their time, one if the maker did not say otherwise: each
    /// running build gets an equal part of the time that is left, so that all together cannot take more.
    #[must_use]
    pub fn jobs(&self) -> Option<u32> {
        self.max_jobs.or_else(|| self.max_build_seconds.map(|_| 1))
    }
}
