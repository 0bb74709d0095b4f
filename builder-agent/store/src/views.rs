//! Views: what one member can see and do. All decisions about provenance, sharing and limits are here, on top
//! of objects and their index.

mod address;
mod annotation;
pub(crate) mod closure;
pub(crate) mod collect;
mod copies;
mod limits;
mod origins;
mod provenance;
pub(crate) mod quota;
pub(crate) mod records;
mod register;
pub(crate) mod seen;
pub(crate) mod staged;
pub(crate) mod view;
