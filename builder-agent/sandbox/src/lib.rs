//! Runs one builder in a place of its own: a micro-VM (`kvm`), or, weaker, Linux namespaces (`namespace`).
//!
//! The far end is hostile from the first byte it sends. The agent's side (`session`) parses it with bounds and
//! enforces every limit; a backend only starts a far end, hands over one byte stream to it, and kills it.
//! Not here: what a derivation is, where inputs come from and where outputs go; the agent brings those as a [`Job`]
//! and a [`Host`].
#![allow(unsafe_code)]

mod child;
mod job;
#[path = "kvm/kvm.rs"]
pub mod kvm;
pub mod namespace;
pub mod probe;
pub mod session;
pub mod text;

pub use child::child_main_if_requested;
pub use job::{
    Backend, BuilderStatus, Cancel, Finished, Host, Image, Inputs, Job, Limits, OutputSink, Phases,
    SandboxError, Segment,
};
