//! What follows from the policy for one name, address and port.

use std::net::IpAddr;

use addresses::{embedded_v4, first_of_block, is_public};
use wildmatch::WildMatch;

use crate::events::Protocol;
use crate::policy::{Policy, PortRange};
use crate::reason::Reason;

/// The policy, ready for use.
pub struct Rules {
    pub policy: Policy,
    allow_names: Vec<WildMatch>,
    deny_names: Vec<WildMatch>,
}

impl Rules {
    pub fn new(policy: Policy) -> Self {
        let globs = |list: &[String]| list.iter().map(|glob| WildMatch::new(&plain(glob))).collect();
        Self { allow_names: globs(&policy.allow_names), deny_names: globs(&policy.deny_names), policy }
    }

    /// Whether the guest may ask for this name, which is in small letters.
    pub fn may_ask(&self, name: &str) -> Result<(), Reason> {
        self.may_be_alias(name)?;
        match self.allow_names.is_empty() || self.allow_names.iter().any(|glob| glob.matches(name)) {
            true => Ok(()),
            false => Err(Reason::NameNotAllowed { globs: self.allow_names.len() }),
        }
    }

    /// Whether a name that the guest asked for may be an alias of this one. An allowed name may be served by any
    /// network of mirrors; a denied name is not reachable under another one.
    pub fn may_be_alias(&self, name: &str) -> Result<(), Reason> {
        match self.deny_names.iter().position(|glob| glob.matches(name)) {
            Some(i) => Err(Reason::DeniedName { glob: self.policy.deny_names[i].clone() }),
            None => Ok(()),
        }
    }

    /// Whether the guest may open a connection. `name` is one that the guest asked for and was given this address.
    pub fn may_reach(
        &self,
        protocol: Protocol,
        address: IpAddr,
        port: u16,
        name: Option<&str>,
    ) -> Result<(), Reason> {
        // An IPv6 address can carry an IPv4 address, to which a gateway somewhere passes the packet on.
        let plain = address.to_canonical();
        let inner = match plain {
            IpAddr::V6(v6) => embedded_v4(v6).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let forms = || [Some(address), Some(plain), inner].into_iter().flatten();
        if forms().any(|form| self.is_never_reachable(form)) {
            return Err(Reason::NeverReachable);
        }
        if address.is_ipv6() && !self.policy.ipv6 {
            return Err(Reason::NoIpv6);
        }
        if forms().any(|form| self.policy.own.iter().any(|own| own.to_canonical() == form)) {
            return Err(Reason::Own);
        }
        let denied = |network: &&addresses::Network| forms().any(|form| network.contains(form));
        if let Some(network) = self.policy.deny_networks.iter().find(denied) {
            return Err(Reason::DeniedNetwork { network: *network });
        }
        // Not the inner form: who allows 10.0.0.0/8 does not allow everybody's gateways into it.
        let allowed = self.policy.allow_networks.iter().any(|network| network.contains(plain));
        if !allowed && !is_public(address) {
            return Err(Reason::NotPublic);
        }
        if !allowed && !self.allow_names.is_empty() && name.is_none() {
            return Err(Reason::NoAllowedName { globs: self.allow_names.len() });
        }
        let ports = match protocol {
            Protocol::Udp => &self.policy.udp_ports,
            _ => &self.policy.tcp_ports,
        };
        match ports.iter().any(|range| range.contains(port)) {
            true => Ok(()),
            false => Err(Reason::Port { protocol: protocol.to_string(), allowed: words(ports) }),
        }
    }

    /// Addresses that only have a meaning on one machine or link, so that they would reach the host itself.
    fn is_never_reachable(&self, address: IpAddr) -> bool {
        let link = &self.policy.link;
        let on_link = |own: IpAddr, bits| first_of_block(own, bits) == first_of_block(address, bits);
        match address {
            IpAddr::V4(v4) => {
                v4.is_loopback()
                    || v4.is_link_local()
                    || v4.is_multicast()
                    || v4.octets()[0] == 0
                    || v4.octets()[0] >= 240
                    || on_link(link.guest_v4.into(), 24)
            }
            IpAddr::V6(v6) => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local()
                    || on_link(link.guest_v6.into(), 64)
            }
        }
    }
}

