//! Which paths exist, for whom, with which object: in memory for questions, in a database for the next start.

pub(crate) mod change;
pub(crate) mod commit;
pub(crate) mod database;
pub(crate) mod holds;
pub(crate) mod memory;
