//! What the front door knows for the commands of maintainers: the connections of this moment, and what happened before.
//!
//! Not here: the log, which is complete and leaves the machine. These records are bounded, and everything in them can be
//! asked for over ssh.

use std::path::Path;
use std::sync::Arc;

mod audit;
mod connections;
pub(crate) mod removals;

pub(crate) use audit::{Audit, Event, Kind, json_lines};
pub(crate) use connections::{Connections, Open, Seat, SessionGuard};
pub(crate) use removals::{Removal, Removals};

/// The records of one front door.
#[derive(Clone)]
pub(crate) struct Records {
    pub audit: Arc<Audit>,
    pub connections: Arc<Connections>,
    pub removals: Arc<Removals>,
}

impl Records {
    pub fn open(state_dir: &Path) -> Self {
        Self { audit: Audit::open(state_dir), connections: Arc::default(), removals: Arc::default() }
    }
}
