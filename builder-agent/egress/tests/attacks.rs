//! What a hostile guest, or a hostile network, tries with single frames; nothing of it passes.

mod common;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use common::*;
use egress::{Dropped, Event, Limits, Mac, Policy, Side, Verdict};
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Header, PacketBuilder,
};

/// What the guard counted until now.
fn counted(bench: &mut Bench) -> BTreeMap<Dropped, u64> {
    match bench.finish().pop() {
        Some(Event::Total { dropped, up: 0, down: 0, .. }) => dropped,
        other => panic!("{other:?}"),
    }
}

/// Each of these frames is dropped, for this reason.
fn dropped_from(side: Side, why: Dropped, frames: &[Vec<u8>]) {
    let mut bench = Bench::new(Policy::default());
    for frame in frames {
        let verdict = match side {
            Side::Guest => bench.guest(frame),
            Side::Network => bench.network(frame),
        };
        assert_eq!(verdict, Verdict::Drop, "{why:?}: {frame:02x?}");
    }
    assert_eq!(counted(&mut bench), BTreeMap::from([(why, frames.len() as u64)]));
}

#[test]
fn a_spoofed_source_is_dropped() {
    let gateway = link().gateway_mac.0;
    let guest = link().guest_mac.0;
    let from = |mac, address: &str, peer: &str| {
        segment(packet((mac, ip(address)), (gateway, ip(peer))), (PORT, 443), "S", (1, 0), &[])
    };
    dropped_from(
        Side::Guest,
        Dropped::Source,
        &[
            from([0x52, 0x55, 0, 0, 0, 3], "192.0.2.2", PEER),
            from(gateway, "192.0.2.2", PEER),
            from(guest, "192.0.2.3", PEER),
            from(guest, "10.0.0.1", PEER),
            from(guest, PEER, PEER),
            from(guest, "fd52:5500::3", PEER6),
            from(guest, "fe80::2", PEER6),
            from(guest, PEER6, PEER6),
        ],
    );
}

#[test]
fn a_frame_to_another_machine_of_the_link_is_dropped() {
    let to = |mac: [u8; 6]| {
        let start = packet((link().guest_mac.0, link().guest_v4.into()), (mac, ip(PEER)));
        segment(start, (PORT, 443), "S", (1, 0), &[])
    };
    dropped_from(Side::Guest, Dropped::Target, &[to([0x52, 0x55, 0, 0, 0, 9]), to(link().guest_mac.0)]);
}

#[test]
fn nothing_connects_to_the_guest() {
    let listening = |flags| segment(inward(PEER), (443, PORT), flags, (1, 1), &[]);
    dropped_from(Side::Network, Dropped::Inward, &[listening("S"), listening("SF"), listening("SR")]);
    dropped_from(
        Side::Network,
        Dropped::NoConnection,
        &[
            listening("SA"),
            listening("A"),
            listening("R"),
            datagram(inward(PEER), (443, PORT), b"hello"),
            datagram(inward("192.0.2.1"), (443, PORT), b"hello"),
        ],
    );
    // Also not inside of a connection that is open: another port, or the same one with a new SYN.
    let mut bench = Bench::new(Policy::default());
    bench.connect(PEER, 443);
    for frame in [
        segment(inward(PEER), (443, PORT), "S", (9, 0), &[]),
        segment(inward(PEER), (80, PORT), "A", (9, 9), &[]),
        segment(inward(PEER), (443, PORT + 1), "A", (9, 9), &[]),
        segment(inward("1.1.1.2"), (443, PORT), "A", (9, 9), &[]),
        datagram(inward(PEER), (443, PORT), b"hello"),
    ] {
        assert_eq!(bench.network(&frame), Verdict::Drop);
    }
    // A guest that answers a segment that never came opens nothing either.
    let answer = segment(out("1.1.1.3"), (22, 5000), "SA", (1, 1), &[]);
    assert_eq!(bench.guest(&answer), Verdict::Drop);
}

#[test]
fn what_the_network_sends_comes_from_the_gateway_to_the_guest() {
    let (guest, gateway) = (link().guest_mac.0, link().gateway_mac.0);
    let from = |from, to| segment(packet(from, to), (443, PORT), "SA", (1, 1), &[]);
    dropped_from(
        Side::Network,
        Dropped::Source,
        &[
            from(([2; 6], ip(PEER)), (guest, ip("192.0.2.2"))),
            from((guest, ip(PEER)), (guest, ip("192.0.2.2"))),
        ],
    );
    dropped_from(
        Side::Network,
        Dropped::Target,
        &[
            from((gateway, ip(PEER)), ([2; 6], ip("192.0.2.2"))),
            from((gateway, ip(PEER)), (guest, ip("192.0.2.3"))),
            from((gateway, ip(PEER6)), (guest, ip("fd52:5500::3"))),
        ],
    );
}

