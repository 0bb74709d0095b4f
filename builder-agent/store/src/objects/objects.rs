//! The files of objects: taken in, read, unpacked, removed.

pub(crate) mod contents;
pub(crate) mod ingest;
pub(crate) mod intake;
pub(crate) mod removal;
pub(crate) mod trees;
