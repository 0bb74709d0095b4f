//! Background work of a store: opening it, repairing it, flushing it, and removing objects that no row names.
//!
//! [`objects`](crate::objects) and [`index`](crate::index) do not know of each other; steps that must happen
//! in a certain order in both of them are here.

pub(crate) mod base;
pub(crate) mod evict;
mod keeper;
mod marker;
pub(crate) mod recovery;
pub(crate) mod room;
pub(crate) mod space;
pub(crate) mod work;
