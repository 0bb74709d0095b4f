//! Bytes of a frame to its headers: Ethernet, ARP, IPv4, IPv6, TCP, UDP, and of ICMPv6 the neighbour solicitation.
//!
//! Headers are read with the library `etherparse`. Here is what it leaves to its caller: every length agrees with the
//! length of the frame, so nothing hides behind a packet, and what a packet could be taken for by somebody who reads
//! further (fragments, options, extension headers) is refused. A packet is then exactly one header of IP and one of
//! the protocol above. Checksums are not compared: a wrong one misleads nobody but the guest's own peer.
//! Not here: whose addresses they are, and what may pass (`guard`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Slice, Icmpv6Slice, IpNumber,
    Ipv4HeaderSlice, Ipv6HeaderSlice, TcpSlice, UdpSlice,
};

use crate::policy::Mac;
use crate::reason::Dropped;

/// Longest frame: 1500 bytes, the MTU of the link, and the Ethernet header.
pub const MAX_FRAME: usize = 1514;

/// Type of an ICMPv6 neighbour solicitation. RFC 4861, 4.3.
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Types of a ping, by version. RFC 792, RFC 4443.
const PINGS: [u8; 2] = [8, 128];
/// Headers that may be between an IPv6 header and its payload: hop-by-hop options, routing, fragment, authentication,
/// destination options, mobility, host identity, shim6. RFC 7045.
const EXTENSION_HEADERS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub source: Mac,
    pub target: Mac,
    pub content: Content<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Somebody asks who has an IPv4 address.
    ArpRequest {
        sender_mac: Mac,
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    OtherArp,
    Packet(Packet<'a>),
}

#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    pub source: IpAddr,
    pub target: IpAddr,
    pub hop_limit: u8,
    /// From the header of IP to the end of the frame.
    pub bytes: &'a [u8],
    pub body: Body<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    Tcp(Tcp<'a>),
    Udp(Udp<'a>),
    /// Somebody asks who has an IPv6 address.
    NeighbourSolicitation(Ipv6Addr),
    /// An echo request, with the number of its protocol.
    Ping(u8),
    OtherIcmp,
    Other(u8),
}

#[derive(Debug, Clone, Copy)]
pub struct Tcp<'a> {
    pub source: u16,
    pub target: u16,
    pub sequence: u32,
    /// Only if the flag says that there is one.
    pub acknowledged: Option<u32>,
    pub syn: bool,
    pub fin: bool,
    pub rst: bool,
    pub payload: &'a [u8],
}

impl Tcp<'_> {
    /// The sequence number behind this segment: SYN and FIN count as a byte each.
    pub fn next(&self) -> u32 {
        self.sequence
            // A frame has no more than 1514 bytes.
            .wrapping_add(self.payload.len() as u32)
            .wrapping_add(u32::from(self.syn))
            .wrapping_add(u32::from(self.fin))
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Udp<'a> {
    pub source: u16,
    pub target: u16,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Dropped> {
        if bytes.len() > MAX_FRAME {
            return Err(Dropped::Oversized);
        }
        let ethernet = Ethernet2Slice::from_slice_without_fcs(bytes).map_err(|_| Dropped::Malformed)?;
        let payload = ethernet.payload_slice();
        let content = match ethernet.ether_type() {
            EtherType::ARP => arp(payload)?,
            EtherType::IPV4 => Content::Packet(ipv4(payload)?),
            EtherType::IPV6 => Content::Packet(ipv6(payload)?),
            _ => return Err(Dropped::EtherType),
        };
        Ok(Self { source: Mac(ethernet.source()), target: Mac(ethernet.destination()), content })
    }
}

fn arp(bytes: &[u8]) -> Result<Content<'_>, Dropped> {
    let packet = ArpPacketSlice::from_slice(bytes).map_err(|_| Dropped::Malformed)?;
    let ethernet_and_ipv4 = packet.hw_addr_type() == ArpHardwareId::ETHERNET
        && packet.proto_addr_type() == EtherType::IPV4
        && (packet.hw_addr_size(), packet.proto_addr_size()) == (6, 4);
    if !ethernet_and_ipv4 || packet.operation() != ArpOperation::REQUEST {
        return Ok(Content::OtherArp);
    }
    let address =
        |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).map_err(|_| Dropped::Malformed);
    Ok(Content::ArpRequest {
        sender_mac: Mac(packet.sender_hw_addr().try_into().map_err(|_| Dropped::Malformed)?),
        sender: address(packet.sender_protocol_addr())?,
        target: address(packet.target_protocol_addr())?,
    })
}

fn ipv4(bytes: &[u8]) -> Result<Packet<'_>, Dropped> {
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Dropped::Malformed)?;
    if usize::from(header.total_len()) != bytes.len() {
        return Err(Dropped::Malformed);
    }
    if !header.options().is_empty() {
        return Err(Dropped::Options);
    }
    if header.is_fragmenting_payload() {
        return Err(Dropped::Fragment);
    }
    Ok(Packet {
        source: header.source_addr().into(),
        target: header.destination_addr().into(),
        hop_limit: header.ttl(),
        bytes,
        body: body(header.protocol(), &bytes[header.slice().len()..])?,
    })
}

fn ipv6(bytes: &[u8]) -> Result<Packet<'_>, Dropped> {
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Dropped::Malformed)?;
    let payload = &bytes[header.slice().len()..];
    if usize::from(header.payload_length()) != payload.len() {
        return Err(Dropped::Malformed);
    }
    if EXTENSION_HEADERS.contains(&header.next_header().0) {
        return Err(Dropped::ExtensionHeader);
    }
    Ok(Packet {
        source: header.source_addr().into(),
        target: header.destination_addr().into(),
        hop_limit: header.hop_limit(),
        bytes,
        body: body(header.next_header(), payload)?,
    })
}

fn body(protocol: IpNumber, payload: &[u8]) -> Result<Body<'_>, Dropped> {
    match protocol {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(payload).map_err(|_| Dropped::Malformed)?;
            Ok(Body::Tcp(Tcp {
                source: tcp.source_port(),
                target: tcp.destination_port(),
                sequence: tcp.sequence_number(),
                acknowledged: tcp.ack().then(|| tcp.acknowledgment_number()),
                syn: tcp.syn(),
                fin: tcp.fin(),
                rst: tcp.rst(),
                payload: tcp.payload(),
            }))
        }
        IpNumber::UDP => {
            let udp = UdpSlice::from_slice(payload).map_err(|_| Dropped::Malformed)?;
            if usize::from(udp.length()) != payload.len() {
                return Err(Dropped::Malformed);
            }
            let (source, target) = (udp.source_port(), udp.destination_port());
            Ok(Body::Udp(Udp { source, target, payload: udp.payload() }))
        }
        IpNumber::ICMP => {
            let kind = payload.first().ok_or(Dropped::Malformed)?;
            Ok(if *kind == PINGS[0] { Body::Ping(protocol.0) } else { Body::OtherIcmp })
        }
        IpNumber::IPV6_ICMP => {
            let icmp = Icmpv6Slice::from_slice(payload).map_err(|_| Dropped::Malformed)?;
            Ok(match (icmp.type_u8(), icmp.code_u8()) {
                (NEIGHBOUR_SOLICITATION, 0) => {
                    let target = icmp.payload().first_chunk::<16>().ok_or(Dropped::Malformed)?;
                    Body::NeighbourSolicitation((*target).into())
                }
                (kind, _) if kind == PINGS[1] => Body::Ping(protocol.0),
                _ => Body::OtherIcmp,
            })
        }
        other => Ok(Body::Other(other.0)),
    }
}
