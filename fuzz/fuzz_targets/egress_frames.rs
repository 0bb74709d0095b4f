#![no_main]
//! Any frames of a guest and of its user-mode network, in any order and at any time, against the guard. What passes
//! outward goes to a public address from the guest's own, what passes inward belongs to something that passed outward,
//! tables and queues are bounded, and each line for the agent is short.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use addresses::{embedded_v4, is_public};
use egress::{Event, Guard, Limits, Link, Policy, Side, Verdict};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;

/// Peers: public, private, own, and forms of these.
const PEERS: [&str; 8] = [
    "1.1.1.1",
    "10.0.0.1",
    "9.9.9.9",
    "192.0.2.53",
    "2606:4700::1111",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "fe80::1",
];
const PORTS: [u16; 4] = [443, 53, 25, 8080];

/// The peer's address and port, the guest's port, and whether it is TCP, of a frame that passed.
fn way(frame: &[u8], outward: bool) -> (IpAddr, u16, u16, bool) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("what passes is a packet");
    let (source, target): (IpAddr, IpAddr) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other => panic!("{other:?} passed"),
    };
    let (from, to, tcp) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port(), true),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port(), false),
        other => panic!("{other:?} passed"),
    };
    let guest = if outward { source } else { target };
    let link = Link::default();
    assert!(guest == link.guest_v4 || guest == link.guest_v6, "{guest}");
    if outward { (target, to, from, tcp) } else { (source, from, to, tcp) }
}

/// A frame that is nearly right.
fn made(steer: &[u8; 6], rest: &[u8], outward: bool) -> Option<Vec<u8>> {
    let link = Link::default();
    let peer: IpAddr = PEERS[usize::from(steer[0] & 7)].parse().ok()?;
    let (port, guest_port) = (PORTS[usize::from(steer[1] & 3)], 40_000 + u16::from(steer[1] >> 5));
    let payload = &rest[..rest.len().min(usize::from(steer[2]))];
    let (macs, ports) = match outward {
        true => ((link.guest_mac.0, link.gateway_mac.0), (guest_port, port)),
        false => ((link.gateway_mac.0, link.guest_mac.0), (port, guest_port)),
    };
    let start = PacketBuilder::ethernet2(macs.0, macs.1);
    let start = match peer {
        IpAddr::V4(peer) => {
            let (from, to) = if outward { (link.guest_v4, peer) } else { (peer, link.guest_v4) };
            start.ipv4(from.octets(), to.octets(), 64)
        }
        IpAddr::V6(peer) => {
            let (from, to) = if outward { (link.guest_v6, peer) } else { (peer, link.guest_v6) };
            start.ipv6(from.octets(), to.octets(), 64)
        }
    };
    let mut frame = Vec::new();
    if steer[3] & 1 == 0 {
        start.udp(ports.0, ports.1).write(&mut frame, payload).ok()?;
    } else {
        let mut tcp = start.tcp(ports.0, ports.1, u32::from(steer[4]), 1000);
        for (bit, flag) in [(2, 'S'), (4, 'A'), (8, 'F'), (16, 'R')] {
            tcp = match (steer[3] & bit != 0, flag) {
                (true, 'S') => tcp.syn(),
                (true, 'A') => tcp.ack(u32::from(steer[5])),
                (true, 'F') => tcp.fin(),
                (true, 'R') => tcp.rst(),
                _ => tcp,
            };
        }
        tcp.write(&mut frame, payload).ok()?;
    }
    Some(frame)
}

fn check(event: &Event) {
    let line = serde_json::to_string(event).expect("JSON");
    assert!(line.len() < 4096 && !line.contains('\n'), "{line}");
    assert_eq!(&serde_json::from_str::<Event>(&line).expect("an event"), event);
}

fuzz_target!(|data: &[u8]| {
    let limits = Limits { max_connections: 4, max_bytes: 100_000, max_seconds: 50, ..Limits::default() };
    let policy = Policy {
        own: vec!["9.9.9.9".parse().expect("an address")],
        deny_names: vec!["*.evil".to_owned()],
        limits,
        ..Policy::default()
    };
    let dns: IpAddr = policy.link.dns;
    let (mut guard, mut now) = (Guard::new(policy), Instant::now());
    let mut opened = BTreeSet::new();
    let mut rest = data;
    while let Some((steer, after)) = rest.split_first_chunk::<8>() {
        let outward = steer[0] & 1 == 0;
        let raw = steer[0] & 2 != 0;
        now += Duration::from_millis(u64::from(steer[1]) * 20);
        let steering = [steer[2], steer[3], steer[4], steer[5], steer[6], steer[7]];
        let length = usize::from(steer[4]).min(after.len());
        rest = &after[length..];
        let frame = match raw {
            true => after[..length].to_vec(),
            false => match made(&steering, after, outward) {
                Some(mut frame) => {
                    // One byte is wrong, sometimes.
                    if steer[0] & 0xe0 == 0xe0 && !frame.is_empty() {
                        let at = usize::from(steer[7]) % frame.len();
                        frame[at] ^= steer[6];
                    }
                    frame
                }
                None => continue,
            },
        };
        let verdict = match outward {
            true => guard.from_guest(&frame, now),
            false => guard.from_network(&frame, now),
        };
        if verdict == Verdict::Pass {
            let way = way(&frame, outward);
            if outward {
                assert!(way.0 == dns && way.1 == 53 || is_public(way.0) && way.1 != 25, "{way:?}");
                let inner = match way.0.to_canonical() {
                    IpAddr::V4(v4) => Some(v4),
                    IpAddr::V6(v6) => embedded_v4(v6),
                };
                assert_ne!(inner, Some([9, 9, 9, 9].into()), "{way:?}");
                opened.insert(way);
            } else {
                assert!(opened.contains(&way), "{way:?}");
            }
        }
        guard.tick(now);
        assert!(guard.open_connections() <= 4);
        for side in [Side::Guest, Side::Network] {
            assert!(guard.outgoing(side).len() < 1000);
            for frame in guard.outgoing(side).drain(..) {
                assert!(frame.len() <= egress::MAX_FRAME);
                SlicedPacket::from_ethernet(&frame).expect("our own frames are right");
            }
        }
        while let Some(event) = guard.take_event() {
            check(&event);
        }
    }
    guard.finish(now);
    let mut last = None;
    while let Some(event) = guard.take_event() {
        check(&event);
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Total { up, down, .. }) if up + down <= 100_000));
});
