//! Tells public addresses from others, by the registries of special-purpose addresses (RFC 6890 and its successors).
//!
//! A person who names a URL must not reach services that only the box can reach: its own, those of its network, a
//! cloud's metadata service. So every address that is not certainly public counts as private.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Serves metadata and more to machines in Azure. By the registries it is a public address.
const AZURE_HOST: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Whether `address` is one of this machine's own. The machine's firewall protects those against other machines, not
/// against itself.
#[must_use]
pub fn is_own(address: IpAddr) -> bool {
    // The kernel binds sockets only to the machine's own addresses. No packet is sent.
    UdpSocket::bind((address.to_canonical(), 0)).is_ok()
}

/// Whether `address` belongs to the public internet, as far as the address alone can tell.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address != AZURE_HOST
        && !matches!(
            (a, b, c),
            (0, ..) // this network
            | (10, ..)
            | (100, 64..=127, _) // carrier-grade NAT
            | (127, ..)
            | (169, 254, _) // link-local, and metadata services
            | (172, 16..=31, _)
            | (192, 0, 0) // protocol assignments
            | (192, 0, 2) // documentation
            | (192, 88, 99) // relays of 6to4
            | (192, 168, _)
            | (198, 18..=19, _) // benchmarks
            | (198, 51, 100) // documentation
            | (203, 0, 113) // documentation
            | (224..=255, ..) // multicast, reserved, broadcast
        )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, ..] = address.segments();
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    match (a, b, c) {
        // NAT64: the gateway sends the packet to the IPv4 address in the last four bytes.
        (0x64, 0xff9b, 0) if address.segments()[3..6] == [0; 3] => is_public_v4(last_four(address)),
        // 6to4 has an IPv4 address in the middle, which could be a private one. 6to4 is not in use any more.
        (0x2002, ..) => false,
        // Protocol assignments, Teredo among them.
        (0x2001, 0..=0x1ff, _) => false,
        (0x2001, 0xdb8, _) | (0x3fff, 0..=0xfff, _) => false, // documentation
        // All blocks that have been assigned as global unicast.
        (0x2000..=0x3fff, ..) => true,
        _ => false,
    }
}

/// The IPv4 address that a packet to this IPv6 address reaches in the end, if the address is one that carries another:
/// mapped, NAT64, 6to4, Teredo (the server's), or the old IPv4-compatible form.
#[must_use]
pub fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, ..] = address.segments();
    let from = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match (a, b) {
        (0, 0) if (c, d, e) == (0, 0, 0) && (f == 0xffff || f == 0) => Some(last_four(address)),
        (0x64, 0xff9b) if (c, d, e, f) == (0, 0, 0, 0) => Some(last_four(address)),
        (0x2002, _) => Some(from(b, c)),
        (0x2001, 0) => Some(from(c, d)),
        _ => None,
    }
}

fn last_four(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_box_can_reach_is_private() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "168.63.129.16",
            "::ffff:168.63.129.16",
            "192.168.1.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(private.parse().expect(private)), "{private}");
        }
    }

    #[test]
    fn addresses_of_this_machine_are_known() {
        for (address, own) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::ffff:127.0.0.1", true),
            ("1.1.1.1", false),
            ("2606:4700:4700::1111", false),
        ] {
            assert_eq!(is_own(address.parse().expect(address)), own, "{address}");
        }
    }

    #[test]
    fn an_ipv4_address_inside_of_an_ipv6_address_is_found() {
        for (address, inner) in [
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("::10.1.2.3", "10.1.2.3"),
            ("64:ff9b::a01:203", "10.1.2.3"),
            ("2002:a01:203::1", "10.1.2.3"),
            ("2001:0:a01:203::", "10.1.2.3"),
        ] {
            let inner: Ipv4Addr = inner.parse().expect(inner);
            assert_eq!(embedded_v4(address.parse().expect(address)), Some(inner), "{address}");
        }
        for plain in ["2606:4700::1", "64:ff9b:1::a01:203", "fd00::a01:203", "2001:4860::1"] {
            assert_eq!(embedded_v4(plain.parse().expect(plain)), None, "{plain}");
        }
    }

    #[test]
    fn the_public_internet_is_public() {
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "168.63.129.17",
            "192.0.1.1",
            "151.101.1.1",
            "2a04:4e42::1",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(public.parse().expect(public)), "{public}");
        }
    }
}
