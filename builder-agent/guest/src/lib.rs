//! The inner side of a sandbox: the program that runs beside the builder, and its protocol with the agent.
//!
//! `protocol` and `order` are compiled by both sides. Everything else runs inside, as PID 1 of a micro-VM or
//! of a bubblewrap sandbox, and is used by the binary `guest` only.
//! Not here: the start of a sandbox, and the host's time limits (crate `sandbox`).
#![allow(unsafe_code)]

pub mod etc;
pub mod order;
pub mod protocol;
