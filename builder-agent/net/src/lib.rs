//! What the box itself asks of the network: HTTP and HTTPS, bounded in every direction.
//!
//! The other side is a stranger: a server named by a derivation, by a redirect, or by an operator. So an address is
//! checked when we connect to it, not when it is named (a name that is public now may be private a moment later);
//! heads, bodies, redirects and waiting all have limits; and nothing received is believed. Who asks compares hashes or
//! signatures.
//! Not here: what is fetched and why (`builds::builtin`, `substitute`), and ssh.

pub mod address;
mod connect;
mod http;

use std::path::PathBuf;
use std::time::Duration;

pub use connect::ConnectError;
pub use http::{Blocking, Body, HttpClient, HttpError, Want};

/// How the box itself may use the network.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub allow_private: bool,
    pub certificates: PathBuf,
    pub stall: Duration,
    pub whole: Duration,
}
