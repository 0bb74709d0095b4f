//! What is told to the agent, a JSON line each: connections at their end, refusals, and a total.
//!
//! A guest can cause any number of refusals, so equal ones within a second are joined, and lines are limited; the rest
//! is a number.
//! Not here: the log of the agent and the ledger, which are made of these.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::pace::Bucket;
use crate::reason::{Dropped, Reason};

/// Time within which equal refusals are one line.
const JOINED: Duration = Duration::from_secs(1);
/// Different refusals that are held until their line is written.
const MAX_JOINED: usize = 64;
/// Lines of refusals at once; then one in a second.
const REFUSED_LINES: u64 = 60;
/// Time between two lines about refusals without a line.
const MORE_EVERY: Duration = Duration::from_secs(60);
/// Events that wait to be taken. A cut of all connections is one for each.
const MAX_READY: usize = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Tcp,
    Udp,
    Other,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Other => "other",
        })
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Both sides said that they were done.
    Closed,
    ResetByGuest,
    /// Also: nobody listens on that port.
    ResetByNetwork,
    /// No answer to the first packet.
    Unanswered,
    /// Silent for too long, which is the ordinary end of UDP.
    Idle,
    /// The guest began another connection with the same ports.
    Replaced,
    /// A limit was reached while it was open.
    Limit(Reason),
    /// The guest ended.
    Over,
}

/// One line. `up` is from the guest to the network, in bytes of whole frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A connection has ended. `name` is the one that the guest asked the resolver for, if it did.
    Connection {
        protocol: Protocol,
        name: Option<String>,
        address: IpAddr,
        port: u16,
        up: u64,
        down: u64,
        millis: u64,
        end: End,
    },
    /// The policy refused something, so many times within a second. For a query to the resolver, `name` is in question.
    Refused {
        protocol: Protocol,
        name: Option<String>,
        address: IpAddr,
        /// 0 for protocols without ports.
        port: u16,
        reason: Reason,
        times: u64,
    },
    /// So many more refusals had no line of their own.
    RefusedMore { times: u64 },
    /// The last line.
    Total {
        up: u64,
        down: u64,
        connections: u64,
        refused: u64,
        dropped: BTreeMap<Dropped, u64>,
        /// Events that were not told because the agent did not read them in time.
        lost: u64,
    },
}

/// What was refused; equal ones are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub protocol: Protocol,
    pub name: Option<String>,
    pub address: IpAddr,
    pub port: u16,
    pub reason: Reason,
}

struct Joined {
    refusal: Refusal,
    times: u64,
    since: Instant,
}

/// Collects events until they are taken.
pub struct Log {
    ready: VecDeque<Event>,
    joined: Vec<Joined>,
    lines: Bucket,
    /// Refusals without a line since `told`.
    more: u64,
    told: Option<Instant>,
    refused: u64,
    lost: u64,
}

