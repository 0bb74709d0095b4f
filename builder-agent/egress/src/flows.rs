//! The connections of a guest: which are open, and when they end. A UDP exchange counts as a connection, too.
//!
//! The table is bounded, and so are the seconds for which a silent peer keeps an entry. Numbers of TCP segments are
//! followed only so that the guard's own resets fit; whether the segments make sense is the business of the two ends.
//! Not here: who may open a connection (`rules`), and what is sent at its end (`guard`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::conversation::Conversation;
use crate::events::{End, Protocol};
use crate::frames::Tcp;
use crate::reason::Reason;

/// Most open connections, whatever the policy says: about 1 MiB, and what is looked at every second.
pub const MAX_OPEN: usize = 4096;
/// Most connections that have ended and are still known; then no other can begin. At the default pace of new
/// connections, half as many are known at most.
const MAX_ENDING: usize = 8192;
/// For so long, the last segments of an ended connection may be sent again.
const ENDING: Duration = Duration::from_secs(10);
/// Linux gives up on a first segment after 127 seconds.
const UNANSWERED: Duration = Duration::from_secs(130);
/// Time between two segments of a guest that has said that it is done. passt (of 2023) loops for ever if it reads two
/// of these at once and the first one completes the end. It has read the first after this time, unless the machine is
/// very busy; what is dropped meanwhile, both ends repeat.
const DONE_PACE: Duration = Duration::from_millis(250);
/// A server may compute for minutes before it answers (git packs), but keeps a connection alive meanwhile.
const TCP_IDLE: Duration = Duration::from_secs(600);
/// QUIC gives up after 30 seconds.
const UDP_IDLE: Duration = Duration::from_secs(60);

/// Names a connection. The guest's address follows from that of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub protocol: Protocol,
    pub guest_port: u16,
    pub address: IpAddr,
    pub port: u16,
}

#[derive(Debug)]
pub struct Flow {
    pub name: Option<String>,
    pub since: Instant,
    last: Instant,
    pub up: u64,
    pub down: u64,
    /// The peer has answered.
    answered: bool,
    guest_done: bool,
    /// When the guest's last segment passed, since it was done.
    done_at: Option<Instant>,
    network_done: bool,
    /// The guest's first sequence number.
    first: u32,
    /// The guest's next sequence number.
    pub guest_next: u32,
    /// The peer's next sequence number, after what has passed to the guest. The guest may not have acknowledged it yet; but it
    /// takes a reset with this number only.
    network_next: Option<u32>,
    /// With the resolver.
    pub conversation: Option<Conversation>,
}

impl Flow {
    pub fn new(name: Option<String>, tcp: Option<&Tcp<'_>>, now: Instant) -> Self {
        Self {
            name,
            since: now,
            last: now,
            up: 0,
            down: 0,
            answered: false,
            guest_done: false,
            done_at: None,
            network_done: false,
            first: tcp.map_or(0, |tcp| tcp.sequence),
            guest_next: tcp.map_or(0, |tcp| tcp.next()),
            network_next: None,
            conversation: None,
        }
    }

    /// Whether this segment, a SYN, is the one that opened this connection, sent again.
    pub fn is_opened_by(&self, tcp: &Tcp<'_>) -> bool {
        tcp.sequence == self.first
    }

    /// Whether the network has sent anything for this connection.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    pub fn count_up(&mut self, bytes: usize, now: Instant) {
        self.up += bytes as u64;
        self.last = now;
    }

    pub fn count_down(&mut self, bytes: usize, now: Instant) {
        self.down += bytes as u64;
        self.last = now;
        self.answered = true;
    }

    /// Whether another segment of the guest may pass now; if so, it counts.
    pub fn may_follow(&mut self, now: Instant) -> bool {
        may_follow(&mut self.done_at, now)
    }

    /// A segment of the guest. Returns how the connection ended, if it did.
    pub fn guest_sent(&mut self, tcp: &Tcp<'_>, now: Instant) -> Option<End> {
        if is_after(tcp.next(), self.guest_next) {
            self.guest_next = tcp.next();
        }
        if tcp.fin {
            self.guest_done = true;
            self.done_at = Some(now);
        }
        match tcp.rst {
            true => Some(End::ResetByGuest),
            false => self.closed(),
        }
    }

    /// A segment of the peer. Returns how the connection ended, if it did.
    pub fn network_sent(&mut self, tcp: &Tcp<'_>) -> Option<End> {
        if self.network_next.is_none_or(|next| is_after(tcp.next(), next)) {
            self.network_next = Some(tcp.next());
        }
        self.network_done |= tcp.fin;
        match tcp.rst {
            true => Some(End::ResetByNetwork),
            false => self.closed(),
        }
    }

    /// What the guest expects next.
    pub fn guest_expects(&self) -> u32 {
        self.network_next.unwrap_or(0)
    }

    fn closed(&self) -> Option<End> {
        (self.guest_done && self.network_done).then_some(End::Closed)
    }

    /// How the connection ends by the clock, if it does now.
    fn expired(&self, protocol: Protocol, max_seconds: u64, now: Instant) -> Option<End> {
        let silent = now.saturating_duration_since(self.last);
        if now.saturating_duration_since(self.since).as_secs() >= max_seconds {
            return Some(End::Limit(Reason::Seconds { limit: max_seconds }));
        }
        match protocol {
            Protocol::Tcp if !self.answered => (silent >= UNANSWERED).then_some(End::Unanswered),
            Protocol::Tcp => (silent >= TCP_IDLE).then_some(End::Idle),
            _ => (silent >= UDP_IDLE).then_some(End::Idle),
        }
    }
}

