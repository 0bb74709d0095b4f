//! The penalties of sources for connections that ended without a login: a table of times, bounded in size.
//!
//! As OpenSSH's `PerSourcePenalties`: penalties of one source add up, and once they reach `min`, the source is refused
//! until the last has passed. Not here: the size of each penalty (`settings::strangers`), and the caller (`gate`).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Limit on the sources in the table, about 2 MiB. Beyond it, those whose penalty would end first are removed: a full
/// table must let people in, or filling it would lock everybody out.
const MAX_SOURCES: usize = 16_384;

#[derive(Debug, Clone, Copy)]
struct Penalty {
    until: Instant,
    /// The sum has reached `min`; the source is refused until all of it has passed.
    holds: bool,
}

pub(super) struct Table {
    min: Duration,
    max: Duration,
    sources: HashMap<IpAddr, Penalty>,
    /// The same sources, ordered by the ends of their penalties.
    ends: BTreeSet<(Instant, IpAddr)>,
}

impl Table {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, sources: HashMap::new(), ends: BTreeSet::new() }
    }

    /// Adds to the penalty of this source. True if the source is refused from now on.
    pub fn charge(&mut self, source: IpAddr, amount: Duration, now: Instant) -> bool {
        if amount.is_zero() {
            return false;
        }
        let before = self.take(source).filter(|penalty| penalty.until > now);
        let from = before.map_or(now, |penalty| penalty.until);
        let until = (from + amount).min(now + self.max);
        let held = before.is_some_and(|penalty| penalty.holds);
        let holds = held || until - now >= self.min;
        self.put(source, Penalty { until, holds });
        self.forget_the_past(now);
        holds && !held
    }

    /// The time for which this source is refused.
    pub fn left(&self, source: IpAddr, now: Instant) -> Option<Duration> {
        let penalty = self.sources.get(&source)?;
        (penalty.holds && penalty.until > now).then(|| penalty.until - now)
    }

    fn take(&mut self, source: IpAddr) -> Option<Penalty> {
        let penalty = self.sources.remove(&source)?;
        self.ends.remove(&(penalty.until, source));
        Some(penalty)
    }

    fn put(&mut self, source: IpAddr, penalty: Penalty) {
        self.sources.insert(source, penalty);
        self.ends.insert((penalty.until, source));
    }

    /// Removes penalties that have passed, and those that end first while the table is too large.
    fn forget_the_past(&mut self, now: Instant) {
        while let Some(&(until, source)) = self.ends.first()
            && (until <= now || self.ends.len() > MAX_SOURCES)
        {
            self.take(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn table() -> Table {
        Table::new(10 * SECOND, 60 * SECOND)
    }

    fn source(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn penalties_add_up_hold_from_the_minimum_on_and_pass() {
        let (mut table, now) = (table(), Instant::now());
        assert!(!table.charge(source(1), 6 * SECOND, now));
        assert_eq!(table.left(source(1), now), None);
        assert!(table.charge(source(1), 6 * SECOND, now));
        assert_eq!(table.left(source(1), now), Some(12 * SECOND));
        assert_eq!(table.left(source(2), now), None, "another source pays for it");
        // The refusal lasts to the end of the penalty, not only while more than the minimum is left.
        assert_eq!(table.left(source(1), now + 11 * SECOND), Some(SECOND));
        assert_eq!(table.left(source(1), now + 12 * SECOND), None);
        // A new penalty starts from zero.
        assert!(!table.charge(source(1), 6 * SECOND, now + 20 * SECOND));
        assert_eq!(table.left(source(1), now + 20 * SECOND), None);
    }

    #[test]
    fn nobody_is_kept_out_for_longer_than_the_maximum() {
        let (mut table, now) = (table(), Instant::now());
        for _ in 0..1000 {
            table.charge(source(1), 50 * SECOND, now);
        }
        assert_eq!(table.left(source(1), now), Some(60 * SECOND));
    }

    #[test]
    fn the_table_does_not_grow_and_forgets_first_what_ends_first() {
        let (mut table, now) = (table(), Instant::now());
        table.charge(source(0), 59 * SECOND, now);
        for n in 1..=3 * MAX_SOURCES as u32 {
            table.charge(source(n), 20 * SECOND, now);
            assert!(table.sources.len() <= MAX_SOURCES && table.sources.len() == table.ends.len());
        }
        assert!(table.left(source(0), now).is_some(), "the longest penalty was forgotten");
        table.charge(source(0), SECOND, now + 100 * SECOND);
        assert_eq!(table.sources.len(), 1, "what has passed is kept");
    }
}
