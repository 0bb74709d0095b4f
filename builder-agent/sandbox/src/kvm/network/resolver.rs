//! The name server of this host, for guests.

use std::net::IpAddr;

/// The first with a server that a guest can reach. One on this host's loopback, as systemd-resolved's, passes on to one of the
/// second.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Read for each machine, because they change with the host's network. `has_family`: whether guests have addresses as this one.
pub fn of_this_host(has_family: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    FILES.iter().find_map(|file| server(&std::fs::read_to_string(file).ok()?, &has_family))
}

/// The first server of a resolv.conf(5) that a guest can reach; before all others the first with an IPv4 address, which every
/// program can ask.
fn server(text: &str, has_family: &impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        // `fe80::1%eth0` is an address of a link, and no guest is on that one.
        let address: IpAddr = words.next().filter(|_| is_server)?.parse().ok()?;
        let plain = address.to_canonical();
        let is_on_link = matches!(plain, IpAddr::V6(v6) if v6.is_unicast_link_local());
        (!plain.is_loopback() && !plain.is_unspecified() && !is_on_link && has_family(plain)).then_some(plain)
    });
    servers.min_by_key(IpAddr::is_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_a_guest_cannot_reach_are_passed_over() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 127.0.0.53\nnameserver x\nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserver fe80::1\nnameserver ::ffff:127.0.0.1\nnameserver 2001:db8::53\n\
                    nameserver 0.0.0.0\n nameserver\t10.0.2.3 \nnameserver 8.8.8.8\nnameserver fd00::1\noptions edns0\n";
        let [v4, v6]: [IpAddr; 2] = ["10.0.2.3", "2001:db8::53"].map(|text| text.parse().unwrap());
        assert_eq!(server(text, &|_| true), Some(v4));
        assert_eq!(server(text, &|address| address.is_ipv6()), Some(v6));
        assert_eq!(server(text, &|_| false), None);
        assert_eq!(server("nameserver ::1", &|_| true), None);
    }
}