impl Log {
    pub fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            joined: Vec::new(),
            lines: Bucket::new(1, REFUSED_LINES),
            more: 0,
            told: None,
            refused: 0,
            lost: 0,
        }
    }

    pub fn push(&mut self, event: Event) {
        match self.ready.len() < MAX_READY {
            true => self.ready.push_back(event),
            false => self.lost += 1,
        }
    }

    pub fn refused(&mut self, refusal: Refusal, now: Instant) {
        self.refused += 1;
        if let Some(joined) = self.joined.iter_mut().find(|joined| joined.refusal == refusal) {
            joined.times += 1;
        } else if self.joined.len() < MAX_JOINED {
            self.joined.push(Joined { refusal, times: 1, since: now });
        } else {
            self.more += 1;
        }
    }

    /// Whether there is something that [`Self::tick`] will make an event of.
    pub fn is_waiting(&self) -> bool {
        !self.joined.is_empty() || self.more > 0
    }

    pub fn tick(&mut self, now: Instant) {
        let due = |joined: &mut Joined| now.saturating_duration_since(joined.since) >= JOINED;
        let due: Vec<Joined> = self.joined.extract_if(.., due).collect();
        for joined in due {
            self.line(joined, now);
        }
        let waited = self.told.is_none_or(|told| now.saturating_duration_since(told) >= MORE_EVERY);
        if self.more > 0 && waited {
            self.told = Some(now);
            self.tell_more();
        }
    }

    fn line(&mut self, Joined { refusal, times, .. }: Joined, now: Instant) {
        if !self.lines.take(now) {
            self.more += times;
            return;
        }
        let Refusal { protocol, name, address, port, reason } = refusal;
        self.push(Event::Refused { protocol, name, address, port, reason, times });
    }

    fn tell_more(&mut self) {
        let times = std::mem::take(&mut self.more);
        if times > 0 {
            self.push(Event::RefusedMore { times });
        }
    }

    /// Counts events that could not be told.
    pub fn lose(&mut self, events: u64) {
        self.lost += events;
    }

    pub fn take(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    /// Writes everything that waits. Returns the number of refusals, and of lost events.
    pub fn finish(&mut self, now: Instant) -> (u64, u64) {
        for joined in std::mem::take(&mut self.joined) {
            self.line(joined, now);
        }
        self.tell_more();
        (self.refused, self.lost)
    }

    /// The total is never lost.
    pub fn push_last(&mut self, event: Event) {
        self.ready.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(port: u16) -> Refusal {
        Refusal {
            protocol: Protocol::Tcp,
            name: None,
            address: "10.0.0.1".parse().expect("an address"),
            port,
            reason: Reason::NotPublic,
        }
    }

    #[test]
    fn equal_refusals_within_a_second_are_one_line() {
        let (mut log, now) = (Log::new(), Instant::now());
        for _ in 0..1000 {
            log.refused(refusal(80), now);
        }
        log.tick(now);
        assert_eq!(log.take(), None, "not before the second is over");
        log.tick(now + JOINED);
        assert!(matches!(log.take(), Some(Event::Refused { times: 1000, .. })));
        assert_eq!(log.take(), None);
        assert!(!log.is_waiting());
    }

    #[test]
    fn a_scan_has_few_lines_and_the_rest_is_a_number() {
        let (mut log, mut now) = (Log::new(), Instant::now());
        let mut scanned = 0;
        for second in 0..10 {
            for port in 0..5000 {
                log.refused(refusal(port), now);
                scanned += 1;
            }
            now += JOINED;
            log.tick(now);
            assert!(log.ready.len() <= REFUSED_LINES as usize + 2 + second * 2, "{}", log.ready.len());
        }
        assert_eq!(log.finish(now), (scanned, 0));
        let mut told = 0;
        while let Some(event) = log.take() {
            match event {
                Event::Refused { times, .. } | Event::RefusedMore { times } => told += times,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told, scanned, "each one is in a line or in a number");
    }

    #[test]
    fn events_are_read_as_they_were_written() {
        let connection = Event::Connection {
            protocol: Protocol::Tcp,
            name: Some("example.org".to_owned()),
            address: "2606:4700::1111".parse().expect("an address"),
            port: 443,
            up: 1,
            down: u64::MAX,
            millis: 3,
            end: End::Limit(Reason::Bytes { limit: 7 }),
        };
        let network = "10.0.0.0/8".parse().expect("a network");
        let refused = Event::Refused {
            protocol: Protocol::Other,
            name: None,
            address: "10.0.0.1".parse().expect("an address"),
            port: 0,
            reason: Reason::DeniedNetwork { network },
            times: 2,
        };
        let dropped = BTreeMap::from([(Dropped::Source, 1), (Dropped::NoConnection, 2)]);
        let total = Event::Total { up: 1, down: 2, connections: 3, refused: 4, dropped, lost: 5 };
        for event in [connection, refused, Event::RefusedMore { times: 9 }, total] {
            let line = serde_json::to_string(&event).expect("JSON");
            assert_eq!(serde_json::from_str::<Event>(&line).expect(&line), event);
        }
    }
}