/// A name in the form in which names are compared.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// A list of ports, as text of bounded length.
fn words(ports: &[PortRange]) -> String {
    let mut words: Vec<String> = ports.iter().take(8).map(ToString::to_string).collect();
    if ports.is_empty() {
        words.push("(none is allowed)".to_owned());
    }
    if ports.len() > words.len() {
        words.push("…".to_owned());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(policy: &Policy, address: &str, port: u16, name: Option<&str>) -> Result<(), Reason> {
        Rules::new(policy.clone()).may_reach(Protocol::Tcp, address.parse().expect(address), port, name)
    }

    #[test]
    fn private_addresses_are_refused_in_all_forms() {
        let policy = Policy::default();
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "fc00::1",
            "fd00:ec2::254",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::a00:1",
            "2002:a00:1::1",
            "2001:0:a00:1::1",
            "168.63.129.16",
        ] {
            assert_eq!(reach(&policy, address, 443, None), Err(Reason::NotPublic), "{address}");
        }
        for address in ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"] {
            assert_eq!(reach(&policy, address, 443, None), Ok(()), "{address}");
        }
    }

    #[test]
    fn no_list_makes_the_host_the_link_or_its_metadata_service_reachable() {
        let everything = vec!["0.0.0.0/0".parse().expect("a network"), "::/0".parse().expect("a network")];
        let policy = Policy { allow_networks: everything, ..Policy::default() };
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "192.0.2.53",
            "192.0.2.200",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "fd52:5500::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:7f00:1::",
        ] {
            assert_eq!(reach(&policy, address, 443, None), Err(Reason::NeverReachable), "{address}");
        }
        assert_eq!(reach(&policy, "10.0.0.1", 443, None), Ok(()));
    }

    #[test]
    fn the_boxs_own_addresses_and_denied_networks_win_over_what_is_allowed() {
        let policy = Policy {
            own: vec!["10.1.0.7".parse().expect("an address"), "8.8.8.8".parse().expect("an address")],
            allow_networks: vec!["10.1.0.0/16".parse().expect("a network")],
            deny_networks: vec!["10.1.2.0/24".parse().expect("a network"), "9.0.0.0/8".parse().expect("a")],
            ..Policy::default()
        };
        let denied = |network: &str| Err(Reason::DeniedNetwork { network: network.parse().expect(network) });
        for (address, decision) in [
            ("10.1.0.8", Ok(())),
            ("::ffff:10.1.0.8", Ok(())),
            ("10.2.0.8", Err(Reason::NotPublic)),
            ("10.1.0.7", Err(Reason::Own)),
            ("::ffff:10.1.0.7", Err(Reason::Own)),
            ("64:ff9b::808:808", Err(Reason::Own)),
            ("8.8.8.8", Err(Reason::Own)),
            ("10.1.2.3", denied("10.1.2.0/24")),
            ("9.9.9.9", denied("9.0.0.0/8")),
            ("64:ff9b::909:909", denied("9.0.0.0/8")),
            // A gateway somewhere is not the private mirror.
            ("64:ff9b::a01:8", Err(Reason::NotPublic)),
            ("2002:a01:8::1", Err(Reason::NotPublic)),
        ] {
            assert_eq!(reach(&policy, address, 443, None), decision, "{address}");
        }
    }

    #[test]
    fn without_ipv6_its_addresses_are_refused_at_once() {
        let policy = Policy { ipv6: false, ..Policy::default() };
        for address in ["2606:4700::1111", "::ffff:1.1.1.1"] {
            assert_eq!(reach(&policy, address, 443, None), Err(Reason::NoIpv6), "{address}");
        }
        assert_eq!(reach(&policy, "1.1.1.1", 443, None), Ok(()));
    }

    #[test]
    fn with_allowed_names_only_their_addresses_and_allowed_networks_are_reachable() {
        let policy = Policy {
            allow_names: vec!["*.Example.org.".to_owned()],
            deny_names: vec!["evil.example.org".to_owned()],
            allow_networks: vec!["10.1.0.0/16".parse().expect("a network")],
            ..Policy::default()
        };
        let rules = Rules::new(policy.clone());
        assert_eq!(rules.may_ask("a.example.org"), Ok(()));
        assert_eq!(rules.may_ask("a.example.com"), Err(Reason::NameNotAllowed { globs: 1 }));
        let denied = Reason::DeniedName { glob: "evil.example.org".to_owned() };
        assert_eq!(rules.may_ask("evil.example.org"), Err(denied.clone()));
        assert_eq!(rules.may_be_alias("evil.example.org"), Err(denied));
        assert_eq!(rules.may_be_alias("mirror.example.net"), Ok(()), "an allowed name may have any mirror");
        assert_eq!(reach(&policy, "1.1.1.1", 443, None), Err(Reason::NoAllowedName { globs: 1 }));
        assert_eq!(reach(&policy, "1.1.1.1", 443, Some("a.example.org")), Ok(()));
        assert_eq!(reach(&policy, "10.1.0.1", 443, None), Ok(()));
        assert_eq!(reach(&policy, "10.2.0.1", 443, Some("a.example.org")), Err(Reason::NotPublic));
    }

    #[test]
    fn mail_and_udp_but_for_http3_are_refused_by_default() {
        let rules = Rules::new(Policy::default());
        let one: IpAddr = "1.1.1.1".parse().expect("an address");
        for port in [21, 22, 80, 443, 8443, 9418, 65535] {
            assert_eq!(rules.may_reach(Protocol::Tcp, one, port, None), Ok(()), "{port}");
        }
        let error = rules.may_reach(Protocol::Tcp, one, 25, None).expect_err("mail");
        assert_eq!(error.to_string(), "the port is none of the tcp ports 1-24, 26-65535");
        assert_eq!(rules.may_reach(Protocol::Udp, one, 443, None), Ok(()));
        for port in [0, 53, 123, 1194, 51820] {
            assert!(rules.may_reach(Protocol::Udp, one, port, None).is_err(), "{port}");
        }
    }
}
