//! Decides what happens with one frame, and keeps what the decisions depend on.
//!
//! Time is an argument everywhere, so tests need no clock. Nothing here waits, reads or writes.
//! Here are both directions' common parts; the frames of the guest are in `outward`, those of the network in `inward`.
//! Not here: sockets (`relay`).

mod inward;
mod outward;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::answers::{self, Way};
use crate::events::{End, Event, Log, Protocol, Refusal};
use crate::flows::{Flows, Key, MAX_OPEN};
use crate::frames::Frame;
use crate::names::{Names, Stopped};
use crate::pace::Bucket;
use crate::policy::{BURST_SECONDS, Link, Policy};
use crate::reason::{Dropped, Reason};
use crate::rules::Rules;

/// Time between two looks at what ends by the clock.
const TICK: Duration = Duration::from_secs(1);
/// Answers to the guest in a second. More are of a program that does not care.
const ANSWERS: u64 = 200;
/// Frames that wait to be sent: both resets of every connection, when all end at once, and some answers.
const MAX_OUTGOING: usize = MAX_OPEN + ANSWERS as usize;
/// What a frame counts for at least: a flood of tiny frames costs time, too.
const LEAST_FRAME: usize = 64;
/// Part of a second's bytes that may pass at once, so that a limit does not stop the link between any two frames.
const BYTES_BURST: u64 = 4;
const DNS: u16 = 53;

/// A side of the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Guest,
    Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The frame goes to the other side as it is.
    Pass,
    /// It does not. There may be an answer in [`Guard::outgoing`].
    Drop,
}

/// The state of one guest's network.
pub struct Guard {
    rules: Rules,
    flows: Flows,
    names: Names,
    log: Log,
    pace: Bucket,
    new: Bucket,
    answers: Bucket,
    to_guest: VecDeque<Vec<u8>>,
    to_network: VecDeque<Vec<u8>>,
    up: u64,
    down: u64,
    connections: u64,
    dropped: BTreeMap<Dropped, u64>,
    /// `max_bytes` is used up.
    spent: bool,
    ticked: Option<Instant>,
}