/// A frame with this IPv4 header over a TCP segment.
fn with_v4(change: impl Fn(&mut Ipv4Header)) -> Vec<u8> {
    let mut header =
        Ipv4Header::new(0, 64, IpNumber::TCP, link().guest_v4.octets(), v4(PEER).octets()).expect("a header");
    change(&mut header);
    let start = PacketBuilder::ethernet2(link().guest_mac.0, link().gateway_mac.0);
    let headers = etherparse::IpHeaders::Ipv4(header, Ipv4Extensions::default());
    let mut bytes = Vec::new();
    start.ip(headers).tcp(PORT, 443, 1, 1000).syn().write(&mut bytes, &[]).expect("a frame");
    bytes
}

#[test]
fn fragments_and_options_of_ipv4_are_dropped() {
    dropped_from(
        Side::Guest,
        Dropped::Fragment,
        &[
            with_v4(|header| header.more_fragments = true),
            with_v4(|header| header.fragment_offset = 1.try_into().expect("an offset")),
        ],
    );
    // Loose and strict source routes, and a record of the route.
    let options = |kind: u8| with_v4(|header| header.options = [kind, 7, 4, 10, 0, 0, 1, 0].into());
    dropped_from(Side::Guest, Dropped::Options, &[options(131), options(137), options(7)]);
}

