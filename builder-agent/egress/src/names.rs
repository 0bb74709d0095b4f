//! DNS of a guest: which queries pass, which answers belong to them, and which name an address was given for.
//!
//! An answer passes if the guest has asked for it: the same port, number, name and kind. Its addresses are remembered
//! with the name that was asked for, not the alias that happened to have it. An answer may have any address, also a
//! private one: the name of an address never makes it reachable, the address must be allowed as well (`rules`). So
//! DNS rebinding leads nowhere.
//! Not here: bytes of messages (`dns`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::dns::{self, Question};
use crate::pace::Bucket;
use crate::policy::BURST_SECONDS;
use crate::reason::{Dropped, Reason};
use crate::rules::Rules;

/// Queries without an answer yet. The pace allows about as many within [`PATIENCE`].
const MAX_QUERIES: usize = 2048;
/// An answer later than this belongs to nobody. Clients ask again after five seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// Addresses with a name: 4096 of them with the longest names are 2 MiB.
const MAX_NAMES: usize = 4096;
/// An address keeps its name at least so long: programs go on using an address that they looked up.
const LEAST: Duration = Duration::from_secs(300);
/// And at most so long after the last answer that gave it.
const MOST: Duration = Duration::from_secs(3600);

/// Why a message does not pass.
pub enum Stopped {
    Dropped(Dropped),
    /// `reply` is for the guest.
    Refused {
        name: String,
        reason: Reason,
        reply: Option<Vec<u8>>,
    },
}

impl Stopped {
    /// A query after all bytes of the guest have been used.
    pub fn of_spent(message: &[u8], limit: u64) -> Self {
        match dns::query(message) {
            Some(query) => Self::Refused {
                name: query.question.name,
                reason: Reason::Bytes { limit },
                reply: dns::refusal(message),
            },
            None => Self::Dropped(Dropped::Dns),
        }
    }
}

struct Waiting {
    question: Question,
    until: Instant,
}

struct Known {
    name: String,
    until: Instant,
}

pub struct Names {
    /// By the guest's port and the number of the query.
    queries: BTreeMap<(u16, u16), Waiting>,
    known: BTreeMap<IpAddr, Known>,
    pace: Bucket,
    bytes: u64,
}

impl Names {
    pub fn new(queries_per_second: u32) -> Self {
        let rate = u64::from(queries_per_second);
        Self {
            queries: BTreeMap::new(),
            known: BTreeMap::new(),
            pace: Bucket::new(rate, rate * u64::from(BURST_SECONDS)),
            bytes: 0,
        }
    }

    /// The name that the guest was given this address for.
    pub fn of(&self, address: IpAddr, now: Instant) -> Option<&str> {
        let known = self.known.get(&address.to_canonical())?;
        (now < known.until).then_some(known.name.as_str())
    }

    pub fn is_waiting(&self) -> bool {
        !self.queries.is_empty()
    }

    /// A datagram of the guest to the resolver.
    pub fn ask(&mut self, port: u16, message: &[u8], rules: &Rules, now: Instant) -> Result<(), Stopped> {
        let query = dns::query(message).ok_or(Stopped::Dropped(Dropped::Dns))?;
        let limits = &rules.policy.limits;
        let name = query.question.name.clone();
        let refused = |reason, reply| Stopped::Refused { name: name.clone(), reason, reply };
        rules.may_ask(&query.question.name).map_err(|reason| refused(reason, dns::refusal(message)))?;
        // Not answered: the client asks again after some seconds, when there may be room.
        if !self.pace.take(now) || self.queries.len() >= MAX_QUERIES {
            return Err(refused(Reason::Queries { per_second: limits.max_queries_per_second }, None));
        }
        self.pay(message.len(), limits.max_dns_bytes)
            .map_err(|reason| refused(reason, dns::refusal(message)))?;
        self.queries.insert((port, query.id), Waiting { question: query.question, until: now + PATIENCE });
        Ok(())
    }

    /// A datagram of the resolver to this port of the guest.
    pub fn answered(
        &mut self,
        port: u16,
        message: &[u8],
        rules: &Rules,
        now: Instant,
    ) -> Result<(), Stopped> {
        let answer = dns::answer(message).ok_or(Stopped::Dropped(Dropped::Dns))?;
        let key = (port, answer.id);
        let asked =
            self.queries.get(&key).filter(|asked| now < asked.until && asked.question == answer.question);
        if asked.is_none() {
            return Err(Stopped::Dropped(Dropped::UnexpectedAnswer));
        }
        self.queries.remove(&key);
        let name = answer.question.name;
        let refused = |reason| Stopped::Refused { name: name.clone(), reason, reply: dns::refusal(message) };
        self.pay(message.len(), rules.policy.limits.max_dns_bytes).map_err(&refused)?;
        for alias in &answer.aliases {
            rules.may_be_alias(alias).map_err(&refused)?;
        }
        for (address, seconds) in answer.addresses {
            let valid = Duration::from_secs(seconds.into()).clamp(LEAST, MOST);
            self.remember(address.to_canonical(), &name, now + valid);
        }
        Ok(())
    }

    fn pay(&mut self, bytes: usize, limit: u64) -> Result<(), Reason> {
        let sum = self.bytes.saturating_add(bytes as u64);
        if sum > limit {
            return Err(Reason::DnsBytes { limit });
        }
        self.bytes = sum;
        Ok(())
    }

    /// Of several names of an address, the last is the most likely one of the next connection.
    fn remember(&mut self, address: IpAddr, name: &str, until: Instant) {
        if self.known.len() >= MAX_NAMES && !self.known.contains_key(&address) {
            let first = self.known.iter().min_by_key(|(_, known)| known.until).map(|(address, _)| *address);
            first.map(|first| self.known.remove(&first));
        }
        self.known.insert(address, Known { name: name.to_owned(), until });
    }

    pub fn tick(&mut self, now: Instant) {
        self.queries.retain(|_, asked| now < asked.until);
        self.known.retain(|_, known| now < known.until);
    }
}
