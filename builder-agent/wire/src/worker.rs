//! The server side of the worker protocol, which `nix-daemon --stdio` speaks behind `ssh-ng://`.
//!
//! ```text
//! let mut conn = Connection::accept(reader, writer, ServerInfo::new("2.34.0")).await?;
//! while let Some(request) = conn.next_request().await? {
//!     match request {
//!         Request::IsValidPath { path } => conn.reply(&Response::Bool(view.is_valid(&path))).await?,
//!         Request::AddToStoreNar { info, .. } => match ingest(info, conn.body()).await {
//!             Ok(()) => conn.reply(&Response::Done).await?,
//!             Err(error) => conn.fail(&Failure::new(error.to_string())).await?,
//!         },
//!         ..
//!     }
//! }
//! ```
//!
//! Every request is answered exactly once, by `reply`, `reply_nar` or `fail`; before that `log` and `run` can
//! show progress to the client. Errors of this crate end the connection: pass them to [`Connection::refuse`].
//!
//! Source of the facts: Nix's src/libstore/worker-protocol.{hh,cc}, worker-protocol-connection.cc, daemon.cc and
//! remote-store.cc, in versions 2.8, 2.26, 2.34 and 2.35.

mod body;
mod connection;
mod handshake;

mod log;
mod log_write;
mod op;

mod request;
mod request_read;
mod response;
mod response_write;
mod version;

pub use body::Body;
pub use connection::{Connection, NarReply, ServerInfo};
pub use log::{ActivityKind, Failure, Field, LogEvent, ResultKind, Verbosity};
pub use op::{Answer, BodyShape, OPS, Op, OpInfo};
pub use request::Request;
pub use response::Response;
pub use version::{CLIENT_MAGIC, Features, Protocol, SERVER_MAGIC, Version};

/// Parts that the test client shares with the server.
#[cfg(feature = "client")]
pub(crate) mod internal {
    pub(crate) use super::log_write::*;
    pub(crate) use super::response_write::{drv_output_id, realisation_json};
}
