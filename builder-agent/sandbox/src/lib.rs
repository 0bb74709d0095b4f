//! Runs one builder in a machine of its own: a micro-VM (`kvm`), or, weaker, Linux namespaces (`namespace`).
//!
//! Two layers. A [`Backend`] starts a [`Machine`], hands over the streams into it, and ends it. A `session` above it
//! uses the machine for one purpose, today a build. The programs in the machine are hostile from the first byte that they
//! send: the session parses all bytes with bounds and enforces every limit.
//! Not here: derivations, the source of inputs and the destination of outputs; the agent gives those as a [`Job`] and a
//! [`Host`].
#![allow(unsafe_code)]

mod backend;
mod cancel;
mod certificates;
mod child;
mod cpu_meter;
mod descriptors;
mod error;
mod job;
pub mod kvm;
mod moment;
pub mod namespace;
pub mod parent;
mod paused;
mod plugs;
pub mod probe;
mod process;
mod session;
pub mod takeover;
pub mod text;
mod usage;

pub use backend::{Backend, FarEnd, Image, Inputs, Machine, Segment, Started, Streams};
pub use cancel::Cancel;
pub use certificates::certificates;
pub use child::child_main_if_requested;
pub use cpu_meter::CpuMeter;
pub use descriptors::Received;
pub use error::SandboxError;
pub use guest::etc::CERTIFICATES;
pub use guest::protocol::Bytes;
pub use job::{BuilderStatus, Finished, Host, Job, Limits, OutputSink, Phases, Run};
pub use moment::Moment;
pub use paused::{Paused, PausedMachine, PausedNetwork, PausedSession};
pub use plugs::Plugs;
pub use session::build::JobRunner;
pub use session::home;
pub use usage::Usage;
