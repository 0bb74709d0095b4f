//! Runs one builder in a machine of its own: a micro-VM (`kvm`), or, weaker, Linux namespaces (`namespace`).
//!
//! Two layers. A [`Backend`] starts a [`Machine`], hands over the streams into it, and ends it. A `session` above it
//! says what is done in the machine: today that is a build. What is in the machine is hostile from the first byte it
//! sends: the session parses it with bounds and enforces every limit.
//! Not here: what a derivation is, where inputs come from and where outputs go; the agent brings those as a [`Job`]
//! and a [`Host`].
#![allow(unsafe_code)]

mod backend;
mod cancel;
mod child;
mod error;
mod job;
#[path = "kvm/kvm.rs"]
pub mod kvm;
#[path = "namespace/namespace.rs"]
pub mod namespace;
pub mod probe;
#[path = "session/session.rs"]
mod session;
pub mod text;
mod usage;

pub use backend::{Backend, FarEnd, Image, Inputs, Machine, Segment, Started, Streams};
pub use cancel::Cancel;
pub use child::child_main_if_requested;
pub use error::SandboxError;
pub use job::{BuilderStatus, Finished, Host, Job, Limits, OutputSink, Phases, Run};
pub use session::build::JobRunner;
pub use usage::Usage;
