//! The same policy for the host's firewall, as far as addresses tell: what holds if guard and passt were both taken over.
//!
//! The sockets of guests belong to users that nobody else on the host has. Rules for nft(8).

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use addresses::Network;

use crate::policy::Policy;

/// The table of the rules.
pub const TABLE: &str = "inet barnraiser";

/// What is not public (crate `addresses`, which says why for each). A test compares the two.
const V4: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// The prefix of NAT64, in which an IPv4 address follows.
const NAT64: &str = "64:ff9b::";
const V6: [&str; 8] =
    ["::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/2", "c000::/2"];

/// Rules that replace those of an earlier call in one step. `users`: those of the sockets of guests.
#[must_use]
pub fn rules(policy: &Policy, users: &RangeInclusive<u32>) -> String {
    let mut out = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    let mut set = |name: &str, kind: &str, elements: Vec<String>| {
        let _ = writeln!(out, "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval\n\t\tauto-merge");
        if !elements.is_empty() {
            let _ = writeln!(out, "\t\telements = {{ {} }}", elements.join(", "));
        }
        out.push_str("\t}\n");
    };
    for (name, list) in [("allow", &policy.allow_networks), ("deny", &policy.deny_networks)] {
        let of = |v4| list.iter().filter(|network| network.is_ipv4() == v4).map(Network::to_string).collect();
        set(&format!("{name}4"), "ipv4_addr", of(true));
        set(&format!("{name}6"), "ipv6_addr", of(false));
    }
    set("inward4", "ipv4_addr", V4.map(str::to_owned).to_vec());
    set("inward6", "ipv6_addr", V6.map(str::to_owned).to_vec());
    let nat64 = V4.iter().filter_map(|network| {
        let (address, bits) = network.split_once('/')?;
        // nft does not read the dotted form.
        let [a, b, c, d] = address.parse::<Ipv4Addr>().ok()?.octets();
        Some(format!("{NAT64}{a:02x}{b:02x}:{c:02x}{d:02x}/{}", 96 + bits.parse::<u8>().ok()?))
    });
    set("inward64", "ipv6_addr", nat64.collect());
    let (first, last) = (users.start(), users.end());
    let _ = writeln!(
        out,
        "\tchain output {{
\t\ttype filter hook output priority filter; policy accept;
\t\tmeta skuid {first}-{last} jump guests
\t}}
\tchain guests {{
\t\t# The name server, which the guard compares with the configured one.
\t\tmeta l4proto {{ tcp, udp }} th dport 53 accept
\t\tfib daddr type {{ local, broadcast, multicast }} reject
\t\tip daddr @deny4 reject
\t\tip6 daddr @deny6 reject
\t\tip daddr @allow4 accept
\t\tip6 daddr @allow6 accept
\t\tip daddr @inward4 reject
\t\tip6 daddr @inward64 reject
\t\tip6 daddr {NAT64}/96 accept
\t\tip6 daddr @inward6 reject
\t}}
}}"
    );
    out
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use addresses::is_public;
    use proptest::prelude::*;

    use super::*;

    /// Whether the sets of the firewall let this address pass.
    fn passes(address: IpAddr) -> bool {
        let within = |list: &[&str], address: IpAddr| {
            list.iter().any(|network| network.parse::<Network>().expect("a network").contains(address))
        };
        match address {
            IpAddr::V4(_) => !within(&V4, address),
            IpAddr::V6(v6) => match v6.segments() {
                [0x64, 0xff9b, 0, 0, 0, 0, a, b] => {
                    let inner = (u32::from(a) << 16) | u32::from(b);
                    !within(&V4, Ipv4Addr::from_bits(inner).into())
                }
                _ => !within(&V6, address),
            },
        }
    }

    proptest! {
        #[test]
        fn the_firewall_and_the_guard_know_the_same_public_addresses(
            v4: u32, v6: u128, high in 0u128..0x4000,
        ) {
            let v4 = IpAddr::V4(v4.into());
            prop_assert_eq!(passes(v4), is_public(v4), "{}", v4);
            // Random ones, and some around the blocks that are assigned.
            for v6 in [v6, (v6 >> 16) | (high << 112), (v6 >> 32) | (0x2001 << 112) | (high << 96)] {
                let v6 = IpAddr::V6(v6.into());
                if v6.to_canonical() == v6 {
                    prop_assert_eq!(passes(v6), is_public(v6), "{}", v6);
                }
            }
        }
    }

    #[test]
    fn the_edges_of_each_block_are_the_guards() {
        for network in V4 {
            let (first, bits) = network.split_once('/').expect("a network");
            let first: Ipv4Addr = first.parse().expect("an address");
            let size = 1u64 << (32 - bits.parse::<u32>().expect("bits"));
            let edges = [0, size - 1].map(|n| u64::from(first.to_bits()) + n);
            let around = edges[0].checked_sub(1).into_iter().chain([edges[1] + 1]);
            for bits in edges.into_iter().chain(around).filter_map(|bits| u32::try_from(bits).ok()) {
                let address = IpAddr::V4(bits.into());
                assert_eq!(passes(address), is_public(address), "{address}");
            }
        }
        for nat64 in ["64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b::169.254.169.254"] {
            let address = nat64.parse().expect("an address");
            assert_eq!(passes(address), is_public(address), "{address}");
        }
    }
}
