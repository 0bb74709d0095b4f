//! The tools of the end-to-end tests: real agents, stock Nix clients, real keys and real git repositories.
//!
//! Everything here runs the built programs and checks what a user or a reader of the log would see; no test
//! uses the crates' internals. Helpers panic with all information (transcripts, the agent's log), because
//! their callers are tests.
//!
//! Assumed: root, bubblewrap, apt, a static busybox, OpenSSH and git on this machine, and
//! `tests/scripts/build` was run before. Not here: the netbooted box, whose tests start it themselves.

pub mod agent;
pub mod cargo;
pub mod clients;
pub mod disk;
pub mod drv;
pub mod git;
pub mod hostile;
pub mod http;
pub mod keys;
mod lock;
mod log;
pub mod place;
pub mod process;
pub mod published;
pub mod relay;
pub mod roster;
pub mod shared_box;
pub mod stock_server;
pub mod suite;

use std::time::Duration;

/// Upper bound for one step of a test, on a machine that does other work. Never a measurement.
pub const PATIENCE: Duration = Duration::from_secs(120);
