//! Asks a running session to stop, from any thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// Asks a running session to stop. Clones share one flag; cancelling is final.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    cancelled: Mutex<Waiters>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiters {
    cancelled: bool,
    /// Eventfds of threads that wait in poll(2). Each thread owns its eventfd, and a dropped one is removed.
    events: Vec<Weak<OwnedFd>>,
}

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    /// Safe to call from any thread, any number of times.
    pub fn cancel(&self) {
        let mut waiters = self.lock();
        waiters.cancelled = true;
        for event in waiters.events.drain(..).filter_map(|e| e.upgrade()) {
            raise(&event);
        }
        self.0.changed.notify_all();
    }

    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Waits until cancelled or until `timeout` is over; true if cancelled.
    pub fn wait(&self, timeout: Duration) -> bool {
        let guard = self.lock();
        self.0
            .changed
            .wait_timeout_while(guard, timeout, |w| !w.cancelled)
            .map(|(g, _)| g.cancelled)
            .unwrap_or_else(|e| e.into_inner().0.cancelled)
    }

    /// A descriptor that polls readable from the cancellation on, for threads that also wait for other
    /// events.
    pub fn event(&self) -> io::Result<Arc<OwnedFd>> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut waiters = self.lock();
        waiters.events.retain(|e| e.strong_count() > 0);
        if waiters.cancelled {
            raise(&event);
        } else {
            waiters.events.push(Arc::downgrade(&event));
        }
        Ok(event)
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // A panic elsewhere leaves a bool and a list behind, both valid.
        self.0.cancelled.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Adding one to a counter of zero cannot block or overflow, so no error can happen.
fn raise(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}
