//! Decides what happens with one frame, and keeps what the decisions depend on.
//!
//! Time is an argument everywhere, so tests need no clock. Nothing here waits, reads or writes.
//! Not here: sockets (`relay`).

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::answers::{self, Way, guest_address};
use crate::events::{End, Event, Log, Protocol, Refusal};
use crate::flows::{Flow, Flows, Key, MAX_OPEN};
use crate::frames::{Body, Content, Frame, Packet, Tcp, Udp};
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

    fn of_guest(&mut self, frame: &Frame<'_>, bytes: usize, now: Instant) -> Result<Verdict, Dropped> {
        let link = self.rules.policy.link;
        if frame.source != link.guest_mac {
            return Err(Dropped::Source);
        }
        let packet = match &frame.content {
            Content::OtherArp => return Err(Dropped::Neighbour),
            Content::ArpRequest { sender_mac, sender, target } => {
                if (*sender_mac, *sender) != (link.guest_mac, link.guest_v4) {
                    return Err(Dropped::Source);
                }
                if ![link.gateway_v4, link.dns].contains(target) {
                    return Err(Dropped::Neighbour);
                }
                self.answer(answers::arp_reply(&link, *target), now);
                return Ok(Verdict::Drop);
            }
            Content::Packet(packet) => packet,
        };
        if let (Body::NeighbourSolicitation(target), IpAddr::V6(asker)) = (packet.body, packet.source) {
            if asker != link.guest_v6 && !asker.is_unicast_link_local() {
                return Err(Dropped::Neighbour);
            }
            if target != link.gateway_v6 || packet.hop_limit != 255 {
                return Err(Dropped::Neighbour);
            }
            self.answer(answers::neighbour_advertisement(&link, asker), now);
            return Ok(Verdict::Drop);
        }
        if frame.target.is_group() || is_group(packet.target) {
            return Err(Dropped::Multicast);
        }
        if frame.target != link.gateway_mac {
            return Err(Dropped::Target);
        }
        if packet.source != guest_address(&link, packet.target) {
            return Err(Dropped::Source);
        }
        match &packet.body {
            Body::Tcp(tcp) => self.tcp_of_guest(packet, tcp, bytes, now),
            Body::Udp(udp) => self.udp_of_guest(packet, udp, bytes, now),
            Body::Ping(number) | Body::Other(number) => {
                let reason = Reason::Protocol { number: *number };
                let answer = answers::prohibited(&link, packet);
                Err(self.refuse(Protocol::Other, None, (packet.target, 0), reason, answer, now))
            }
            Body::OtherIcmp | Body::NeighbourSolicitation(_) => Err(Dropped::Icmp),
        }
    }

    fn tcp_of_guest(
        &mut self,
        packet: &Packet<'_>,
        tcp: &Tcp,
        bytes: usize,
        now: Instant,
    ) -> Result<Verdict, Dropped> {
        let link = self.rules.policy.link;
        let key =
            Key { protocol: Protocol::Tcp, guest_port: tcp.source, address: packet.target, port: tcp.target };
        let opens = tcp.syn && tcp.acknowledged.is_none() && !tcp.rst && !tcp.fin;
        let is_closing = !tcp.syn && self.flows.is_closing(&key, now);
        let is_unsettled = self.flows.is_unsettled(&key, now);
        match self.flows.get(&key) {
            // Not before the network has answered: passt (of 2023) takes a second segment for the end of a connection
            // that it is still opening, and loops for ever if it reads both at once. The first one needs no
            // repetition, since the host's kernel repeats its own.
            Some(flow) if !flow.is_answered() => {
                if tcp.rst {
                    self.end(&key, End::ResetByGuest, now);
                }
                return Err(Dropped::Early);
            }
            Some(flow) if opens => {
                // The guest's kernel sends it again in a second, when the network has forgotten the old connection.
                if !flow.is_opened_by(tcp) {
                    self.end(&key, End::Replaced, now);
                }
                return Err(Dropped::Early);
            }
            Some(flow) => {
                if !flow.may_follow(now) {
                    // The network learns of a reset when it sends something for this connection.
                    if tcp.rst {
                        self.end(&key, End::ResetByGuest, now);
                    }
                    return Err(Dropped::Early);
                }
                flow.count_up(bytes, now);
                if let Some(end) = flow.guest_sent(tcp, now) {
                    self.end(&key, end, now);
                }
                return Ok(Verdict::Pass);
            }
            None if is_closing => {
                return if self.flows.may_follow(&key, now) {
                    Ok(Verdict::Pass)
                } else {
                    Err(Dropped::Early)
                };
            }
            None if is_unsettled => return Err(Dropped::Early),
            None => {}
        }
        if !opens {
            // As a host that knows of no such connection, so that the guest forgets it, too. A reset has no answer.
            if !tcp.rst {
                self.answer(answers::refuse_tcp(&link, packet, tcp), now);
            }
            return Err(Dropped::NoConnection);
        }
        let refusal = |reason: &Reason| match reason {
            Reason::NewConnections { .. } => None,
            _ => answers::refuse_tcp(&link, packet, tcp),
        };
        self.open(key, Some(tcp), bytes, refusal, now)
    }

    fn udp_of_guest(
        &mut self,
        packet: &Packet<'_>,
        udp: &Udp<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<Verdict, Dropped> {
        let link = self.rules.policy.link;
        if !link.udp_source_ports.contains(udp.source) {
            let reason = Reason::SourcePort { port: udp.source, allowed: link.udp_source_ports };
            let answer = answers::prohibited(&link, packet);
            return Err(self.refuse(Protocol::Udp, None, (packet.target, udp.target), reason, answer, now));
        }
        if (packet.target, udp.target) == (link.dns.into(), DNS) {
            let result = match self.spent {
                true => Err(Stopped::of_spent(udp.payload, self.rules.policy.limits.max_bytes)),
                false => self.names.ask(udp.source, udp.payload, &self.rules, now),
            };
            return self.stopped(result, udp.source, now);
        }
        let key =
            Key { protocol: Protocol::Udp, guest_port: udp.source, address: packet.target, port: udp.target };
        if let Some(flow) = self.flows.get(&key) {
            flow.count_up(bytes, now);
            return Ok(Verdict::Pass);
        }
        let refusal = |reason: &Reason| match reason {
            Reason::NewConnections { .. } => None,
            _ => answers::prohibited(&link, packet),
        };
        self.open(key, None, bytes, refusal, now)
    }

    /// Opens a connection, or refuses it with the answer that belongs to the reason.
    fn open(
        &mut self,
        key: Key,
        tcp: Option<&Tcp>,
        bytes: usize,
        refusal: impl Fn(&Reason) -> Option<Vec<u8>>,
        now: Instant,
    ) -> Result<Verdict, Dropped> {
        let name = self.names.of(key.address, now).map(str::to_owned);
        if let Err(reason) = self.may_open(&key, name.as_deref(), now) {
            let answer = refusal(&reason);
            return Err(self.refuse(key.protocol, name, (key.address, key.port), reason, answer, now));
        }
        let mut flow = Flow::new(name, tcp, now);
        flow.count_up(bytes, now);
        self.flows.insert(key, flow);
        self.connections += 1;
        Ok(Verdict::Pass)
    }

    fn may_open(&mut self, key: &Key, name: Option<&str>, now: Instant) -> Result<(), Reason> {
        self.rules.may_reach(key.protocol, key.address, key.port, name)?;
        let limits = &self.rules.policy.limits;
        if self.spent {
            return Err(Reason::Bytes { limit: limits.max_bytes });
        }
        if self.flows.open() >= (limits.max_connections as usize).min(MAX_OPEN) {
            return Err(Reason::Connections { limit: limits.max_connections.min(MAX_OPEN as u32) });
        }
        match !self.flows.is_full() && self.new.take(now) {
            true => Ok(()),
            false => Err(Reason::NewConnections { per_second: limits.max_new_connections_per_second }),
        }
    }

    /// The verdict on a message of DNS.
    fn stopped(
        &mut self,
        result: Result<(), Stopped>,
        guest_port: u16,
        now: Instant,
    ) -> Result<Verdict, Dropped> {
        let link = self.rules.policy.link;
        let resolver = IpAddr::V4(link.dns);
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

    fn of_network(&mut self, frame: &Frame<'_>, bytes: usize, now: Instant) -> Result<Verdict, Dropped> {
        let link = self.rules.policy.link;
        if frame.source != link.gateway_mac {
            return Err(Dropped::Source);
        }
        let Content::Packet(packet) = &frame.content else { return Err(Dropped::Neighbour) };
        if frame.target.is_group() || is_group(packet.target) {
            return Err(Dropped::Multicast);
        }
        if frame.target != link.guest_mac || packet.target != guest_address(&link, packet.source) {
            return Err(Dropped::Target);
        }
        match &packet.body {
            Body::Tcp(tcp) => {
                if tcp.syn && tcp.acknowledged.is_none() {
                    return Err(Dropped::Inward);
                }
                let key = Key {
                    protocol: Protocol::Tcp,
                    guest_port: tcp.target,
                    address: packet.source,
                    port: tcp.source,
                };
                let is_closing = !tcp.syn && self.flows.is_closing(&key, now);
                let Some(flow) = self.flows.get(&key) else {
                    if is_closing {
                        return Ok(Verdict::Pass);
                    }
                    self.flows.settle(&key);
                    if !tcp.rst {
                        // The guest has given it up.
                        let way = Way::to_network(&link, key.address);
                        let sequence = tcp.acknowledged.unwrap_or(0);
                        let frame = answers::reset(way, (tcp.target, tcp.source), sequence, Some(tcp.next()));
                        if self.answers.take(now) {
                            self.send(Side::Network, frame);
                        }
                    }
                    return Err(Dropped::NoConnection);
                };
                // passt (of 2023) resets without an acknowledgment, and a kernel that has no answer yet takes no such
                // reset: the program would wait for minutes to learn that nobody listens. Ours has one.
                let refused = tcp.rst && tcp.acknowledged.is_none() && !flow.is_answered();
                let expected = flow.guest_next;
                flow.count_down(bytes, now);
                if let Some(end) = flow.network_sent(tcp) {
                    self.end(&key, end, now);
                }
                if refused {
                    let way = Way::to_guest(&link, key.address);
                    let frame = answers::reset(way, (key.port, key.guest_port), 0, Some(expected));
                    self.send(Side::Guest, frame);
                    return Ok(Verdict::Drop);
                }
                Ok(Verdict::Pass)
            }
            Body::Udp(udp) if (packet.source, udp.source) == (link.dns.into(), DNS) => {
                let result = self.names.answered(udp.target, udp.payload, &self.rules, now);
                self.stopped(result, udp.target, now)
            }
            Body::Udp(udp) => {
                let key = Key {
                    protocol: Protocol::Udp,
                    guest_port: udp.target,
                    address: packet.source,
                    port: udp.source,
                };
                let flow = self.flows.get(&key).ok_or(Dropped::NoConnection)?;
                flow.count_down(bytes, now);
                Ok(Verdict::Pass)
            }
            Body::NeighbourSolicitation(_) => Err(Dropped::Neighbour),
            Body::Ping(_) | Body::OtherIcmp => Err(Dropped::Icmp),
            Body::Other(_) => Err(Dropped::Protocol),
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
            let (sequence, expected) = (flow.guest_expects, flow.guest_next);
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
