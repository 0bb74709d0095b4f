//! What one member can see and do. Everything that decides about provenance, sharing and limits is here, on top of objects
//! and their index.

mod address;
mod annotation;
pub(crate) mod closure;
pub(crate) mod collect;
mod copies;
mod limits;
mod origins;
mod provenance;
pub(crate) mod records;
mod register;
pub(crate) mod seen;
pub(crate) mod staged;
pub(crate) mod view;