/// A frame of IPv6 with this next header and payload.
fn with_v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: u16::try_from(payload.len()).expect("short"),
        next_header: IpNumber(next),
        hop_limit: 64,
        source: link().guest_v6.octets(),
        destination: PEER6.parse::<Ipv6Addr>().expect("an address").octets(),
        ..Ipv6Header::default()
    };
    let mut bytes = [link().gateway_mac.0, link().guest_mac.0].concat();
    bytes.extend([0x86, 0xdd]);
    bytes.extend(header.to_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn extension_headers_of_ipv6_are_dropped() {
    let frames: Vec<Vec<u8>> = [0, 43, 44, 51, 60, 135, 139, 140]
        .map(|next| with_v6(next, &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
        .into();
    dropped_from(Side::Guest, Dropped::ExtensionHeader, &frames);
}

#[test]
fn tunnels_and_pings_are_refused_with_an_answer() {
    let mut bench = Bench::new(Policy::default());
    // IPIP, 6in4, GRE, ESP, SCTP.
    let tunnels = [4, 41, 47, 50, 132];
    for number in tunnels {
        let mut v4 = with_v4(|_| {});
        v4[23] = number;
        for (frame, error) in [(v4, (3, 13)), (with_v6(number, &[0; 40]), (1, 1))] {
            assert_eq!(bench.guest(&frame), Verdict::Drop, "{number}");
            assert_eq!(bench.said(Side::Guest).iter().map(|frame| icmp(frame)).collect::<Vec<_>>(), [error]);
        }
    }
    let echo = IcmpEchoHeader { id: 1, seq: 1 };
    let mut ping = Vec::new();
    out(PEER).icmpv4(Icmpv4Type::EchoRequest(echo)).write(&mut ping, b"tunnel").expect("a frame");
    let mut ping6 = Vec::new();
    out(PEER6).icmpv6(Icmpv6Type::EchoRequest(echo)).write(&mut ping6, b"tunnel").expect("a frame");
    for (frame, error) in [(ping, (3, 13)), (ping6, (1, 1))] {
        assert_eq!(bench.guest(&frame), Verdict::Drop);
        assert_eq!(bench.said(Side::Guest).iter().map(|frame| icmp(frame)).collect::<Vec<_>>(), [error]);
    }
    let texts = bench.refusals();
    assert_eq!(texts.len(), 2 * tunnels.len() + 2, "{texts:?}");
    assert!(texts.contains(&"IP protocol 47 does not pass, only TCP and UDP do".to_owned()), "{texts:?}");
}

#[test]
fn other_icmp_passes_in_no_direction() {
    let mut bytes = Vec::new();
    // An error about an error, or a redirect.
    let kind = Icmpv4Type::Unknown { type_u8: 5, code_u8: 1, bytes5to8: [10, 0, 0, 1] };
    out(PEER).icmpv4(kind).write(&mut bytes, &[0; 28]).expect("a frame");
    dropped_from(Side::Guest, Dropped::Icmp, &[bytes]);
    let mut bytes = Vec::new();
    let kind = Icmpv4Type::Unknown { type_u8: 5, code_u8: 1, bytes5to8: [10, 0, 0, 1] };
    inward(PEER).icmpv4(kind).write(&mut bytes, &[0; 28]).expect("a frame");
    let mut advertisement = Vec::new();
    let kind = Icmpv6Type::Unknown { type_u8: 134, code_u8: 0, bytes5to8: [64, 0, 7, 8] };
    inward("fe80::1").icmpv6(kind).write(&mut advertisement, &[0; 8]).expect("a frame");
    dropped_from(Side::Network, Dropped::Icmp, &[bytes, advertisement]);
}

#[test]
fn multicast_and_broadcast_are_dropped() {
    let guest = |peer: &str| {
        (link().guest_mac.0, if ip(peer).is_ipv4() { ip("192.0.2.2") } else { ip("fd52:5500::2") })
    };
    let to = |mac: [u8; 6], peer: &str| datagram(packet(guest(peer), (mac, ip(peer))), (68, 67), b"discover");
    dropped_from(
        Side::Guest,
        Dropped::Multicast,
        &[
            to([0xff; 6], "255.255.255.255"),
            to([0xff; 6], PEER),
            to([1, 0, 0x5e, 0, 0, 0xfb], "224.0.0.251"),
            to([0x33, 0x33, 0, 0, 0, 0xfb], "ff02::fb"),
            to(link().gateway_mac.0, "224.0.0.251"),
            to(link().gateway_mac.0, "ff02::fb"),
            to(link().gateway_mac.0, "255.255.255.255"),
        ],
    );
}

#[test]
fn bytes_that_are_no_packet_are_dropped() {
    let mut long = syn(PEER, 443);
    long.resize(1515, 0);
    dropped_from(Side::Guest, Dropped::Oversized, &[long, vec![0; 70_000]]);
    let good = syn(PEER, 443);
    let mut trailing = good.clone();
    trailing.push(0);
    let mut short_tcp = good.clone();
    // A header of TCP that is longer than the packet.
    short_tcp[14 + 20 + 12] = 0xf0;
    let mut version = good.clone();
    version[14] = 0x65;
    let mut datagrams = datagram(out(PEER), (PORT, 443), b"hello");
    // UDP says that it is longer, then shorter.
    datagrams[14 + 20 + 5] += 1;
    let longer = datagrams.clone();
    datagrams[14 + 20 + 5] -= 2;
    let mut malformed: Vec<Vec<u8>> = vec![trailing, short_tcp, version, longer, datagrams, Vec::new()];
    malformed.extend((0..good.len()).map(|length| good[..length].to_vec()));
    dropped_from(Side::Guest, Dropped::Malformed, &malformed);
    let mut vlan = good[..12].to_vec();
    vlan.extend([0x81, 0, 0, 7]);
    vlan.extend(&good[12..]);
    dropped_from(Side::Guest, Dropped::EtherType, &[vlan]);
}

#[test]
fn private_addresses_are_refused_in_every_form() {
    let policy = Policy { own: vec![ip("9.9.9.9")], ..Policy::default() };
    let mut bench = Bench::new(policy);
    for peer in [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "192.0.2.1",
        "192.0.2.53",
        "9.9.9.9",
        "::ffff:9.9.9.9",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "2002:7f00:1::1",
        "2001:0:7f00:1::",
        "fe80::1",
        "fd52:5500::1",
        "::1",
    ] {
        assert_eq!(bench.guest(&syn(peer, 80)), Verdict::Drop, "{peer}");
        let answers = bench.said(Side::Guest);
        assert_eq!(
            answers.iter().map(|frame| flags(frame)).collect::<Vec<_>>(),
            [("AR".to_owned(), 0, 101)],
            "{peer}"
        );
        assert_eq!(bench.guest(&datagram(out(peer), (PORT, 443), b"x")), Verdict::Drop, "{peer}");
        let expected = if ip(peer).is_ipv4() { (3, 13) } else { (1, 1) };
        assert_eq!(
            bench.said(Side::Guest).iter().map(|frame| icmp(frame)).collect::<Vec<_>>(),
            [expected],
            "{peer}"
        );
        bench.pass(1);
    }
    assert_eq!(bench.guard.open_connections(), 0);
    assert_eq!(bench.said(Side::Network), Vec::<Vec<u8>>::new());
}

#[test]
fn a_flood_of_first_segments_fills_neither_the_table_nor_the_answers() {
    let limits = Limits { max_connections: 100, ..Limits::default() };
    let mut bench = Bench::new(Policy { limits, ..Policy::default() });
    for second in 0..20 {
        for port in 1..=5000 {
            bench.guest(&segment(out(PEER), (port, 443), "S", (second, 0), &[]));
        }
        assert!(bench.guard.open_connections() <= 100);
        assert!(bench.said(Side::Guest).len() <= 400);
        assert!(bench.said(Side::Network).len() <= 5000);
        bench.pass(1);
        assert!(bench.events().len() < 500);
    }
}

#[test]
fn a_guest_sends_udp_from_its_own_ports_only() {
    let mut bench = Bench::new(Policy::default());
    let asked = query(1, "example.org", 1);
    for port in [0, 53, 443, 32767, 61000, 65535] {
        assert_eq!(bench.guest(&datagram(out(PEER), (port, 443), b"quic")), Verdict::Drop, "{port}");
        assert_eq!(bench.guest(&datagram(out(DNS), (port, 53), &asked)), Verdict::Drop, "{port}");
        assert_eq!(bench.said(Side::Guest).len(), 2, "{port}");
    }
    assert_eq!(bench.refusals()[0], "the sending port 0 of UDP is not in the guest's range 32768-60999");
    for port in [32768, 60999] {
        assert_eq!(bench.guest(&datagram(out(PEER), (port, 443), b"quic")), Verdict::Pass, "{port}");
        assert_eq!(bench.guest(&datagram(out(DNS), (port, 53), &asked)), Verdict::Pass, "{port}");
    }
}

#[test]
fn a_scan_has_few_lines() {
    let mut bench = Bench::new(Policy::default());
    let mut scanned = 0;
    for host in 0..20_u32 {
        for port in 1..500 {
            bench.guest(&syn(&format!("10.0.0.{host}"), port));
            scanned += 1;
        }
        bench.pass(1);
    }
    let events = bench.finish();
    let told: u64 = events
        .iter()
        .map(|event| match event {
            Event::Refused { times, .. } | Event::RefusedMore { times } => *times,
            Event::Total { refused, .. } => {
                assert_eq!(*refused, scanned);
                0
            }
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(told, scanned, "each refusal is in a line or in a number");
    assert!(events.len() < 110, "{}", events.len());
}

#[test]
fn only_the_gateway_and_the_resolver_have_neighbours_and_only_the_guest_asks() {
    let request = |sender: Mac, address: &str, target: &str| {
        let packet = etherparse::ArpPacket::new(
            etherparse::ArpHardwareId::ETHERNET,
            etherparse::EtherType::IPV4,
            etherparse::ArpOperation::REQUEST,
            &sender.0,
            &v4(address).octets(),
            &[0; 6],
            &v4(target).octets(),
        );
        let mut bytes = Vec::new();
        let start = PacketBuilder::ethernet2(link().guest_mac.0, [0xff; 6]);
        start.arp(packet.expect("ARP")).write(&mut bytes).expect("a frame");
        bytes
    };
    let guest = link().guest_mac;
    let mut bench = Bench::new(Policy::default());
    for target in ["192.0.2.1", DNS] {
        assert_eq!(bench.guest(&request(guest, "192.0.2.2", target)), Verdict::Drop, "it is answered here");
        let answers = bench.said(Side::Guest);
        assert_eq!(answers.len(), 1, "{target}");
        assert_eq!(answers[0][..6], guest.0);
        // The sender in the reply is the gateway with the address that was asked for.
        assert_eq!(answers[0][22..28], link().gateway_mac.0);
        assert_eq!(answers[0][28..32], v4(target).octets());
    }
    assert_eq!(bench.said(Side::Network), Vec::<Vec<u8>>::new());
    dropped_from(
        Side::Guest,
        Dropped::Neighbour,
        &[request(guest, "192.0.2.2", "192.0.2.3"), request(guest, "192.0.2.2", "192.0.2.2")],
    );
    dropped_from(
        Side::Guest,
        Dropped::Source,
        &[request(link().gateway_mac, "192.0.2.2", "192.0.2.1"), request(guest, "192.0.2.1", "192.0.2.1")],
    );
    // The network never asks.
    let mut reply = request(guest, "192.0.2.2", "192.0.2.1");
    reply[6..12].copy_from_slice(&link().gateway_mac.0);
    dropped_from(Side::Network, Dropped::Neighbour, &[reply]);
}

#[test]
fn the_gateways_ipv6_address_is_answered_here() {
    let solicit = |target: &str, hops: u8| {
        let mut body = target.parse::<Ipv6Addr>().expect(target).octets().to_vec();
        body.extend([1, 1]);
        body.extend(link().guest_mac.0);
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(link().guest_mac.0, [0x33, 0x33, 0xff, 0, 0, 1])
            .ipv6(link().guest_v6.octets(), ip_octets("ff02::1:ff00:1"), hops)
            .icmpv6(Icmpv6Type::NeighborSolicitation)
            .write(&mut bytes, &body)
            .expect("a frame");
        bytes
    };
    let mut bench = Bench::new(Policy::default());
    assert_eq!(bench.guest(&solicit("fe80::1", 255)), Verdict::Drop);
    let answers = bench.said(Side::Guest);
    assert_eq!(answers.iter().map(|frame| icmp(frame)).collect::<Vec<_>>(), [(136, 0)]);
    assert_eq!(answers[0][21], 255, "the hop limit that receivers require");
    dropped_from(Side::Guest, Dropped::Neighbour, &[solicit("fe80::2", 255), solicit("fe80::1", 64)]);
}

fn ip_octets(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().expect(text).octets()
}
