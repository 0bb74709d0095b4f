//! Nix's protocols: turns bytes into typed requests, and answers into bytes, over any tokio stream.
//!
//! The client is not trusted: every length, count and nesting depth that it sends is checked against a limit
//! from [`limits`] before anything is allocated, and every error says which field of which operation was
//! wrong.
//!
//! Not here: access rights (`builder-agent`), the storage of paths (`store`), and the transport by ssh. This
//! crate opens no files or connections and writes no logs.

#[cfg(feature = "client")]
pub mod client;
pub mod error;
mod input;
pub mod limits;
pub mod nar;
mod nar_body;
mod output;
mod patience;
mod read;
pub mod serve;
#[cfg(feature = "test-client")]
pub mod serve_client;
mod terms;
pub mod types;
pub mod worker;
mod write;

pub use error::WireError;
pub use patience::{PIECE, PatientWriter};
pub use terms::{Meter, Terms};
