//! The serve protocol, server side: what `nix-store --serve --write` speaks behind `ssh://`.
//!
//! ```text
//! let mut conn = Connection::accept(reader, writer, limit).await?;
//! while let Some(request) = conn.next_request().await? {
//!     match request {
//!         Request::QueryValidPaths { paths, .. } => conn.reply(&Response::Paths(view.valid(&paths))).await?,
//!         Request::AddToStoreNar { info } => match ingest(info, conn.body()).await {
//!             Ok(()) => conn.reply(&Response::Done).await?,
//!             Err(error) => {
//!                 stderr.write(error).await?;
//!                 conn.reply(&Response::Refused).await?
//!             }
//!         },
//!         ..
//!     }
//! }
//! ```
//!
//! Requests and answers follow each other without any frame around them: there is no log and, but for builds and
//! uploads, no way to say that a request failed. What a person should read goes to the stderr of the ssh channel, which
//! is the agent's affair; a request that cannot be answered ends the connection.
//!
//! Source of the facts: Nix's src/libstore/serve-protocol.{hh,cc}, serve-protocol-connection.cc, legacy-ssh-store.cc and
//! export-import.cc, and `opServe` in nix-store.cc, in versions 2.8, 2.26, 2.34 and 2.35.

mod body;
mod connection;
mod op;
mod reply;
mod request;
mod request_read;

pub use body::Body;
pub use connection::Connection;
pub use op::{Answer, BodyShape, OPS, Op, OpInfo};
pub use reply::{ExportReply, InfosReply, NarReply, Response};
pub use request::{BuildOptions, ImportedInfo, Request};

use crate::worker::Version;

/// What a client sends first.
pub const CLIENT_MAGIC: u64 = 0x390c_9deb;

/// What a server answers.
pub const SERVER_MAGIC: u64 = 0x5452_eecb;

/// Between a NAR and what is said of it, in an export stream ("NIXE"). (Nix: `exportMagic`.)
pub const EXPORT_MAGIC: u64 = 0x4558_494e;

/// Version 2.`minor` of the serve protocol.
pub const fn version(minor: u8) -> Version {
    Version { major: 2, minor }
}

/// The oldest we speak.
pub const OLDEST: Version = version(1);

/// The newest: Nix 2.35. (Nix: `ServeProto::latest`.)
pub const NEWEST: Version = version(8);
