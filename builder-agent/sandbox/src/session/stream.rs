//! Waiting for a guest, and the errors of one that has gone; the same for every kind of session.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest::protocol;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backend::FarEnd;
use crate::error::SandboxError;

/// Waits for the guest, for one of the eventfds `wakers`, for events of the network, or for the timeout; returns the events of
/// the stream.
///
/// A waker that was raised is not any more. What it is about is a flag elsewhere, which the caller looks at every time.
pub(crate) fn wait(
    stream: &UnixStream,
    wakers: &[&OwnedFd],
    network: Option<BorrowedFd<'_>>,
    writing: bool,
    timeout: Option<Duration>,
) -> Result<PollFlags, SandboxError> {
    let interest = if writing { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let mut fds = vec![PollFd::new(stream, interest)];
    fds.extend(wakers.iter().map(|event| PollFd::new(*event, PollFlags::IN)));
    fds.extend(network.map(|network| PollFd::from_borrowed_fd(network, PollFlags::IN)));
    // Rounded up, so that the deadline has passed when poll returns, and the loop does not spin until then.
    let timeout = timeout.map(|t| t + Duration::from_millis(1));
    let timespec = timeout.and_then(|t| Timespec::try_from(t).ok());
    match poll(&mut fds, timespec.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {
            let ready = fds[0].revents();
            for (waker, raised) in wakers.iter().zip(&fds[1..]) {
                if !raised.revents().is_empty() {
                    let _ = rustix::io::read(waker, &mut [0u8; 8]);
                }
            }
            Ok(ready)
        }
        Err(e) => Err(unavailable("cannot wait for the guest", e.into())),
    }
}

pub(super) fn unavailable(what: &str, error: io::Error) -> SandboxError {
    SandboxError::Unavailable { why: format!("{what}: {error}") }
}

/// The error for a guest that has ended or does not continue, with the last output of the machine outside the stream.
pub(super) fn died(what: &str, far_end: &mut dyn FarEnd) -> SandboxError {
    let words = protocol::bounded(far_end.last_words().trim_end());
    let console = if words.is_empty() { format!("({what})") } else { format!("{words}\n({what})") };
    SandboxError::GuestDied { console }
}
