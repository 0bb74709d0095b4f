//! Settings for connections that are not logged in, with the names of OpenSSH's `sshd_config`.
//!
//! Values are short texts as in sshd (`start:rate:full`), so that an operator's knowledge of sshd applies here. Not
//! here: the effect of the numbers (`ssh::gate`).

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// A day. A longer penalty would not be a penalty but a lock-out.
const LONGEST_PENALTY: u64 = 24 * 3600;
/// Most connections that may wait for a login: each can hold up to 256 KiB of an announced packet.
const MOST_STARTUPS: usize = 100_000;

/// `MaxStartups`: from `start` connections on, a new one displaces another with a probability of `rate` percent, which
/// rises to certainty at `full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Startups {
    pub start: usize,
    pub rate: usize,
    pub full: usize,
}

impl FromStr for Startups {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not `start:rate:full`, such as \"128:30:256\": 1 <= start <= full <= {MOST_STARTUPS}, \
                 rate in percent"
            )
        };
        let mut parts = text.split(':').map(|part| part.parse::<usize>().ok());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Some(start)), Some(Some(rate)), Some(Some(full)), None)
                if (1..=full).contains(&start) && full <= MOST_STARTUPS && (1..=100).contains(&rate) =>
            {
                Ok(Self { start, rate, full })
            }
            _ => Err(wrong()),
        }
    }
}

/// `PerSourceNetBlockSize`: the number of leading bits of an address that make one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetBlocks {
    pub v4: u8,
    pub v6: u8,
}

impl FromStr for NetBlocks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = |part: &str, most: u8| part.parse().ok().filter(|bits| (1..=most).contains(bits));
        text.split_once(':')
            .and_then(|(v4, v6)| Some(Self { v4: bits(v4, 32)?, v6: bits(v6, 128)? }))
            .ok_or_else(|| {
                format!("`{text}` is not two numbers of bits, such as \"32:64\" for IPv4 and IPv6")
            })
    }
}

impl NetBlocks {
    /// The first address of the block that contains `address`.
    pub fn block_of(&self, address: IpAddr) -> IpAddr {
        masked(address.to_canonical(), |v4| if v4 { self.v4 } else { self.v6 })
    }
}

/// The address with all but its first bits zero; the argument of `bits` is true for an IPv4 address.
fn masked(address: IpAddr, bits: impl Fn(bool) -> u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let host = 32 - u32::from(bits(true)).min(32);
            IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(host).unwrap_or(0)).into())
        }
        IpAddr::V6(v6) => {
            let host = 128 - u32::from(bits(false)).min(128);
            IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(host).unwrap_or(0)).into())
        }
    }
}

/// An address, or a block of them like `192.0.2.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, |_| self.bits) == self.first
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is neither an address nor a network like 192.0.2.0/24 or 2001:db8::/32");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        let first = masked(address, |_| bits);
        if bits > most || first != address {
            return Err(format!("{}; no bits may stand behind the prefix", wrong()));
        }
        Ok(Self { first, bits })
    }
}

/// `PerSourcePenalties`: the penalty of a connection that ends without a login for its source, and the limits from
/// which on a source is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Penalties {
    /// The client sent something other than ssh, or broke the protocol.
    pub crash: Duration,
    /// The client offered keys, and none of them could log in.
    pub authfail: Duration,
    /// Each of those keys.
    pub probe: Duration,
    /// The client closed the connection before it offered a key.
    pub noauth: Duration,
    /// The client was not logged in after `limits.login-seconds`.
    pub grace_exceeded: Duration,
    /// A source with a smaller sum is not refused.
    pub min: Duration,
    /// Limit on the sum of one source.
    pub max: Duration,
}

impl Penalties {
    /// The value of `no`.
    const NONE: Self = Self {
        crash: Duration::ZERO,
        authfail: Duration::ZERO,
        probe: Duration::ZERO,
        noauth: Duration::ZERO,
        grace_exceeded: Duration::ZERO,
        min: Duration::ZERO,
        max: Duration::ZERO,
    };
}

impl FromStr for Penalties {
    type Err = String;

    /// `no`, or words like `authfail:5`; causes that are not named cost nothing. `min` and `max` are required.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut penalties = Self::NONE;
        if text == "no" {
            return Ok(penalties);
        }
        let wrong = |word: &str| {
            format!(
                "`{word}` is not a penalty; known are crash, authfail, probe, noauth, grace-exceeded, min and max, each \
                 with a colon and seconds up to {LONGEST_PENALTY}; or \"no\" alone"
            )
        };
        for word in text.split_whitespace() {
            let (name, value) = word.split_once(':').ok_or_else(|| wrong(word))?;
            let seconds: u64 = value.parse().map_err(|_| wrong(word))?;
            if seconds > LONGEST_PENALTY {
                return Err(wrong(word));
            }
            let place = match name {
                "crash" => &mut penalties.crash,
                "authfail" => &mut penalties.authfail,
                "probe" => &mut penalties.probe,
                "noauth" => &mut penalties.noauth,
                "grace-exceeded" => &mut penalties.grace_exceeded,
                "min" => &mut penalties.min,
                "max" => &mut penalties.max,
                _ => return Err(wrong(word)),
            };
            *place = Duration::from_secs(seconds);
        }
        match penalties.min < penalties.max {
            true => Ok(penalties),
            false => Err(format!("`{text}`: `min` must be less than `max`, or no source is ever held off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_source_is_as_many_bits_as_configured_and_an_ipv4_address_is_one_however_it_is_written() {
        let blocks: NetBlocks = "24:64".parse().expect("blocks");
        assert_eq!(blocks.block_of(address("192.0.2.77")), address("192.0.2.0"));
        assert_eq!(blocks.block_of(address("::ffff:192.0.2.77")), address("192.0.2.0"));
        assert_eq!(blocks.block_of(address("2001:db8:1:2:3::4")), address("2001:db8:1:2::"));
        let all: NetBlocks = "32:128".parse().expect("blocks");
        assert_eq!(all.block_of(address("2001:db8::4")), address("2001:db8::4"));
    }

    #[test]
    fn a_network_contains_its_block_and_nothing_else() {
        let network: Network = "192.0.2.0/24".parse().expect("a network");
        assert!(network.contains(address("192.0.2.9")) && network.contains(address("::ffff:192.0.2.9")));
        assert!(!network.contains(address("192.0.3.9")) && !network.contains(address("::1")));
        let one: Network = "::1".parse().expect("an address");
        assert!(one.contains(address("::1")) && !one.contains(address("::2")));
        for wrong in ["192.0.2.1/24", "192.0.2.0/33", "", "x", "1.2.3.4/"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_that_sshd_would_not_take_are_refused_with_an_example() {
        for wrong in ["10", "10:30", "0:30:100", "20:30:10", "10:0:100", "10:101:100", "1:2:3:4", "a:b:c"] {
            let error = wrong.parse::<Startups>().expect_err("refused");
            assert!(error.contains("start:rate:full"), "{error}");
        }
        for wrong in ["32", "0:64", "33:64", "32:129"] {
            assert!(wrong.parse::<NetBlocks>().is_err(), "{wrong}");
        }
        for wrong in
            ["authfail", "authfail:x", "sleep:3 min:1 max:2", "min:5 max:5", "crash:99999 min:1 max:2", ""]
        {
            assert!(wrong.parse::<Penalties>().is_err(), "{wrong}");
        }
        assert_eq!("no".parse(), Ok(Penalties::NONE));
    }
}
