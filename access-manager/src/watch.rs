//! When to synchronise: every so often, and at once when a forge says that something was pushed.
//!
//! A webhook only asks for a synchronisation. Nothing in it is believed: not the branch, not the commit, not the sender.
//! Whoever knows the secret, or repeats a request that was seen on the line, can make the box look at its repository, at
//! most once a second.
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

/// Shortest time between two synchronisations. What is asked for meanwhile is done by the next one.
const GAP: Duration = Duration::from_secs(1);

/// Asks for a synchronisation. Requests that wait are one.
#[derive(Clone)]
pub struct Bell(SyncSender<()>);

impl Bell {
    pub fn ring(&self) {
        // Full: one is waiting already. Disconnected: the process is ending.
        let _ = self.0.try_send(());
    }
}

/// The other end of [`Bell`].
pub struct Ear(Receiver<()>);

pub fn bell() -> (Bell, Ear) {
    let (sender, receiver) = sync_channel(1);
    (Bell(sender), Ear(receiver))
}

/// Calls `synchronise` now, then after each `pause` or when the bell rings, forever.
pub fn watch(pause: Duration, ear: &Ear, mut synchronise: impl FnMut()) -> ! {
    loop {
        synchronise();
        std::thread::sleep(GAP);
        if let Err(std::sync::mpsc::RecvTimeoutError::Disconnected) = ear.0.recv_timeout(pause) {
            // Without a server nobody rings.
            std::thread::sleep(pause);
        }
    }
}
