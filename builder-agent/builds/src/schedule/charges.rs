//! The charges of a run to the ledger: what it used, divided among those who owned it.
//!
//! A run is one charge, however many requests wait for it. Its owner can change while it builds; then each owner is
//! charged for the part of the time in which the run was theirs. So nobody avoids a charge by leaving shortly before the
//! end. It counts as one build of the member for whom it was started. Each request has a key or a ticket, and tags, and its
//! part of the run counts for those too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger::{Ledger, Principal, Resource};
use sandbox::{Moment, Usage};
use serde::{Deserialize, Serialize};

use super::request::Request;
use crate::Envelope;
use crate::written::WrittenPrincipal;

/// Owners with tags and keys of their own whom a run remembers. More are seldom honest: tags are free words, and each other
/// list of them is another owner.
const OWNERS: usize = 64;

/// Who is charged for a part of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Charged {
    who: Principal,
    tags: Vec<Arc<str>>,
}

/// Who owns a started run, and who owned it before.
pub(super) struct Owners {
    /// In the order in which they first owned it, each once. After the first [`OWNERS`] a member is one owner, without tags
    /// and key.
    times: Vec<(Charged, Duration)>,
    now: Charged,
    since: Instant,
}

/// What a run used.
pub(super) struct Used {
    /// `None` if nothing was started in a sandbox.
    pub usage: Option<Usage>,
    pub envelope: Envelope,
    pub log_bytes: u64,
    /// Bytes that the agent fetched for a builder of its own.
    pub downloaded: u64,
    pub failed: bool,
}

/// The owners of a run that another program goes on with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WrittenOwners {
    times: Vec<(WrittenCharged, Duration)>,
    now: WrittenCharged,
    since: Moment,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenCharged {
    who: WrittenPrincipal,
    tags: Vec<String>,
}

impl Charged {
    fn of(request: &Request) -> Self {
        let tags = request.tags.iter().map(|tag| tag.as_str().into()).collect();
        Self { who: request.principal.clone(), tags }
    }

    fn member_alone(&self) -> Self {
        Self { who: Principal::of(&self.who.member), tags: Vec::new() }
    }

    fn written_down(&self) -> WrittenCharged {
        let tags = self.tags.iter().map(ToString::to_string).collect();
        WrittenCharged { who: (&self.who).into(), tags }
    }

    fn taken_over(written: WrittenCharged) -> Self {
        let tags = written.tags.into_iter().map(Arc::from).collect();
        Self { who: written.who.into(), tags }
    }
}

impl Owners {
    pub fn written_down(&self) -> WrittenOwners {
        let times = self.times.iter().map(|(owner, time)| (owner.written_down(), *time)).collect();
        WrittenOwners { times, now: self.now.written_down(), since: Moment::of(self.since) }
    }

    pub fn taken_over(written: WrittenOwners) -> Self {
        let times =
            written.times.into_iter().map(|(owner, time)| (Charged::taken_over(owner), time)).collect();
        Self { times, now: Charged::taken_over(written.now), since: written.since.instant() }
    }

    pub fn new(first: &Request) -> Self {
        Self::first(Charged::of(first))
    }

    fn first(first: Charged) -> Self {
        Self { times: vec![(first.clone(), Duration::ZERO)], now: first, since: Instant::now() }
    }

    pub fn hand_over(&mut self, next: &Request) {
        self.next(Charged::of(next));
    }

    fn next(&mut self, next: Charged) {
        self.note(self.since.elapsed());
        (self.now, self.since) = (next, Instant::now());
    }

    /// The run has ended: how long each owned it.
    pub fn end(mut self) -> Vec<(Charged, Duration)> {
        self.note(self.since.elapsed());
        self.times
    }

    fn note(&mut self, time: Duration) {
        let is_known = self.times.len() < OWNERS || self.times.iter().any(|(owner, _)| *owner == self.now);
        let of = if is_known { self.now.clone() } else { self.now.member_alone() };
        match self.times.iter_mut().find(|(owner, _)| *owner == of) {
            Some((_, sum)) => *sum += time,
            None => self.times.push((of, time)),
        }
    }
}

