//! Sessions: each uses one running machine for one purpose.
//!
//! A session decides how large a machine is, has a [`Backend`](crate::Backend) start it, talks to the guest program in
//! it over its streams, enforces every limit, and ends it. The backend knows none of this. There is one kind:
//!
//! - [`build`]: one job, from its inputs to its outputs.
//!
//! A home, in which a member works and which has a network, would be another one, beside it.

pub mod build;
mod conversation;
mod outgoing;
