//! Why a frame does not pass: the guest asked for what the policy refuses, or the frame is none that could ever pass.

use addresses::Network;
use serde::{Deserialize, Serialize};

use crate::policy::PortRange;

/// Why something that the guest asked for is refused. The text names the limit as the settings of the box do, and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Loopback, link-local (metadata services), multicast, broadcast, the link to the guest. Passed on, the host's own
    /// services would answer.
    #[error("the address has a meaning on this machine or link only; no setting makes it reachable")]
    NeverReachable,
    #[error("the builder has no IPv6")]
    NoIpv6,
    #[error("the address belongs to the builder itself")]
    Own,
    #[error("the address is not public, and not in `network.allow-networks`")]
    NotPublic,
    #[error("the address is in {network} of `network.deny-networks`")]
    DeniedNetwork { network: Network },
    #[error("the name matches `{glob}` of `network.deny-names`")]
    DeniedName { glob: String },
    #[error("the name matches none of the {globs} entries of `network.allow-names`")]
    NameNotAllowed { globs: usize },
    #[error(
        "with `network.allow-names` ({globs} entries), an address is reachable only after the resolver gave it for one of \
         these names, or if it is in `network.allow-networks`"
    )]
    NoAllowedName { globs: usize },
    #[error("the port is none of the {protocol} ports {allowed}")]
    Port { protocol: String, allowed: String },
    /// Another guest's, or the host's own.
    #[error("the sending port {port} of UDP is not in the guest's range {allowed}")]
    SourcePort { port: u16, allowed: PortRange },
    #[error("IP protocol {number} does not pass, only TCP and UDP do")]
    Protocol { number: u8 },
    #[error("{limit} connections are open (`network.max-connections`)")]
    Connections { limit: u32 },
    /// Not answered: the guest's kernel asks again a second later.
    #[error("more than {per_second} new connections per second (`network.max-new-connections-per-second`)")]
    NewConnections { per_second: u32 },
    #[error("the guest has used its {limit} bytes of network (`network.max-mib`)")]
    Bytes { limit: u64 },
    #[error("the connection has lasted for {limit} seconds (`network.max-connection-seconds`)")]
    Seconds { limit: u64 },
    #[error("more than {per_second} DNS queries per second")]
    Queries { per_second: u32 },
    #[error("the guest has used its {limit} bytes of DNS")]
    DnsBytes { limit: u64 },
    #[error("to and from the name server, only questions of DNS for one name each pass, and their answers")]
    PlainDns,
}

/// Why a frame is dropped without an answer. Such frames are counted, not logged one by one: a stock kernel sends some
/// of them by itself, and a hostile one sends as many as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dropped {
    /// Longer than an Ethernet frame of this link.
    Oversized,
    /// The lengths of the headers and of the frame differ, or a header is cut off.
    Malformed,
    /// Neither ARP, IPv4 nor IPv6: VLAN tags and others.
    EtherType,
    /// The source is not the guest's (or, from the network, not the gateway's) address: spoofed.
    Source,
    /// The target is not the other side of the link.
    Target,
    /// Multicast or broadcast, but ARP and neighbour solicitations for the gateway. A kernel sends some at its start.
    Multicast,
    /// The packet is one piece of another.
    Fragment,
    /// Options of IPv4, source routes among them.
    Options,
    /// Extension headers of IPv6, fragments and routes among them.
    ExtensionHeader,
    /// ARP and neighbour discovery for others than the gateway.
    Neighbour,
    /// ICMP, but for a ping of the guest's, which is refused.
    Icmp,
    /// Belongs to no connection.
    NoConnection,
    /// Too soon for the network: a first segment again, an end before the first answer, or several segments at once
    /// after the guest was done.
    Early,
    /// Would open a connection to the guest.
    Inward,
    /// Neither a query nor an answer of DNS for one name.
    Dns,
    /// An answer of DNS that nobody asked for.
    UnexpectedAnswer,
    /// A protocol that the guest never uses.
    Protocol,
    /// Refused by the policy, and told as [`crate::Event::Refused`].
    Refused,
    /// An answer that was not sent, since there were too many.
    Unanswered,
}