impl Guard {
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let limits = &policy.limits;
        let new = u64::from(limits.max_new_connections_per_second);
        Self {
            flows: Flows::default(),
            names: Names::new(limits.max_queries_per_second),
            log: Log::new(),
            pace: Bucket::new(limits.max_bytes_per_second, limits.max_bytes_per_second / BYTES_BURST),
            new: Bucket::new(new, new * u64::from(BURST_SECONDS)),
            answers: Bucket::new(ANSWERS, ANSWERS),
            to_guest: VecDeque::new(),
            to_network: VecDeque::new(),
            up: 0,
            down: 0,
            connections: 0,
            dropped: BTreeMap::new(),
            spent: false,
            ticked: None,
            rules: Rules::new(policy),
        }
    }

    /// A frame that the guest sent.
    pub fn from_guest(&mut self, bytes: &[u8], now: Instant) -> Verdict {
        self.pace.spend(bytes.len().max(LEAST_FRAME), now);
        let result = Frame::parse(bytes).and_then(|frame| self.of_guest(&frame, bytes.len(), now));
        let verdict = self.counted(result, bytes.len(), now);
        if verdict == Verdict::Pass {
            self.up += bytes.len() as u64;
        }
        verdict
    }

    /// A frame that the user-mode network sent.
    pub fn from_network(&mut self, bytes: &[u8], now: Instant) -> Verdict {
        self.pace.spend(bytes.len().max(LEAST_FRAME), now);
        let result = Frame::parse(bytes).and_then(|frame| self.of_network(&frame, bytes.len(), now));
        let verdict = self.counted(result, bytes.len(), now);
        if verdict == Verdict::Pass {
            self.down += bytes.len() as u64;
        }
        verdict
    }

    fn counted(&mut self, result: Result<Verdict, Dropped>, bytes: usize, now: Instant) -> Verdict {
        match result {
            Ok(Verdict::Pass) if !self.has_bytes_left(bytes, now) => {
                self.drop_one(Dropped::Refused);
                Verdict::Drop
            }
            Ok(verdict) => verdict,
            Err(why) => {
                self.drop_one(why);
                Verdict::Drop
            }
        }
    }

    /// Counts a frame that did not get as far as a decision.
    pub fn drop_one(&mut self, why: Dropped) {
        *self.dropped.entry(why).or_default() += 1;
    }

    /// The verdict on a message of DNS.
    fn stopped(
        &mut self,
        result: Result<(), Stopped>,
        guest_port: u16,
        now: Instant,
    ) -> Result<Verdict, Dropped> {
        let link = self.rules.policy.link;
        let resolver = link.dns;
        match result {
            Ok(()) => Ok(Verdict::Pass),
            Err(Stopped::Dropped(why)) => Err(why),
            Err(Stopped::Refused { name, reason, reply }) => {
                let reply =
                    reply.and_then(|reply| answers::datagram(&link, resolver, (DNS, guest_port), &reply));
                Err(self.refuse(Protocol::Udp, Some(name), (resolver, DNS), reason, reply, now))
            }
        }
    }

    /// Whether so many bytes may still pass. The first frame that may not cuts all connections: each would fail with
    /// its next frame, and their programs should know now.
    fn has_bytes_left(&mut self, bytes: usize, now: Instant) -> bool {
        let limit = self.rules.policy.limits.max_bytes;
        if !self.spent && self.up.saturating_add(self.down).saturating_add(bytes as u64) > limit {
            self.spent = true;
            for key in self.flows.keys() {
                self.end(&key, End::Limit(Reason::Bytes { limit }), now);
            }
        }
        !self.spent
    }

    /// Forgets a connection, reports it, and resets it on each side that does not know.
    fn end(&mut self, key: &Key, end: End, now: Instant) {
        let Some(flow) = self.flows.remove(key, &end, now) else { return };
        let known = match end {
            End::Closed | End::ResetByGuest | End::ResetByNetwork | End::Over => [true, true],
            // Its new segment says so.
            End::Replaced => [true, false],
            End::Unanswered | End::Idle | End::Limit(_) => [false, false],
        };
        if key.protocol == Protocol::Tcp {
            let link = self.rules.policy.link;
            let (sequence, expected) = (flow.guest_expects(), flow.guest_next);
            if !known[0] {
                let way = Way::to_guest(&link, key.address);
                let frame = answers::reset(way, (key.port, key.guest_port), sequence, Some(expected));
                self.send(Side::Guest, frame);
            }
            // Not directly after the first segment (see `tcp_of_guest`); there will be an answer to the answer.
            if !known[1] && flow.is_answered() {
                let way = Way::to_network(&link, key.address);
                let frame = answers::reset(way, (key.guest_port, key.port), expected, Some(sequence));
                self.send(Side::Network, frame);
            }
        }
        let millis = now.saturating_duration_since(flow.since).as_millis();
        self.log.push(Event::Connection {
            protocol: key.protocol,
            name: flow.name,
            address: key.address,
            port: key.port,
            up: flow.up,
            down: flow.down,
            millis: u64::try_from(millis).unwrap_or(u64::MAX),
            end,
        });
    }

    /// Ends a connection with the resolver over which something came that does not pass.
    fn cut(&mut self, key: &Key, stopped: Stopped, now: Instant) -> Dropped {
        let (name, reason, dropped) = match stopped {
            Stopped::Refused { name, reason, .. } => (Some(name), reason, Dropped::Refused),
            Stopped::Dropped(why) => (None, Reason::PlainDns, why),
        };
        self.log.refused(
            Refusal {
                protocol: Protocol::Tcp,
                name,
                address: key.address,
                port: key.port,
                reason: reason.clone(),
            },
            now,
        );
        self.end(key, End::Limit(reason), now);
        dropped
    }

    fn refuse(
        &mut self,
        protocol: Protocol,
        name: Option<String>,
        (address, port): (IpAddr, u16),
        reason: Reason,
        answer: Option<Vec<u8>>,
        now: Instant,
    ) -> Dropped {
        self.log.refused(Refusal { protocol, name, address, port, reason }, now);
        if answer.is_some() {
            self.answer(answer, now);
        }
        Dropped::Refused
    }

    /// Answers the guest, unless it provokes too many answers.
    fn answer(&mut self, frame: Option<Vec<u8>>, now: Instant) {
        match self.answers.take(now) {
            true => self.send(Side::Guest, frame),
            false => self.drop_one(Dropped::Unanswered),
        }
    }

    fn send(&mut self, side: Side, frame: Option<Vec<u8>>) {
        let queue = self.outgoing(side);
        match frame {
            Some(frame) if queue.len() < MAX_OUTGOING => queue.push_back(frame),
            _ => self.drop_one(Dropped::Unanswered),
        }
    }

    /// Frames of the guard's own that are to be sent to this side, before the one that passes next.
    pub fn outgoing(&mut self, side: Side) -> &mut VecDeque<Vec<u8>> {
        match side {
            Side::Guest => &mut self.to_guest,
            Side::Network => &mut self.to_network,
        }
    }

    /// Time until the next frame may be read, by `max_bytes_per_second`.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        self.pace.wait(now)
    }

    /// Ends what ends by the clock. Does nothing if it was called a moment ago.
    pub fn tick(&mut self, now: Instant) {
        if self.ticked.is_some_and(|ticked| now < ticked + TICK) {
            return;
        }
        self.ticked = Some(now);
        for (key, end) in self.flows.expired(self.rules.policy.limits.max_seconds, now) {
            self.end(&key, end, now);
        }
        self.names.tick(now);
        self.log.tick(now);
    }

    /// When [`Self::tick`] has something to do again, if it ever has.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        let waits = !self.flows.is_empty() || self.names.is_waiting() || self.log.is_waiting();
        waits.then_some(self.ticked).flatten().map(|ticked| ticked + TICK)
    }

    /// The next event that the agent should know.
    pub fn take_event(&mut self) -> Option<Event> {
        self.log.take()
    }

    /// Counts an event that the agent did not read.
    pub fn lose_event(&mut self) {
        self.log.lose(1);
    }

    /// Ends everything. What [`Self::take_event`] gives from now on ends with the total.
    pub fn finish(&mut self, now: Instant) {
        for key in self.flows.keys() {
            self.end(&key, End::Over, now);
        }
        let (refused, lost) = self.log.finish(now);
        let (up, down, connections) = (self.up, self.down, self.connections);
        let dropped = self.dropped.clone();
        self.log.push_last(Event::Total { up, down, connections, refused, dropped, lost });
    }

    /// Connections that are open. For tests of the bound.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.flows.open()
    }

    #[must_use]
    pub fn link(&self) -> Link {
        self.rules.policy.link
    }
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}
