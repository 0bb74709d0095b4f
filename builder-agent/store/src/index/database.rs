//! The database that keeps the index when the process ends. Embedded: SQLite (`sqlite`).
//!
//! A database is read once, at the start, and written at each commit; all queries are answered from
//! [`super::memory`]. Rows of paths have ascending numbers and no number is used twice, so that one number
//! says what is on stable storage.
//!
//! One process writes. For a database that several boxes write (PostgreSQL), the leader of a commit would
//! first read the changes of the others; that step is not in this trait yet.

use nix::PathInfo;

use crate::error::DatabaseError;
use crate::index::account::Account;
use crate::index::change::Change;
use crate::index::rows::Origins;
use crate::types::Provenance;

/// The rows of one index. Used by one thread at a time.
pub(crate) trait Database: Send {
    /// Makes all changes or none. What is written survives this process, and a power loss as configured.
    fn write(&mut self, changes: &mut dyn Iterator<Item = &Change>) -> Result<(), DatabaseError>;

    /// Number of the last row of a path, even if that row has been deleted.
    fn last_row(&self) -> i64;

    /// Does work that should not happen during a commit, if there is enough of it. Called after each flush.
    fn checkpoint(&mut self) -> Result<(), DatabaseError>;
}

/// One row of a path.
pub(crate) struct Record {
    pub(crate) id: i64,
    pub(crate) info: PathInfo,
    pub(crate) provenance: Provenance,
    pub(crate) proven: bool,
    pub(crate) object_size: u64,
    pub(crate) origins: Origins,
    pub(crate) account: Account,
}

/// The whole contents of a database.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) paths: Vec<Record>,
    /// Everything but the paths, as the changes that create it.
    pub(crate) rest: Vec<Change>,
    /// How many rows could not be understood and were removed.
    pub(crate) unreadable: usize,
}
