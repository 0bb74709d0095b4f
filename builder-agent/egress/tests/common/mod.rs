//! A guard, a clock that is moved by hand, and frames of both sides.
//!
//! Frames are made with `etherparse`, so tests and the guard would share its mistakes; the agent's test `network` has real kernels and
//! a real user-mode network at the two ends.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use egress::{Event, Guard, Link, Policy, Side, Verdict};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpSlice, TransportSlice};

pub const PEER: &str = "1.1.1.1";
pub const PEER6: &str = "2606:4700::1111";
pub const DNS: &str = "192.0.2.53";
/// The guest's port.
pub const PORT: u16 = 40_000;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

pub fn link() -> Link {
    Link::default()
}

fn guest_of(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => link().guest_v4.into(),
        IpAddr::V6(_) => link().guest_v6.into(),
    }
}

/// The start of a packet with any addresses.
pub fn packet(from: ([u8; 6], IpAddr), to: ([u8; 6], IpAddr)) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(from.0, to.0);
    match (from.1, to.1) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        other => panic!("{other:?}"),
    }
}

/// The start of a packet of the guest to `peer`.
pub fn out(peer: &str) -> PacketBuilderStep<IpHeaders> {
    let peer = ip(peer);
    packet((link().guest_mac.0, guest_of(peer)), (link().gateway_mac.0, peer))
}

/// The start of a packet of `peer` to the guest.
pub fn inward(peer: &str) -> PacketBuilderStep<IpHeaders> {
    let peer = ip(peer);
    packet((link().gateway_mac.0, peer), (link().guest_mac.0, guest_of(peer)))
}

/// A segment: flags as letters (`S`, `A`, `F`, `R`), then sequence number, acknowledged number, payload.
pub fn segment(
    start: PacketBuilderStep<IpHeaders>,
    ports: (u16, u16),
    flags: &str,
    (sequence, acknowledged): (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = start.tcp(ports.0, ports.1, sequence, 65_000);
    for flag in flags.chars() {
        tcp = match flag {
            'S' => tcp.syn(),
            'A' => tcp.ack(acknowledged),
            'F' => tcp.fin(),
            'R' => tcp.rst(),
            other => panic!("{other}"),
        };
    }
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, payload).expect("a frame");
    bytes
}

pub fn syn(peer: &str, port: u16) -> Vec<u8> {
    segment(out(peer), (PORT, port), "S", (100, 0), &[])
}

pub fn datagram(start: PacketBuilderStep<IpHeaders>, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    start.udp(ports.0, ports.1).write(&mut bytes, payload).expect("a frame");
    bytes
}

pub struct Bench {
    pub guard: Guard,
    pub now: Instant,
}

impl Bench {
    pub fn new(policy: Policy) -> Self {
        Self { guard: Guard::new(policy), now: Instant::now() }
    }

    pub fn guest(&mut self, frame: &[u8]) -> Verdict {
        self.guard.from_guest(frame, self.now)
    }

    pub fn network(&mut self, frame: &[u8]) -> Verdict {
        self.guard.from_network(frame, self.now)
    }

    pub fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.guard.tick(self.now);
    }

    /// The guard's own frames to this side.
    pub fn said(&mut self, side: Side) -> Vec<Vec<u8>> {
        self.guard.outgoing(side).drain(..).collect()
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.guard.take_event()).collect()
    }

    /// The refusals until now, as text.
    pub fn refusals(&mut self) -> Vec<String> {
        self.pass(1);
        let text = |event| match event {
            Event::Refused { reason, .. } => Some(reason.to_string()),
            _ => None,
        };
        self.events().into_iter().filter_map(text).collect()
    }

    /// A connection of the guest's with three segments.
    pub fn connect(&mut self, peer: &str, port: u16) {
        assert_eq!(self.guest(&syn(peer, port)), Verdict::Pass);
        let answer = segment(inward(peer), (port, PORT), "SA", (500, 101), &[]);
        assert_eq!(self.network(&answer), Verdict::Pass);
        let third = segment(out(peer), (PORT, port), "A", (101, 501), &[]);
        assert_eq!(self.guest(&third), Verdict::Pass);
    }

    /// Ends everything. Returns all events.
    pub fn finish(&mut self) -> Vec<Event> {
        self.guard.finish(self.now);
        self.events()
    }
}

/// The segment in a frame: its flags and numbers.
pub fn flags(frame: &[u8]) -> (String, u32, u32) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("{sliced:?}") };
    let set = |flag: bool, letter: &str| if flag { letter.to_owned() } else { String::new() };
    let text = |tcp: &TcpSlice<'_>| {
        [set(tcp.syn(), "S"), set(tcp.ack(), "A"), set(tcp.fin(), "F"), set(tcp.rst(), "R")].concat()
    };
    (text(&tcp), tcp.sequence_number(), tcp.acknowledgment_number())
}

/// The type and code of ICMP in a frame.
pub fn icmp(frame: &[u8]) -> (u8, u8) {
    match SlicedPacket::from_ethernet(frame).expect("a frame").transport {
        Some(TransportSlice::Icmpv4(icmp)) => (icmp.type_u8(), icmp.code_u8()),
        Some(TransportSlice::Icmpv6(icmp)) => (icmp.type_u8(), icmp.code_u8()),
        other => panic!("{other:?}"),
    }
}

/// The payload of UDP in a frame.
pub fn payload(frame: &[u8]) -> Vec<u8> {
    match SlicedPacket::from_ethernet(frame).expect("a frame").transport {
        Some(TransportSlice::Udp(udp)) => udp.payload().to_vec(),
        other => panic!("{other:?}"),
    }
}

pub fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).expect("a short label"));
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

const A: u16 = 1;
const AAAA: u16 = 28;

/// A query as resolver libraries send it.
pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend(wire_name(name));
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out
}

/// The data of a record.
pub enum Data {
    Address(&'static str),
    Alias(&'static str),
}

/// An answer; each record has an owner, data, and seconds.
pub fn answer(query: &[u8], records: &[(&str, Data, u32)]) -> Vec<u8> {
    let mut out = query.to_vec();
    out[2..4].copy_from_slice(&[0x81, 0x80]);
    out[6..8].copy_from_slice(&u16::try_from(records.len()).expect("few").to_be_bytes());
    for (owner, data, seconds) in records {
        let (kind, data) = match data {
            Data::Alias(name) => (5, wire_name(name)),
            Data::Address(address) => match ip(address) {
                IpAddr::V4(v4) => (A, v4.octets().to_vec()),
                IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
            },
        };
        out.extend(wire_name(owner));
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(seconds.to_be_bytes());
        out.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
        out.extend(data);
    }
    out
}

impl Bench {
    /// The guest asks for a name, and the resolver gives this address.
    pub fn resolve(&mut self, name: &'static str, address: &'static str) {
        let kind = if ip(address).is_ipv4() { A } else { AAAA };
        let query = query(7, name, kind);
        assert_eq!(self.guest(&datagram(out(DNS), (53535, 53), &query)), Verdict::Pass, "{name}");
        let answer = answer(&query, &[(name, Data::Address(address), 60)]);
        assert_eq!(self.network(&datagram(inward(DNS), (53, 53535), &answer)), Verdict::Pass, "{name}");
    }
}

pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect(text)
}
