//! What nobody waits for: flushing, tidying up, and the repairs of a start.

pub(crate) mod keeper;
pub(crate) mod marker;
pub(crate) mod recovery;
