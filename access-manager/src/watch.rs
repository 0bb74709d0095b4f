//! When to synchronise: every so often, and at once when a forge says that something was pushed.
//!
//! A webhook only requests a synchronisation. Nothing else in it is used: not the branch, not the commit, not the sender.
//! A person who knows the secret, or who repeats a request that was seen on the line, can make the box look at its
//! repository, at most once a second.
//!
//! ```text
//! http.rs        the server: limits, and answers
//! signature.rs   how each forge proves that it knows the secret
//! secrets.rs     the file of secrets
//! ```
//! Not here: a synchronisation (`sync`), which runs in a process of its own.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

pub mod http;
pub mod secrets;
pub mod signature;

/// Shortest time between two synchronisations. The next one serves all requests that came meanwhile.
const GAP: Duration = Duration::from_secs(1);

/// Requests a synchronisation. All requests that wait at the same time are one.
#[derive(Clone)]
pub struct Requester(SyncSender<()>);

impl Requester {
    pub fn request(&self) {
        // Full: a request is waiting already. Disconnected: the process is ending.
        let _ = self.0.try_send(());
    }
}

/// Receives the requests of a [`Requester`].
pub struct Requests(Receiver<()>);

pub fn requests() -> (Requester, Requests) {
    let (sender, receiver) = sync_channel(1);
    (Requester(sender), Requests(receiver))
}

/// Calls `synchronise` now, then after each `pause` and after each request, forever; with `true` after a request.
pub fn watch(pause: Duration, requests: &Requests, mut synchronise: impl FnMut(bool)) -> ! {
    let mut asked = false;
    loop {
        synchronise(asked);
        std::thread::sleep(GAP);
        let received = requests.0.recv_timeout(pause);
        asked = received.is_ok();
        if let Err(std::sync::mpsc::RecvTimeoutError::Disconnected) = received {
            // Without a server for webhooks there are no requests.
            std::thread::sleep(pause);
        }
    }
}
