//! The name server of this host, for guests.

use std::net::Ipv4Addr;

/// The first with a server that a guest can reach. One on this host's loopback, as systemd-resolved's, passes on to one of the
/// second.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Read for each machine, because they change with the host's network.
pub fn of_this_host() -> Option<Ipv4Addr> {
    FILES.iter().find_map(|file| server(&std::fs::read_to_string(file).ok()?))
}

/// The first IPv4 server of a resolv.conf(5).
fn server(text: &str) -> Option<Ipv4Addr> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        let address: Ipv4Addr = words.next().filter(|_| is_server)?.parse().ok()?;
        (!address.is_loopback() && !address.is_unspecified()).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_a_guest_cannot_reach_are_passed_over() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 127.0.0.53\nnameserver x\nnameserver 2001:db8::53\n\
                    nameserver 0.0.0.0\n nameserver\t10.0.2.3 \nnameserver 8.8.8.8\noptions edns0\n";
        assert_eq!(server(text), Some(Ipv4Addr::new(10, 0, 2, 3)));
        assert_eq!(server("nameserver ::1"), None);
    }
}
