//! The handshake: magic numbers, versions, features, and remains of older handshakes.

use tokio::io::{AsyncRead, AsyncWrite};

use super::log::Failure;
use super::log_write;
use super::version::{CLIENT_MAGIC, Features, Protocol, SERVER_MAGIC, Version};
use crate::error::WireError;
use crate::input::{Fields, Input};
use crate::limits::{MAX_FEATURES, MAX_NAME_BYTES};
use crate::output::{Encode, Output};

const OP: &str = "the handshake";

/// "Trusted", as `nix store info` shows it. Within their own view members may do everything that Nix reserves
/// for trusted users; a client that gets another answer refuses such operations by itself.
const TRUSTED: u64 = 1;

/// Nix: `BasicServerConnection::handshake` and `postHandshake`.
pub(super) async fn accept<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    input: &mut Input<R>,
    output: &mut Output<W>,
    nix_version: &str,
    closed: Option<String>,
) -> Result<Protocol, WireError> {
    let mut fields = Fields::new(input, OP);
    let magic = fields.u64("magic number").await?;
    if magic != CLIENT_MAGIC {
        return Err(WireError::NotNix { got: magic, expected: CLIENT_MAGIC });
    }
    output.buffer.u64(SERVER_MAGIC);
    output.buffer.u64(Version::NEWEST.to_wire());
    output.flush().await?;

    let client = fields.u64("version").await?;
    let Some(client) = Version::from_wire(client) else {
        return Err(fields.unexpected("version", format!("{client:#x}").as_bytes(), "a protocol version"));
    };
    let mut protocol = Protocol { version: client.min(Version::NEWEST), features: Features::default() };
    if client < Version::OLDEST {
        // The only form of error that such a client understands, at the first place where it expects one.
        let error = WireError::TooOld { client, oldest: Version::OLDEST };
        log_write::error(&mut output.buffer, protocol, &Failure::new(error.to_string()));
        output.flush().await?;
        return Err(error);
    }
    if protocol.at_least(38) {
        let names = fields.strings("features", MAX_FEATURES, MAX_NAME_BYTES).await?;
        protocol.features = Features::known(names.iter().map(String::as_str)).and(Features::ALL);
        output.buffer.strs(Features::ALL.names());
        output.flush().await?;
    }

    if fields.bool("CPU affinity").await? {
        fields.u64("CPU affinity").await?;
    }
    fields.u64("reserve space").await?;
    if protocol.at_least(33) {
        output.buffer.str(nix_version);
    }
    if protocol.at_least(35) {
        output.buffer.u64(TRUSTED);
    }
    if let Some(why) = closed {
        // Clients read messages here for the first time. `nix build --builders` connects before it takes on a build, so
        // it goes on to the next machine; after this place it would fail with the build.
        log_write::error(&mut output.buffer, protocol, &Failure::new(why.clone()));
        output.flush().await?;
        return Err(WireError::Closed { why });
    }
    log_write::last(&mut output.buffer);
    output.flush().await?;
    Ok(protocol)
}
