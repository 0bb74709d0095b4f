//! The addresses from which a key may be used: `from="…"` in front of a key, `source-address` in a certificate.
//!
//! Patterns match as in sshd without DNS: addresses, networks (`10.0.0.0/8`), and in `from=` also wildcards over the
//! address as text, and `!` in front of a pattern that excludes. Host names are refused: the box does not look up the
//! name of a peer, so the rule would never match, and the key's owner would not see why.

use std::net::IpAddr;

use wildmatch::WildMatch;

/// Most patterns of one list. In sshd only the length of the line bounds them, to fewer than this.
const MAX_PATTERNS: usize = 256;

/// A list of patterns, not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    text: String,
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    excludes: bool,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// The address of the network, and the number of leading bits that count. The other bits are zero.
    Network(IpAddr, u8),
    /// `*` and `?` over the address as text.
    Wildcard(String),
}

impl Addresses {
    /// The value of `from=`. `Err` says which pattern is invalid.
    pub fn from_option(text: &str) -> Result<Addresses, String> {
        parse(text, pattern)
    }

    /// The value of `source-address`: networks and addresses, nothing else.
    pub fn from_certificate(text: &str) -> Result<Addresses, String> {
        parse(text, |text| Ok(Pattern { excludes: false, what: network(text)? }))
    }

    /// The list as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether one pattern fits this peer and none excludes it.
    pub fn allow(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        let fits = |excludes: bool| {
            self.patterns.iter().any(|pattern| pattern.excludes == excludes && pattern.what.fits(peer))
        };
        fits(false) && !fits(true)
    }
}

fn parse(text: &str, one: impl Fn(&str) -> Result<Pattern, String>) -> Result<Addresses, String> {
    let patterns: Vec<&str> = text.split(',').collect();
    if patterns.len() > MAX_PATTERNS {
        return Err(format!("{} addresses, at most {MAX_PATTERNS} are accepted", patterns.len()));
    }
    let patterns = patterns.into_iter().map(|text| one(text.trim())).collect::<Result<_, _>>()?;
    Ok(Addresses { text: text.to_owned(), patterns })
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let (excludes, rest) = match text.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let numeric = |c: char| c.is_ascii_hexdigit() || ".:*?".contains(c);
    let what = if rest.contains(['*', '?']) && rest.chars().all(numeric) {
        What::Wildcard(rest.to_ascii_lowercase())
    } else {
        network(rest)?
    };
    Ok(Pattern { excludes, what })
}

/// An address, or a network whose host bits are zero: sshd refuses `10.1.2.3/8`, since it is not clear which one is
/// meant.
fn network(text: &str) -> Result<What, String> {
    let wrong = |why: &str| format!("{} {why}", crate::words::quoted(text));
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong("is neither an address nor a network"))?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        None => width,
        Some(bits) if bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit()) => bits
            .parse::<u8>()
            .ok()
            .filter(|bits| *bits <= width)
            .ok_or_else(|| wrong("has too long a prefix"))?,
        Some(_) => return Err(wrong("has no prefix length after the slash")),
    };
    if bits_of(address) & !mask(bits, width) != 0 {
        return Err(wrong("names an address inside of the network, not the network"));
    }
    Ok(What::Network(address, bits))
}

impl What {
    fn fits(&self, peer: IpAddr) -> bool {
        match self {
            What::Network(network, bits) => {
                let width = if network.is_ipv4() { 32 } else { 128 };
                network.is_ipv4() == peer.is_ipv4() && bits_of(peer) & mask(*bits, width) == bits_of(*network)
            }
            What::Wildcard(glob) => WildMatch::new(glob).matches(&peer.to_string()),
        }
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// A mask with ones in the first `bits` of `width`.
fn mask(bits: u8, width: u8) -> u128 {
    let all = if width == 32 { u128::from(u32::MAX) } else { u128::MAX };
    let rest = u32::from(width - bits);
    all & u128::MAX.checked_shl(rest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, peer: &str) -> bool {
        Addresses::from_option(list).expect(list).allow(peer.parse().expect(peer))
    }

    #[test]
    fn a_peer_must_fit_one_pattern_and_none_that_excludes() {
        for (list, peer, allowed) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.70", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("10.0.0.0/8,!10.1.0.0/16", "10.2.0.1", true),
            ("10.0.0.0/8,!10.1.0.0/16", "10.1.0.1", false),
            ("!10.1.0.0/16", "10.2.0.1", false),
            ("192.0.2.*", "192.0.2.200", true),
            ("192.0.?.1", "192.0.22.1", false),
            ("2001:DB8:*", "2001:db8::5", true),
            ("*", "2001:db8::5", true),
        ] {
            assert_eq!(allows(list, peer), allowed, "{list} {peer}");
        }
    }

    #[test]
    fn what_could_never_match_or_is_not_clear_is_refused() {
        for list in [
            "laptop.example.org",
            "*.example.org",
            "10.1.2.3/8",
            "10.0.0.0/33",
            "::1/129",
            "10.0.0.0/",
            "",
            ",",
        ] {
            assert!(Addresses::from_option(list).is_err(), "{list}");
        }
        // A certificate may use fewer forms than `from=`.
        for list in ["!10.0.0.0/8", "10.*", "10.1.2.3/8", "10.0.0.0/8,"] {
            assert!(Addresses::from_certificate(list).is_err(), "{list}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_decided_at_once() {
        let list = format!("{}1", "*".repeat(4000));
        assert!(!allows(&list, "2001:db8:1111:1111:1111:1111:1111:1112"));
    }
}
