//! Frames of the guest.

use std::net::IpAddr;
use std::time::Instant;

use super::{DNS, Guard, Side, Verdict, is_group};
use crate::answers::{self, guest_address};
use crate::conversation::{Conversation, Heard, MAX_CONVERSATIONS};
use crate::events::{End, Protocol};
use crate::flows::{Flow, Key, MAX_OPEN};
use crate::frames::{Body, Content, Frame, Packet, Tcp, Udp};
use crate::names::Stopped;
use crate::reason::{Dropped, Reason};

impl Guard {
    pub(super) fn of_guest(
        &mut self,
        frame: &Frame<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<Verdict, Dropped> {
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
                if *target != link.gateway_v4 && IpAddr::V4(*target) != link.dns {
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
        tcp: &Tcp<'_>,
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
                let (names, rules) = (&mut self.names, &self.rules);
                let judge = |message: &[u8]| names.ask(tcp.source, message, rules, now);
                match flow.conversation.as_mut().map(|heard| heard.guest_sent(tcp, judge)) {
                    None | Some(Ok(())) => {}
                    Some(Err(Heard::Gap)) => return Err(Dropped::Early),
                    Some(Err(Heard::Strange)) => {
                        return Err(self.cut(&key, Stopped::Dropped(Dropped::Dns), now));
                    }
                    Some(Err(Heard::Refused(stopped))) => return Err(self.cut(&key, stopped, now)),
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
            // As a host that knows of no such connection, so that the guest forgets it, too. A reset has no answer. Each one is
            // answered: of the acknowledgments that were on their way when a connection was cut, the guest takes the answer to
            // the last one only.
            if !tcp.rst {
                self.send(Side::Guest, answers::refuse_tcp(&link, packet, tcp));
            }
            return Err(Dropped::NoConnection);
        }
        // Data in the first segment (RFC 7413) would not be judged. The guest's kernel sends it again without.
        if self.is_with_resolver(&key) && !tcp.payload.is_empty() {
            return Err(Dropped::Dns);
        }
        // The same a second later, when there may be room.
        if self.is_with_resolver(&key) && self.flows.conversations() >= MAX_CONVERSATIONS {
            return Err(Dropped::Early);
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
        if (packet.target, udp.target) == (link.dns, DNS) {
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
        tcp: Option<&Tcp<'_>>,
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
        if self.is_with_resolver(&key) {
            flow.conversation = tcp.map(Conversation::new);
        }
        flow.count_up(bytes, now);
        self.flows.insert(key, flow);
        self.connections += 1;
        Ok(Verdict::Pass)
    }

    fn is_with_resolver(&self, key: &Key) -> bool {
        (key.address, key.port) == (self.rules.policy.link.dns, DNS)
    }

    fn may_open(&mut self, key: &Key, name: Option<&str>, now: Instant) -> Result<(), Reason> {
        // What is said to the resolver is judged by itself.
        if !self.is_with_resolver(key) {
            self.rules.may_reach(key.protocol, key.address, key.port, name)?;
        }
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
}
