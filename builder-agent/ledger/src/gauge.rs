//! Gauges: how many connections, sessions and requests of an account there are at one moment, and the most there were.
//!
//! A request is counted in thousands a second, so a gauge is a few atomic numbers, and nobody waits for the book. The
//! ledger's thread takes the numbers every few seconds, as it takes those of the meters.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::account::Account;
use crate::resource::{Amounts, Resource};

/// What is open for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    Connection,
    Session,
    Request,
}

impl Open {
    const ALL: [Self; 3] = [Self::Connection, Self::Session, Self::Request];

    /// The resources: how many were opened, and the most at one moment.
    fn resources(self) -> (Resource, Resource) {
        match self {
            Self::Connection => (Resource::Connections, Resource::ConnectionsPeak),
            Self::Session => (Resource::Sessions, Resource::SessionsPeak),
            Self::Request => (Resource::Requests, Resource::RequestsPeak),
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    /// Those that were opened and are not charged yet.
    opened: AtomicU64,
    now: AtomicU64,
    /// Since the numbers were last taken.
    peak: AtomicU64,
}

/// The counts of one account. The ledger has a weak reference: what is left is charged when the last [`Counter`] ends.
pub(crate) struct Gauge {
    account: Account,
    counts: [Count; Open::ALL.len()],
    gauges: Arc<Gauges>,
}

impl Gauge {
    /// Takes the numbers, so that each is charged once. No order between them matters.
    pub fn take(&self) -> (Account, Amounts) {
        let mut amounts = Amounts::default();
        for open in Open::ALL {
            let (count, (sum, most)) = (&self.counts[open as usize], open.resources());
            amounts.add(sum, count.opened.swap(0, Ordering::Relaxed));
            let peak = count.peak.swap(0, Ordering::Relaxed);
            amounts.add(most, peak.max(count.now.load(Ordering::Relaxed)));
        }
        (self.account.clone(), amounts)
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        let left = self.take();
        let mut open = self.gauges.lock();
        // Another gauge of this account may have been made meanwhile.
        if open.of.get(&self.account).is_some_and(|gauge| gauge.strong_count() == 0) {
            open.of.remove(&self.account);
        }
        if !left.1.is_zero() {
            open.left.push(left);
        }
    }
}

/// The gauges of all accounts with something open.
#[derive(Default)]
pub(crate) struct Gauges(Mutex<All>);

#[derive(Default)]
struct All {
    of: HashMap<Account, Weak<Gauge>>,
    /// What gauges had that are gone.
    left: Vec<(Account, Amounts)>,
}

impl Gauges {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn of(self: &Arc<Self>, account: Account) -> Arc<Gauge> {
        let mut open = self.lock();
        if let Some(gauge) = open.of.get(&account).and_then(Weak::upgrade) {
            return gauge;
        }
        let gauge =
            Arc::new(Gauge { account: account.clone(), counts: Default::default(), gauges: self.clone() });
        open.of.insert(account, Arc::downgrade(&gauge));
        gauge
    }

    /// What was counted since the last call.
    pub fn taken(&self) -> Vec<(Account, Amounts)> {
        let (gauges, mut taken) = {
            let mut open = self.lock();
            let gauges: Vec<Arc<Gauge>> = open.of.values().filter_map(Weak::upgrade).collect();
            (gauges, std::mem::take(&mut open.left))
        };
        // Without the lock: one of these may be the last reference, and dropping it takes the lock.
        taken.extend(gauges.iter().map(|gauge| gauge.take()).filter(|(_, amounts)| !amounts.is_zero()));
        taken
    }
}

/// Counts for one principal: in the member's gauge, and in that of the key or ticket. Clones count together.
#[derive(Clone)]
pub struct Counter(pub(crate) Arc<[Arc<Gauge>]>);

impl Counter {
    /// Counts one until the guard is dropped.
    #[must_use]
    pub fn open(&self, what: Open) -> Opened {
        for gauge in &*self.0 {
            let count = &gauge.counts[what as usize];
            count.opened.fetch_add(1, Ordering::Relaxed);
            let now = count.now.fetch_add(1, Ordering::Relaxed) + 1;
            count.peak.fetch_max(now, Ordering::Relaxed);
        }
        Opened { counter: self.clone(), what }
    }
}

/// Something that is open. Dropping it closes it.
pub struct Opened {
    counter: Counter,
    what: Open,
}

impl Drop for Opened {
    fn drop(&mut self) {
        for gauge in &*self.counter.0 {
            gauge.counts[self.what as usize].now.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
