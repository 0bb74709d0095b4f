//! Nix's protocols as bytes to typed requests and back, over any tokio stream.
//!
//! The client is a stranger: every length, count and nesting depth it names meets a limit from [`limits`]
//! before anything is allocated, and every error says which field of which operation was wrong.
//!
//! Not here: who may ask for what (`builder-agent`), where paths are kept (`store`), and what ssh does with
//! the bytes. This crate opens nothing and logs nothing.

#[cfg(feature = "test-client")]
pub mod client;
pub mod error;
pub mod limits;
pub mod nar;
pub mod types;
pub mod worker;

pub use error::WireError;
