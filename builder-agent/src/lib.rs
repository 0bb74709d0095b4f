//! The builder agent as a process: the parts it opens, its keys, and how it ends.
//!
//! The parts are crates, one folder each: `ssh` (who logs in, which command) over `daemon` (sessions of both protocols)
//! over `builds` (derivations to outputs), which use `substitute`, `sandbox` and `store`. This crate opens them with
//! the configuration, keeps the box's keys, and deletes the data of former members.
//! `docs/guides/operator.md` is the operator's guide; `docs/design/architecture.md` has the arrows.

mod control;
pub mod departed;
pub mod host_key;
pub mod logging;
pub mod memory;
pub mod mirror;
pub mod reload;
mod secret_file;
pub mod serve;
pub mod signing;
pub mod stay;
mod store_meter;
pub mod takeover;
