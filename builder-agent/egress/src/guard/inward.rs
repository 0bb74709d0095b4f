//! Frames of the user-mode network.

use std::time::Instant;

use super::{DNS, Guard, Side, Verdict, is_group};
use crate::answers::{self, Way, guest_address};
use crate::conversation::Heard;
use crate::events::Protocol;
use crate::flows::Key;
use crate::frames::{Body, Content, Frame};
use crate::names::Stopped;
use crate::reason::Dropped;

impl Guard {
    pub(super) fn of_network(
        &mut self,
        frame: &Frame<'_>,
        bytes: usize,
        now: Instant,
    ) -> Result<Verdict, Dropped> {
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
                let (names, rules) = (&mut self.names, &self.rules);
                let judge = |message: &[u8]| names.answered(tcp.target, message, rules, now);
                match flow.conversation.as_mut().map(|heard| heard.resolver_sent(tcp, judge)) {
                    None | Some(Ok(())) => {}
                    Some(Err(Heard::Gap)) => return Err(Dropped::Early),
                    Some(Err(Heard::Strange)) => {
                        return Err(self.cut(&key, Stopped::Dropped(Dropped::Dns), now));
                    }
                    Some(Err(Heard::Refused(stopped))) => return Err(self.cut(&key, stopped, now)),
                }
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
            Body::Udp(udp) if (packet.source, udp.source) == (link.dns, DNS) => {
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
}
