//! What an operator, and the box, say about the network of one guest. The agent sends it to the process as JSON.
//!
//! Not here: what follows from it for one packet (`rules`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use addresses::Network;
use serde::{Deserialize, Serialize};

/// The policy for one guest. The default is for a fixed output on a box without mirrors of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub link: Link,
    /// Whether the box has IPv6. passt is silent about packets of a version that the box has no default route for, and
    /// programs would wait for minutes.
    pub ipv6: bool,
    /// The addresses of the box: never reachable, whatever the lists below say.
    pub own: Vec<IpAddr>,
    /// Networks that are reachable although they are not public, such as a private mirror's.
    pub allow_networks: Vec<Network>,
    /// Networks that are not reachable although they are public. Wins over `allow_networks`.
    pub deny_networks: Vec<Network>,
    /// If not empty, a guest may ask for names that match one of these globs only, and reach only the addresses that
    /// the answers gave, and `allow_networks`.
    pub allow_names: Vec<String>,
    /// Names that a guest may not ask for, or get as an alias. Wins over `allow_names`.
    pub deny_names: Vec<String>,
    /// Ports of TCP. By default all but 25: sources are on 80, 443, 22, 9418, 21 with any second port of passive FTP,
    /// and on whatever port a mirror has; but nobody fetches a source from a mail server, and a box that sends
    /// unsolicited mail ends on block lists.
    pub tcp_ports: Vec<PortRange>,
    /// Ports of UDP, beside port 53 of the resolver. By default 443, for HTTP/3: everything else that uses UDP is
    /// peer-to-peer, a tunnel, or answers a small spoofed request with a large reply.
    pub udp_ports: Vec<PortRange>,
    pub limits: Limits,
}

impl Default for Policy {
    fn default() -> Self {
        let range = |first, last| PortRange { first, last };
        Self {
            link: Link::default(),
            ipv6: true,
            own: Vec::new(),
            allow_networks: Vec::new(),
            deny_networks: Vec::new(),
            allow_names: Vec::new(),
            deny_names: Vec::new(),
            tcp_ports: vec![range(1, 24), range(26, 65535)],
            udp_ports: vec![range(443, 443)],
            limits: Limits::default(),
        }
    }
}

/// How much a guest may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Open connections at a time, TCP and UDP together. `npm install` opens 50 and a git server's mirror script some
    /// dozens; each one costs a socket of the host.
    pub max_connections: u32,
    /// New connections in a second, in the long run; [`BURST_SECONDS`] as many at once. More wait: their first
    /// packets are dropped, and the guest's kernel sends them again a second later. At this rate a scan of one
    /// network of 65,536 addresses takes more than half an hour.
    pub max_new_connections_per_second: u32,
    /// Bytes of all frames, both directions together. The largest sources that anybody builds from are data sets and
    /// models of a few GiB.
    pub max_bytes: u64,
    /// Bytes of all frames in a second. A gigabit: what the network card of a small server carries.
    pub max_bytes_per_second: u64,
    /// Seconds that one connection may last. A slow mirror sends 1 GiB at 50 kB/s in six hours.
    pub max_seconds: u64,
    /// Queries to the resolver in a second, in the long run; [`BURST_SECONDS`] as many at once. Every connection
    /// asks for two records.
    pub max_queries_per_second: u32,
    /// Bytes of queries and answers. Names carry any data to whoever serves the domain, so this bounds such a tunnel;
    /// 16 MiB are 50,000 lookups.
    pub max_dns_bytes: u64,
}

/// Seconds whose allowance may be used at once: programs begin with a burst, and are quiet then.
pub const BURST_SECONDS: u32 = 5;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_new_connections_per_second: 30,
            max_bytes: 32 << 30,
            max_bytes_per_second: 125_000_000,
            max_seconds: 6 * 3600,
            max_queries_per_second: 100,
            max_dns_bytes: 16 << 20,
        }
    }
}

/// Addresses of the link between the guest and the user-mode network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    pub guest_mac: Mac,
    pub gateway_mac: Mac,
    pub guest_v4: Ipv4Addr,
    pub gateway_v4: Ipv4Addr,
    /// The resolver.
    pub dns: IpAddr,
    pub guest_v6: Ipv6Addr,
    pub gateway_v6: Ipv6Addr,
    /// The guest's own ports of UDP. passt binds the same port of the host, and shares it with others that do
    /// (SO_REUSEADDR): whoever binds a port last gets the answers to it. So guests of one host need ranges that do not
    /// overlap, or one of them takes the answers of others.
    pub udp_source_ports: PortRange,
}

impl Default for Link {
    /// 192.0.2.0/24 is for documentation, so no address that a build wants is hidden behind the link.
    fn default() -> Self {
        Self {
            guest_mac: Mac([0x52, 0x55, 0, 0, 0, 2]),
            gateway_mac: Mac([0x52, 0x55, 0, 0, 0, 1]),
            guest_v4: Ipv4Addr::new(192, 0, 2, 2),
            gateway_v4: Ipv4Addr::new(192, 0, 2, 1),
            dns: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)),
            guest_v6: Ipv6Addr::new(0xfd52, 0x5500, 0, 0, 0, 0, 0, 2),
            gateway_v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            // From which Linux chooses, unless it is told otherwise: net.ipv4.ip_local_port_range.
            udp_source_ports: PortRange { first: 32768, last: 60999 },
        }
    }
}

/// The address of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Multicast and broadcast addresses have this bit.
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not the address of a network interface like 52:55:00:00:00:02");
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.contains('+')))
            .collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// Ports, written like `443` or `8000-8999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err(format!("`{text}` is neither a port like 443 nor a range of ports like 8000-8999")),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_was_written_and_unknown_fields_are_refused() {
        let policy = Policy {
            own: vec!["198.51.100.7".parse().expect("an address")],
            allow_networks: vec!["10.1.0.0/16".parse().expect("a network")],
            deny_names: vec!["*.example.org".to_owned()],
            ..Policy::default()
        };
        let text = serde_json::to_string(&policy).expect("JSON");
        assert_eq!(serde_json::from_str::<Policy>(&text).expect("a policy"), policy);
        assert_eq!(serde_json::from_str::<Policy>("{}").expect("defaults"), Policy::default());
        for wrong in [
            r#"{"allow":[]}"#,
            r#"{"limits":{"max_byte":1}}"#,
            r#"{"allow_networks":["10.0.0.1/8"]}"#,
            r#"{"tcp_ports":["0"]}"#,
            r#"{"tcp_ports":["9-1"]}"#,
            r#"{"tcp_ports":["+9"]}"#,
            r#"{"link":{"guest_mac":"52:55:0:0:0:2"}}"#,
            r#"{"link":{"guest_mac":"52:55:00:00:00"}}"#,
        ] {
            assert!(serde_json::from_str::<Policy>(wrong).is_err(), "{wrong}");
        }
    }
}
