//! The server side of the serve protocol, which `nix-store --serve --write` speaks behind `ssh://`.
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
//! Requests and answers follow each other without frames: there is no log and, except for builds and uploads,
//! no way to say that a request failed. Messages for the user go to the stderr of the ssh channel, which the
//! agent writes; a request that cannot be answered ends the connection.
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

/// The first word that a client sends.
pub const CLIENT_MAGIC: u64 = 0x390c_9deb;

/// The server's answer to it.
pub const SERVER_MAGIC: u64 = 0x5452_eecb;

/// Separates a NAR from its description in an export stream ("NIXE"). (Nix: `exportMagic`.)
pub const EXPORT_MAGIC: u64 = 0x4558_494e;

/// Version 2.`minor` of the serve protocol.
pub const fn version(minor: u8) -> Version {
    Version { major: 2, minor }
}

/// The oldest supported version.
pub const OLDEST: Version = version(1);

/// The newest supported version: Nix 2.35. (Nix: `ServeProto::latest`.)
pub const NEWEST: Version = version(8);