/// Charges a run that has ended. The first of `owners` is the member for whom it was started.
pub(super) fn charge(ledger: &Ledger, owners: &[(Charged, Duration)], used: &Used) {
    let wall: Duration = owners.iter().map(|(_, time)| *time).sum();
    let wall_millis = millis(wall);
    let reserved = used.usage.map_or(0, |_| u64::from(used.envelope.memory_mib).saturating_mul(wall_millis));
    let resources = [
        (Resource::CpuSeconds, used.usage.map_or(0, |usage| millis(usage.cpu))),
        (Resource::WallSeconds, wall_millis),
        (Resource::MemoryMibSeconds, reserved),
        (Resource::LogBytes, used.log_bytes),
        (Resource::DownloadBytes, used.downloaded),
        (Resource::NetworkBytes, used.usage.map_or(0, |usage| usage.network)),
    ];
    let times: Vec<Duration> = owners.iter().map(|(_, time)| *time).collect();
    let divided = resources.map(|(resource, amount)| (resource, divide(amount, &times)));
    for (place, (Charged { who, tags }, _)) in owners.iter().enumerate() {
        let parts = divided.iter().map(|(resource, parts)| (*resource, parts[place]));
        let builds = u64::from(place == 0);
        let numbers = [(Resource::Builds, builds), (Resource::FailedBuilds, builds * u64::from(used.failed))];
        ledger.charge_tagged(who, tags, parts.chain(numbers));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Parts of `amount` in proportion to `times`. Their sum is `amount`: the last one gets what rounding leaves.
fn divide(amount: u64, times: &[Duration]) -> Vec<u64> {
    let all: u128 = times.iter().map(Duration::as_nanos).sum();
    let mut left = amount;
    let last = times.len().saturating_sub(1);
    let part = |(place, time): (usize, &Duration)| {
        let exact = (u128::from(amount) * time.as_nanos()).checked_div(all).unwrap_or(0);
        let part = if place == last { left } else { u64::try_from(exact).unwrap_or(left).min(left) };
        left -= part;
        part
    };
    times.iter().enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use ledger::{By, Kind};

    use super::*;

    fn charged(name: &str, tags: &[&str]) -> Charged {
        let tags = tags.iter().map(|tag| (*tag).into()).collect();
        Charged { who: Principal::member(name).with_key("laptop"), tags }
    }

    const ENVELOPE: Envelope =
        Envelope { vcpus: 1, memory_mib: 512, processes: 99, random_order: false, of_box: true };

    #[test]
    fn parts_add_up_to_the_whole() {
        let seconds = |list: &[u64]| list.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>();
        assert_eq!(divide(100, &seconds(&[1, 3])), [25, 75]);
        assert_eq!(divide(100, &seconds(&[1, 1, 1])), [33, 33, 34]);
        assert_eq!(divide(7, &seconds(&[0, 0])), [0, 7]);
        assert_eq!(divide(u64::MAX, &seconds(&[1, 1])).iter().sum::<u64>(), u64::MAX);
    }

    #[test]
    fn owners_are_charged_for_their_part_of_the_time_and_the_build_is_the_firsts() {
        let ledger = Ledger::in_memory();
        let owners = [
            (charged("alice", &["ci"]), Duration::from_secs(1)),
            (charged("bob", &["nightly", "x"]), Duration::from_secs(3)),
        ];
        let usage = Usage { cpu: Duration::from_secs(8), ..Usage::default() };
        charge(
            &ledger,
            &owners,
            &Used { usage: Some(usage), envelope: ENVELOPE, log_bytes: 40, downloaded: 400, failed: true },
        );
        let used = |name| {
            let used = ledger.used_this_month(&Principal::member(name));
            ledger::RESOURCES.iter().map(|row| used.get(row.resource)).take(6).collect::<Vec<_>>()
        };
        assert_eq!(used("alice"), [2000, 1000, 512_000, 1, 1, 10]);
        assert_eq!(used("bob"), [6000, 3000, 3 * 512_000, 0, 0, 30]);
        let of = |name, per| {
            let sums = ledger.usage(Some(name), Some(per), By::Month, None).into_iter();
            let sums = sums.map(|((account, _), sum)| {
                (account.part.expect("a part").name.to_string(), sum.get(Resource::DownloadBytes))
            });
            sums.collect::<Vec<_>>()
        };
        assert_eq!(of("alice", Kind::Tag), [("ci".to_owned(), 100)]);
        assert_eq!(of("bob", Kind::Tag), [("nightly".to_owned(), 300), ("x".to_owned(), 300)]);
        assert_eq!(of("bob", Kind::Key), [("laptop".to_owned(), 300)]);
    }

    #[test]
    fn owners_with_ever_new_tags_are_one_owner_in_the_end_and_no_time_is_lost() {
        let mut owners = Owners::first(charged("alice", &[]));
        for n in 0..1000 {
            owners.next(charged("bob", &[&n.to_string()]));
        }
        owners.next(charged("bob", &["5"]));
        std::thread::sleep(Duration::from_millis(2));
        let all = owners.end();
        assert_eq!(all.len(), OWNERS + 1);
        assert_eq!(all[0].0, charged("alice", &[]));
        assert_eq!(all[OWNERS].0, charged("bob", &["1"]).member_alone());
        let known = all.iter().find(|(owner, _)| *owner == charged("bob", &["5"])).expect("an early one");
        assert!(known.1 >= Duration::from_millis(2), "{known:?}");
    }

    #[test]
    fn an_owner_who_comes_back_is_one_owner() {
        let (alice, bob) = (charged("alice", &[]), charged("bob", &[]));
        let mut owners = Owners::first(alice.clone());
        owners.next(bob.clone());
        owners.next(alice.clone());
        owners.next(charged("alice", &["ci"]));
        let all: Vec<Charged> = owners.end().into_iter().map(|(owner, _)| owner).collect();
        assert_eq!(all, [alice, bob, charged("alice", &["ci"])]);
    }
}
