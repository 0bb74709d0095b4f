//! Settings for connections that are not logged in, with the names of OpenSSH's `sshd_config`.
//!
//! Values are short texts as in sshd (`start:rate:full`), so that an operator's knowledge of sshd applies here. Not
//! here: the effect of the numbers (`ssh::gate`).

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

pub use addresses::Network;
use addresses::first_of_block;

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
        let address = address.to_canonical();
        first_of_block(address, if address.is_ipv4() { self.v4 } else { self.v6 })
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
