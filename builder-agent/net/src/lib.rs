//! The box's own use of the network: HTTP and HTTPS, with limits on everything that the other side can make large.
//!
//! The other side is a stranger: a server named by a derivation, by a redirect, or by an operator. So an address is
//! checked when the box connects to it, not when it is named (a name that is public now may be private a moment
//! later). Heads, bodies, redirects and waiting all have limits. Nothing that is received is trusted: the caller
//! compares hashes or signatures.
//! Not here: which files are fetched, and why (`builds::builtin`, `substitute`), and ssh.

mod connect;
mod http;

use std::path::PathBuf;
use std::time::Duration;

pub use connect::ConnectError;
pub use http::{Blocking, Body, HttpClient, HttpError, Want};

/// Settings for the box's own use of the network.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub allow_private: bool,
    pub certificates: PathBuf,
    pub stall: Duration,
    pub whole: Duration,
}
