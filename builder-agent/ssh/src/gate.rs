//! Limits for connections that are not logged in (strangers): which are accepted, and which are closed to make room.
//!
//! Members and strangers share no places: a connection counts as a stranger until its login succeeds, and after that no
//! stranger can displace it. Strangers are distinguished by their source, which is a block of addresses. When there are
//! too many, the oldest connection of the source that has most is closed: a real login needs a second, so the
//! connections that do nothing are closed first. A connection that ends without a login costs its source a penalty
//! (`penalties`), unless a member is logged in from there: a member must not be locked out by neighbours behind one
//! address.
//!
//! Nothing here waits. Not here: sockets, deadlines and messages (`ssh`), and who is a member (`members`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::penalties::Table;
use settings::Limits;
use settings::strangers::{NetBlocks, Network, Penalties, Startups};

/// The configured limits for strangers.
struct Rules {
    startups: Startups,
    per_source: usize,
    blocks: NetBlocks,
    penalties: Penalties,
    exempt: Vec<Network>,
}

pub(super) struct Gate {
    rules: Rules,
    state: Mutex<State>,
}

struct State {
    /// Connections that are not logged in, in the order in which they came.
    strangers: BTreeMap<u64, Knocking>,
    by_source: HashMap<IpAddr, BTreeSet<u64>>,
    /// Logged-in connections by source.
    guests: HashMap<IpAddr, usize>,
    penalties: Table,
    next: u64,
    dice: u64,
}

struct Knocking {
    source: IpAddr,
    leave: Arc<Notify>,
}

/// How a connection ended without a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The client closed the connection, or it was closed to make room.
    Gone,
    /// The client sent something other than ssh.
    Malformed,
    /// The login took longer than `limits.login-seconds`.
    Late,
    /// The client proved to hold a key of the roster, but could not log in for another reason, so there is no penalty.
    Known,
}

/// One connection's place at the gate, shared by its task and its handler. The last of them to drop it charges the
/// penalty.
pub(super) struct Visit {
    gate: Arc<Gate>,
    id: u64,
    source: IpAddr,
    exempt: bool,
    /// Notified once, when the connection must make room for another.
    leave: Arc<Notify>,
    conduct: Mutex<Conduct>,
}

#[derive(Debug)]
struct Conduct {
    offers: u32,
    admitted: bool,
    ending: Ending,
}

impl Gate {
    pub fn new(limits: &Limits) -> Arc<Self> {
        let rules = Rules {
            startups: limits.max_startups,
            per_source: limits.max_startups_per_source,
            blocks: limits.net_blocks,
            penalties: limits.penalties,
            exempt: limits.penalty_exempt.clone(),
        };
        let state = State {
            strangers: BTreeMap::new(),
            by_source: HashMap::new(),
            guests: HashMap::new(),
            penalties: Table::new(rules.penalties.min, rules.penalties.max),
            next: 0,
            dice: RandomState::new().build_hasher().finish() | 1,
        };
        Arc::new(Self { rules, state: Mutex::new(state) })
    }

    /// A place for a connection from this address, or the time for which the address is refused.
    pub fn knock(self: &Arc<Self>, peer: IpAddr) -> Result<Arc<Visit>, Duration> {
        self.knock_at(peer, Instant::now())
    }

