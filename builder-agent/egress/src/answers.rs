//! Frames that the guard sends itself: refusals, ends of connections, and who the gateway is.

use std::net::IpAddr;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::{DestUnreachableCode, NeighborAdvertisementHeader};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Type, Icmpv6Type, PacketBuilder,
    PacketBuilderStep,
};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::frames::{Packet, Tcp};
use crate::policy::{Link, Mac};

/// Nobody sees how far our packets have come.
const HOP_LIMIT: u8 = 64;
/// Neighbour discovery requires it, since no router passes a packet on with it. RFC 4861, 7.1.
const ON_LINK: u8 = 255;
/// Of a refused packet, the part that an answer repeats: the headers, by which the guest's kernel finds the socket.
const QUOTED: usize = 48;

/// Where a frame comes from and goes to.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub source_mac: Mac,
    pub target_mac: Mac,
    pub source: IpAddr,
    pub target: IpAddr,
}

impl Way {
    /// From somewhere in the network to the guest.
    pub fn to_guest(link: &Link, source: IpAddr) -> Self {
        let target = guest_address(link, source);
        Self { source_mac: link.gateway_mac, target_mac: link.guest_mac, source, target }
    }

    /// From the guest to somewhere in the network.
    pub fn to_network(link: &Link, target: IpAddr) -> Self {
        let source = guest_address(link, target);
        Self { source_mac: link.guest_mac, target_mac: link.gateway_mac, source, target }
    }

    /// `None` if one address is of IPv4 and the other of IPv6: no packet has these.
    fn start(self, hop_limit: u8) -> Option<PacketBuilderStep<etherparse::IpHeaders>> {
        let ethernet = PacketBuilder::ethernet2(self.source_mac.0, self.target_mac.0);
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                Some(ethernet.ipv4(source.octets(), target.octets(), hop_limit))
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                Some(ethernet.ipv6(source.octets(), target.octets(), hop_limit))
            }
            _ => None,
        }
    }
}

/// The guest's address of the same version.
pub fn guest_address(link: &Link, peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => link.guest_v4.into(),
        IpAddr::V6(_) => link.guest_v6.into(),
    }
}

/// A reset of the connection to which this segment of the guest's wants to belong. RFC 9293, 3.10.7.1.
pub fn refuse_tcp(link: &Link, packet: &Packet<'_>, tcp: &Tcp<'_>) -> Option<Vec<u8>> {
    let (sequence, acknowledged) = match tcp.acknowledged {
        Some(expected) => (expected, None),
        None => (0, Some(tcp.next())),
    };
    let way = Way::to_guest(link, packet.target);
    reset(way, (tcp.target, tcp.source), sequence, acknowledged)
}

/// A reset with these ports and numbers.
pub fn reset(
    way: Way,
    (source, target): (u16, u16),
    sequence: u32,
    acknowledged: Option<u32>,
) -> Option<Vec<u8>> {
    let mut tcp = way.start(HOP_LIMIT)?.tcp(source, target, sequence, 0).rst();
    if let Some(acknowledged) = acknowledged {
        tcp = tcp.ack(acknowledged);
    }
    let mut out = Vec::new();
    tcp.write(&mut out, &[]).ok()?;
    Some(out)
}

/// "Communication administratively prohibited", from the gateway.
pub fn prohibited(link: &Link, packet: &Packet<'_>) -> Option<Vec<u8>> {
    let quoted = &packet.bytes[..packet.bytes.len().min(QUOTED)];
    let mut out = Vec::new();
    match packet.target {
        IpAddr::V4(_) => {
            let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FilterProhibited);
            let start = Way::to_guest(link, link.gateway_v4.into()).start(HOP_LIMIT)?;
            start.icmpv4(kind).write(&mut out, quoted).ok()?;
        }
        IpAddr::V6(_) => {
            let kind = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Prohibited);
            let start = Way::to_guest(link, link.gateway_v6.into()).start(HOP_LIMIT)?;
            start.icmpv6(kind).write(&mut out, quoted).ok()?;
        }
    }
    Some(out)
}

/// A datagram from the network to the guest.
pub fn datagram(link: &Link, source: IpAddr, (from, to): (u16, u16), payload: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    Way::to_guest(link, source).start(HOP_LIMIT)?.udp(from, to).write(&mut out, payload).ok()?;
    Some(out)
}

/// The gateway has this IPv4 address.
pub fn arp_reply(link: &Link, address: Ipv4Addr) -> Option<Vec<u8>> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REPLY,
        &link.gateway_mac.0,
        &address.octets(),
        &link.guest_mac.0,
        &link.guest_v4.octets(),
    );
    let mut out = Vec::new();
    PacketBuilder::ethernet2(link.gateway_mac.0, link.guest_mac.0).arp(packet.ok()?).write(&mut out).ok()?;
    Some(out)
}

/// The gateway has its IPv6 address; said to who asked. RFC 4861, 4.4, with the option "target link-layer address".
pub fn neighbour_advertisement(link: &Link, asker: Ipv6Addr) -> Option<Vec<u8>> {
    let kind = Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
        router: true,
        solicited: true,
        r#override: true,
    });
    let mut body = link.gateway_v6.octets().to_vec();
    body.extend([2, 1]);
    body.extend(link.gateway_mac.0);
    let way = Way { target: asker.into(), ..Way::to_guest(link, link.gateway_v6.into()) };
    let mut out = Vec::new();
    way.start(ON_LINK)?.icmpv6(kind).write(&mut out, &body).ok()?;
    Some(out)
}
