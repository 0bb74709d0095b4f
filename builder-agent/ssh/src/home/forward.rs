//! Ports and sockets: of the home, for the client (`ssh -L`, `-D`, `-W`), and of the client, for the home (`-R`).
//!
//! Only what listens in the home itself is reached: the front door is no way to other machines, which the home reaches through
//! its network. That is decided here: an sshd with `PermitOpen` would refuse all sockets.

use std::sync::Arc;

use daemon::{Agent, Caller};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure};

use super::carry;
use super::lodging::Lodging;

/// Where a client wants to connect to, inside.
#[derive(Debug, Clone)]
pub(crate) enum Towards {
    Port { host: String, port: u32, originator: (String, u32) },
    Socket(String),
}

impl Towards {
    /// Whether it is in the home.
    pub fn is_inside(&self) -> bool {
        match self {
            Self::Port { host, .. } => matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1"),
            Self::Socket(_) => true,
        }
    }
}

/// Connects the client's channel.
pub(crate) async fn connect(
    (channel, reply): (Channel<Msg>, ChannelOpenHandle),
    towards: Towards,
    lodging: Arc<Lodging>,
    (agent, caller, client): (Arc<Agent>, Caller, Handle),
) {
    let link = match lodging.link(&agent, &caller, &client).await {
        Ok(link) => link,
        Err(why) => {
            tracing::info!(connection = caller.connection, why, "a forwarded connection was refused");
            return reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    };
    let opening = async {
        match towards {
            Towards::Port { host, port, originator: (from, from_port) } => {
                link.inside.channel_open_direct_tcpip(host, port, from, from_port).await
            }
            Towards::Socket(path) => link.inside.channel_open_direct_streamlocal(path).await,
        }
    };
    match link.inside.answers(opening).await {
        Ok(inner) => {
            reply.accept().await;
            carry::both(channel, inner, &lodging.inlet(&agent, &caller)).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
}
