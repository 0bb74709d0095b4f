//! Sessions: each uses one running machine for one purpose.
//!
//! A session decides how large a machine is, has a [`Backend`](crate::Backend) start it, talks to the guest program in
//! it over its streams, enforces every limit, and ends it. The backend knows none of this. There are two kinds:
//!
//! - [`build`]: one job, from its inputs to its outputs.
//! - [`home`]: the machine in which a member works, until it is ended.

pub mod build;
mod conversation;
pub mod home;
mod outgoing;
pub(crate) mod stream;