fn may_follow(done_at: &mut Option<Instant>, now: Instant) -> bool {
    if done_at.is_some_and(|at| now < at + DONE_PACE) {
        return false;
    }
    *done_at = done_at.map(|_| now);
    true
}

/// Whether a sequence number is after another one. They wrap.
fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

/// A connection that has ended.
#[derive(Debug)]
struct Ending {
    until: Instant,
    /// Closed by both sides, so that last segments may be sent again. Otherwise the guest gave up before the network
    /// answered, which may not even have seen the first segment.
    closed: bool,
    done_at: Option<Instant>,
}

#[derive(Debug, Default)]
pub struct Flows {
    open: BTreeMap<Key, Flow>,
    ending: BTreeMap<Key, Ending>,
}

impl Flows {
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// How many of the open ones are with the resolver.
    pub fn conversations(&self) -> usize {
        self.open.values().filter(|flow| flow.conversation.is_some()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.ending.is_empty()
    }

    pub fn get(&mut self, key: &Key) -> Option<&mut Flow> {
        self.open.get_mut(key)
    }

    /// Whether the last segments of this connection may still be sent again.
    pub fn is_closing(&self, key: &Key, now: Instant) -> bool {
        self.ending.get(key).is_some_and(|ending| ending.closed && now < ending.until)
    }

    /// Whether a last segment of the guest may pass now.
    pub fn may_follow(&mut self, key: &Key, now: Instant) -> bool {
        self.ending.get_mut(key).is_none_or(|ending| may_follow(&mut ending.done_at, now))
    }

    /// Whether the network may still have the first segment of an earlier connection with these ports before it.
    pub fn is_unsettled(&self, key: &Key, now: Instant) -> bool {
        self.ending.get(key).is_some_and(|ending| !ending.closed && now < ending.until)
    }

    /// The network has answered the first segment of a connection that the guest gave up.
    pub fn settle(&mut self, key: &Key) {
        if self.ending.get(key).is_some_and(|ending| !ending.closed) {
            self.ending.remove(key);
        }
    }

    pub fn is_full(&self) -> bool {
        self.ending.len() + self.open.len() >= MAX_ENDING
    }

    /// The caller has checked that there is room.
    pub fn insert(&mut self, key: Key, flow: Flow) {
        self.ending.remove(&key);
        self.open.insert(key, flow);
    }

    /// Forgets a connection; after an orderly end its last segments still pass for a while.
    pub fn remove(&mut self, key: &Key, end: &End, now: Instant) -> Option<Flow> {
        let flow = self.open.remove(key)?;
        let gave_up = key.protocol == Protocol::Tcp && !flow.answered;
        let done_at = flow.done_at;
        let ending = match end {
            End::Closed => Some(Ending { until: now + ENDING, closed: true, done_at }),
            _ if gave_up => Some(Ending { until: now + UNANSWERED, closed: false, done_at }),
            _ => None,
        };
        if let Some(ending) = ending {
            self.ending.insert(*key, ending);
        }
        Some(flow)
    }

    pub fn keys(&self) -> Vec<Key> {
        self.open.keys().copied().collect()
    }

    /// The connections that end now by the clock.
    pub fn expired(&mut self, max_seconds: u64, now: Instant) -> Vec<(Key, End)> {
        self.ending.retain(|_, ending| now < ending.until);
        let end = |key: &Key, flow: &Flow| flow.expired(key.protocol, max_seconds, now);
        self.open.iter().filter_map(|(key, flow)| Some((*key, end(key, flow)?))).collect()
    }
}
