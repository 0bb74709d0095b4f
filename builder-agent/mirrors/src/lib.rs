//! Mirrors: bare git repositories that the site configures, and that every home shows at `/NAME.git`.
//!
//! Two processes share a folder for each mirror. One, unprivileged, keeps it up to date ([`sync()`], with `git` as a child); the
//! agent takes what a home needs of it as an image without a copy ([`snapshot()`]).
//!
//! ```text
//! DIR/NAME.json         the status: how fresh the mirror is, and what went wrong (`status.rs`)
//! DIR/NAME/lock         held while the mirror is brought up to date
//! DIR/NAME/work.git/    what git fetches into and packs; only `sync` looks at it (`work.rs`)
//! DIR/NAME/shown/       what readers see, made of links to files of work.git, and replaced as a whole (`shown.rs`)
//! ```
//!
//! Upstream and the seed are hostile: `git` reads them, with limits on time and size (`git.rs`), and checks every object. The
//! process that runs `git` may be taken over by them, so [`snapshot()`] and [`Status::read`] trust nothing in the folder either.
//! Not here: when to synchronise, what a home does with the image, and how an operator writes the settings.

mod git;
mod names;
mod shown;
mod snapshot;
mod status;
mod sync;
mod work;

use std::path::PathBuf;
use std::time::Duration;

pub use git::GitError;
pub use names::{BadEntry, Repository, Seed};
pub use shown::ShowError;
pub use snapshot::{SnapshotError, snapshot};
pub use status::{Failure, Source, Status, StatusError};
pub use sync::{SyncError, Synced, sync};
pub use work::WorkError;

/// What an operator says about mirrors.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A folder for each mirror is below it.
    pub dir: PathBuf,
    pub repositories: Vec<Repository>,
    pub seeds: Vec<Seed>,
    /// Pause between two rounds.
    pub interval: Duration,
    /// Size of one mirror.
    pub max_bytes: u64,
    /// The certificate authorities for https. `None`: those of git.
    pub certificates: Option<PathBuf>,
    pub patience: Patience,
}

impl Settings {
    /// The folder of a mirror, for [`snapshot()`].
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// How long a child may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// To fetch all there is.
    pub first: Duration,
    /// To fetch what is new.
    pub later: Duration,
    /// To pack anew.
    pub packing: Duration,
    /// Without a sign of progress while fetching. git says nothing while it checks that all objects are there.
    pub quiet: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Self { first: minutes(360), later: minutes(60), packing: minutes(120), quiet: minutes(15) }
    }
}
