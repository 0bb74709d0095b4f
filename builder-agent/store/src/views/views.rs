//! What one member can see and do.

pub(crate) mod address;
pub(crate) mod annotation;
pub(crate) mod closure;
pub(crate) mod collect;
pub(crate) mod origins;
pub(crate) mod records;
pub(crate) mod register;
pub(crate) mod view;
