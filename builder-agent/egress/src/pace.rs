//! Token buckets: an amount per second, and a burst.

use std::time::{Duration, Instant};

/// Longest wait that [`Bucket::wait`] answers, so that a huge debt does not stop a link for long.
const LONGEST: Duration = Duration::from_secs(1);

/// Fills at `rate` per second up to `burst`.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    level: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// A rate of 0 is 1: no rate divides by zero, and no link stops for ever.
    pub fn new(rate: u64, burst: u64) -> Self {
        let burst = burst.max(1) as f64;
        Self { rate: rate.max(1) as f64, burst, level: burst, at: None }
    }

    fn fill(&mut self, now: Instant) {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.level = (self.level + passed.as_secs_f64() * self.rate).min(self.burst);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has = self.level >= 1.0;
        if has {
            self.level -= 1.0;
        }
        has
    }

    /// Takes as much as was used already. The bucket can go into debt, which [`Self::wait`] tells.
    pub fn spend(&mut self, amount: usize, now: Instant) {
        self.fill(now);
        // Not below a burst of debt: a frame is smaller than that.
        self.level = (self.level - amount as f64).max(-self.burst);
    }

    /// Time until the debt is paid.
    pub fn wait(&self, now: Instant) -> Duration {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let level = self.level + passed.as_secs_f64() * self.rate;
        match level < 0.0 {
            true => Duration::from_secs_f64(-level / self.rate).min(LONGEST),
            false => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10, 20);
        let taken = |bucket: &mut Bucket, at| (0..1000).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, now), 20);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(1)), 10);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(100)), 20, "no more than a burst is saved");
    }

    #[test]
    fn a_debt_is_waited_for_and_bounded() {
        let now = Instant::now();
        let mut bucket = Bucket::new(1000, 1000);
        bucket.spend(1000, now);
        assert_eq!(bucket.wait(now), Duration::ZERO);
        bucket.spend(500, now);
        assert_eq!(bucket.wait(now), Duration::from_millis(500));
        assert_eq!(bucket.wait(now + Duration::from_millis(500)), Duration::ZERO);
        bucket.spend(usize::MAX, now);
        assert_eq!(bucket.wait(now), LONGEST);
    }
}
