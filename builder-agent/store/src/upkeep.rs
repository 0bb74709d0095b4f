//! What goes on behind the users of a store: opening it, repairing it, flushing it, and removing what nothing names.
//!
//! This is where [`objects`](crate::objects) and [`index`](crate::index) meet: neither knows of the other, and what has to
//! happen in a certain order in both happens here.

pub(crate) mod base;
mod keeper;
mod marker;
pub(crate) mod recovery;
pub(crate) mod work;
