//! Meters: the bytes of a connection, counted without a lock and charged every few seconds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::State;
use crate::account::Principal;
use crate::resource::{Amounts, Resource};

/// The bytes that a connection has moved and that nobody was charged for yet. No order between the two numbers matters.
#[derive(Debug, Default)]
pub struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
}

impl Traffic {
    /// Counts bytes from the client.
    pub fn came(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes to the client.
    pub fn went(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Takes the numbers, so that each byte is charged once.
    fn take(&self) -> Amounts {
        let taken = [(Resource::BytesUp, &self.up), (Resource::BytesDown, &self.down)];
        taken.into_iter().map(|(resource, bytes)| (resource, bytes.swap(0, Ordering::Relaxed))).collect()
    }
}

/// The meters of the open connections.
#[derive(Default)]
pub(crate) struct Meters(Mutex<Open>);

#[derive(Default)]
struct Open {
    next: u64,
    meters: HashMap<u64, (Principal, Arc<Traffic>)>,
}

impl Meters {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been moved since the last call.
    pub fn moved(&self) -> Vec<(Principal, Amounts)> {
        let open = self.lock();
        let moved = open.meters.values().map(|(who, traffic)| (who.clone(), traffic.take()));
        moved.filter(|(_, amounts)| !amounts.is_zero()).collect()
    }
}

/// Charges one connection. Dropping it charges the rest.
pub struct Meter {
    state: Arc<State>,
    number: u64,
}

impl Meter {
    pub(crate) fn new(state: Arc<State>, who: Principal, traffic: Arc<Traffic>) -> Self {
        let number = {
            let mut open = state.meters.lock();
            open.next += 1;
            let number = open.next;
            open.meters.insert(number, (who, traffic));
            number
        };
        Self { state, number }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let closed = self.state.meters.lock().meters.remove(&self.number);
        if let Some((who, traffic)) = closed {
            self.state.charge(&who, &[], &traffic.take());
        }
    }
}
