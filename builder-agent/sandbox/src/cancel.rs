//! Asks a running session to stop, or to pause, from any thread.
//!
//! A session that pauses says what another program needs to go on with it ([`Paused`]), and waits. It goes on where it was if
//! nobody takes over, and ends if it is cancelled meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::paused::Paused;

/// Asks a running session to stop or to pause. Clones share one flag; cancelling is final.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    waiters: Mutex<Waiters>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiters {
    cancelled: bool,
    /// Eventfds of threads that wait in poll(2). Each thread owns its eventfd, and a dropped one is removed.
    events: Vec<Weak<OwnedFd>>,
    pause: Pause,
    /// Likewise, for threads that wait for a request to pause.
    pause_events: Vec<Weak<OwnedFd>>,
}

#[derive(Debug, Default)]
enum Pause {
    #[default]
    No,
    Asked,
    /// The session waits.
    Paused(Box<Paused>),
    /// Somebody has taken the description of the paused session, which waits whatever happens.
    Taken,
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

    /// Asks the session to pause as soon as it can. It may also end before.
    pub fn ask_to_pause(&self) {
        let mut waiters = self.lock();
        if let Pause::No = waiters.pause {
            waiters.pause = Pause::Asked;
            waiters.pause_events.iter().filter_map(Weak::upgrade).for_each(|event| raise(&event));
        }
    }

    /// Whether the session waits, and was not cancelled.
    pub fn is_paused(&self) -> bool {
        let waiters = self.lock();
        matches!(waiters.pause, Pause::Paused(_)) && !waiters.cancelled
    }

    /// Takes over the paused session; `None` if it does not wait, or was cancelled. From now on it waits until
    /// [`Cancel::go_on`], and a cancellation takes effect after that.
    pub fn take_paused(&self) -> Option<Paused> {
        let mut waiters = self.lock();
        if waiters.cancelled || !matches!(waiters.pause, Pause::Paused(_)) {
            return None;
        }
        match std::mem::replace(&mut waiters.pause, Pause::Taken) {
            Pause::Paused(paused) => Some(*paused),
            _ => None,
        }
    }

    /// The session goes on where it was, and is not asked to pause any more.
    pub fn go_on(&self) {
        self.lock().pause = Pause::No;
        self.0.changed.notify_all();
    }

    pub(crate) fn is_asked_to_pause(&self) -> bool {
        matches!(self.lock().pause, Pause::Asked)
    }

    /// For the session: if it is asked to pause, waits until it may go on, or is cancelled.
    pub fn pause(&self, paused: Paused) {
        let mut waiters = self.lock();
        if !matches!(waiters.pause, Pause::Asked) {
            return;
        }
        waiters.pause = Pause::Paused(Box::new(paused));
        let waits = |waiters: &mut Waiters| match waiters.pause {
            Pause::Paused(_) => !waiters.cancelled,
            Pause::Taken => true,
            Pause::No | Pause::Asked => false,
        };
        let mut waiters =
            self.0.changed.wait_while(waiters, waits).unwrap_or_else(std::sync::PoisonError::into_inner);
        waiters.pause = Pause::No;
    }

    /// A descriptor that polls readable when the session is asked to pause, until somebody reads it.
    pub(crate) fn pause_event(&self) -> io::Result<Arc<OwnedFd>> {
        let mut waiters = self.lock();
        let is_asked = matches!(waiters.pause, Pause::Asked);
        new_event(&mut waiters.pause_events, is_asked)
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
        let mut waiters = self.lock();
        let is_cancelled = waiters.cancelled;
        new_event(&mut waiters.events, is_cancelled)
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // A panic elsewhere leaves flags and lists behind, all valid.
        self.0.waiters.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Another one for this list; raised already if what it tells has happened.
fn new_event(events: &mut Vec<Weak<OwnedFd>>, has_happened: bool) -> io::Result<Arc<OwnedFd>> {
    let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    events.retain(|e| e.strong_count() > 0);
    if has_happened {
        raise(&event);
    }
    events.push(Arc::downgrade(&event));
    Ok(event)
}

/// Adding one to a small counter cannot block or overflow, so no error can happen.
fn raise(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}