    fn knock_at(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Result<Arc<Visit>, Duration> {
        let source = self.rules.blocks.block_of(peer);
        let exempt = self.rules.exempt.iter().any(|network| network.contains(peer));
        let mut state = self.lock();
        if !exempt
            && !state.guests.contains_key(&source)
            && let Some(left) = state.penalties.left(source, now)
        {
            return Err(left);
        }
        if state.by_source.get(&source).is_some_and(|of_it| of_it.len() >= self.rules.per_source) {
            state.make_room(source);
        }
        if state.is_crowded(self.rules.startups)
            && let Some(source) = state.busiest()
        {
            state.make_room(source);
        }
        let id = state.next;
        state.next += 1;
        let leave = Arc::new(Notify::new());
        state.strangers.insert(id, Knocking { source, leave: leave.clone() });
        state.by_source.entry(source).or_default().insert(id);
        let conduct = Mutex::new(Conduct { offers: 0, admitted: false, ending: Ending::Gone });
        Ok(Arc::new(Visit { gate: self.clone(), id, source, exempt, leave, conduct }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The penalty of a connection that did not log in.
    fn price(&self, conduct: &Conduct) -> Duration {
        let penalties = &self.rules.penalties;
        let ended = match conduct.ending {
            Ending::Known => return Duration::ZERO,
            Ending::Malformed => penalties.crash,
            Ending::Late => penalties.grace_exceeded,
            Ending::Gone if conduct.offers > 0 => penalties.authfail,
            Ending::Gone => penalties.noauth,
        };
        ended + penalties.probe * conduct.offers
    }
}

impl State {
    /// Whether one more stranger displaces another: OpenSSH's random early drop.
    fn is_crowded(&mut self, startups: Startups) -> bool {
        let Startups { start, rate, full } = startups;
        let there = self.strangers.len();
        if there < start {
            return false;
        }
        if there >= full {
            return true;
        }
        let chance = (100 - rate) * (there - start) / (full - start) + rate;
        self.roll() < chance as u64
    }

    /// Evenly from 0 to 99 (xorshift64). Guessing it would gain an attacker only a place among the strangers.
    fn roll(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % 100
    }

    /// The source with most strangers; if there are several, the one with the oldest connection.
    fn busiest(&self) -> Option<IpAddr> {
        let oldest = |of_it: &BTreeSet<u64>| std::cmp::Reverse(of_it.first().copied());
        self.by_source.iter().max_by_key(|(_, of_it)| (of_it.len(), oldest(of_it))).map(|(source, _)| *source)
    }

    /// Asks the oldest stranger of this source to leave, and no longer counts it.
    fn make_room(&mut self, source: IpAddr) {
        let Some(oldest) = self.by_source.get(&source).and_then(|of_it| of_it.first().copied()) else {
            return;
        };
        if let Some(knocking) = self.remove(oldest) {
            knocking.leave.notify_one();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Knocking> {
        let knocking = self.strangers.remove(&id)?;
        if let Some(of_it) = self.by_source.get_mut(&knocking.source) {
            of_it.remove(&id);
            if of_it.is_empty() {
                self.by_source.remove(&knocking.source);
            }
        }
        Some(knocking)
    }
}

impl Visit {
    /// Ready when this connection has to make room for another, which does not happen after [`Visit::admit`].
    pub async fn must_leave(&self) {
        self.leave.notified().await;
    }

    /// Counts an offered key, and returns the number of offers so far.
    pub fn offered(&self) -> u32 {
        let mut conduct = self.conduct();
        conduct.offers = conduct.offers.saturating_add(1);
        conduct.offers
    }

    /// Sets the ending for which the source is charged if no login follows.
    pub fn ends(&self, ending: Ending) {
        self.conduct().ending = ending;
    }

    /// As [`Visit::ends`], unless the client has proved to be a member.
    pub fn ends_unless_known(&self, ending: Ending) {
        let mut conduct = self.conduct();
        if conduct.ending != Ending::Known {
            conduct.ending = ending;
        }
    }

    /// Makes this connection a member's, and charges nothing for keys that were offered before the right one. False if
    /// it was asked to leave at the same moment.
    pub fn admit(&self) -> bool {
        let mut state = self.gate.lock();
        if state.remove(self.id).is_none() {
            return false;
        }
        *state.guests.entry(self.source).or_default() += 1;
        self.conduct().admitted = true;
        true
    }

    fn conduct(&self) -> MutexGuard<'_, Conduct> {
        self.conduct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&mut self, now: Instant) {
        let conduct = self.conduct.get_mut().unwrap_or_else(PoisonError::into_inner);
        let price = self.gate.price(conduct);
        let mut state = self.gate.lock();
        if conduct.admitted {
            if let Some(guests) = state.guests.get_mut(&self.source) {
                *guests -= 1;
                if *guests == 0 {
                    state.guests.remove(&self.source);
                }
            }
            return;
        }
        state.remove(self.id);
        if !self.exempt {
            state.penalties.charge(self.source, price, now);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.settle(Instant::now());
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod gate_test;
