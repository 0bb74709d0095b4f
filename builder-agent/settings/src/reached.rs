//! The address under which members reach the box: a host name, and a port.

use std::fmt;
use std::str::FromStr;

/// Longest host name (RFC 1035, 2.3.4).
const MAX_HOST: usize = 253;
/// The port of ssh.
const SSH: u16 = 22;

/// `host`, `host:port` or `[IPv6 address]:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// A name or an address, without brackets. It has no character with a meaning in a configuration of ssh or Nix.
    pub host: String,
    pub port: u16,
}

impl Reached {
    /// The port without which ssh does not reach the box.
    #[must_use]
    pub fn unusual_port(&self) -> Option<u16> {
        Some(self.port).filter(|port| *port != SSH)
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.unusual_port()) {
            (false, None) => write!(f, "{}", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (true, port) => write!(f, "[{}]:{}", self.host, port.unwrap_or(SSH)),
        }
    }
}

impl FromStr for Reached {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|why| format!("{why}; write `host`, `host:port` or `[IPv6 address]:port`"))
    }
}

fn parse(text: &str) -> Result<Reached, &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("`[` without `]`")?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or("after `]` only `:port` may follow")?),
            };
            host.parse::<std::net::Ipv6Addr>().map_err(|_| "in brackets, but not an IPv6 address")?;
            (host, port)
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err("an IPv6 address needs brackets"),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.len() > MAX_HOST || !host.chars().all(named) || host.starts_with('-') {
        return Err("the host must consist of letters, digits, `.`, `-` and `_`");
    }
    let port = match port {
        None => SSH,
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err("the port must be 1 to 65535"),
            Ok(port) => port,
        },
    };
    Ok(Reached { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for (text, host, port) in [
            ("box.example.org", "box.example.org", 22),
            ("box.example.org:2222", "box.example.org", 2222),
            ("192.0.2.1", "192.0.2.1", 22),
            ("[2001:db8::1]:22", "2001:db8::1", 22),
            ("[2001:db8::1]:2222", "2001:db8::1", 2222),
        ] {
            let read: Reached = text.parse().expect(text);
            assert_eq!((read.host.as_str(), read.port), (host, port), "{text}");
            assert_eq!(read.to_string(), text);
        }
        assert_eq!("box:22".parse::<Reached>().expect("the usual port").to_string(), "box");
    }

    #[test]
    fn nothing_that_means_something_in_a_configuration_is_a_host() {
        for text in [
            "",
            ":22",
            "box:",
            "box:0",
            "box:65536",
            "box:x",
            "a b",
            "a\nProxyCommand x",
            "a\"",
            "a'",
            "${a}",
            "a;b",
            "-oProxyCommand=x",
            "2001:db8::1",
            "[2001:db8::1",
            "[box]:22",
            "[2001:db8::1]22",
            &"a".repeat(254),
        ] {
            assert!(text.parse::<Reached>().is_err(), "{text}");
        }
    }
}
