//! Moments that another process of this machine understands.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment in nanoseconds of the machine's monotonic clock, which goes on however often a process executes another
/// program. `Instant` is the same clock, and cannot be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment(u64);

impl Moment {
    #[must_use]
    pub fn of(instant: Instant) -> Moment {
        let (clock, now) = (clock(), Instant::now());
        let at = match instant.checked_duration_since(now) {
            Some(ahead) => clock.saturating_add(ahead),
            None => clock.saturating_sub(now.saturating_duration_since(instant)),
        };
        Moment(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX))
    }

    /// A moment that `Instant` cannot represent is now.
    #[must_use]
    pub fn instant(self) -> Instant {
        let (clock, now, at) = (clock(), Instant::now(), Duration::from_nanos(self.0));
        let instant = match at.checked_sub(clock) {
            Some(ahead) => now.checked_add(ahead),
            None => now.checked_sub(clock.saturating_sub(at)),
        };
        instant.unwrap_or(now)
    }
}

fn clock() -> Duration {
    // The clock never shows less than zero.
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_and_after_now_come_back() {
        let now = Instant::now();
        for instant in [now, now - Duration::from_millis(1500), now + Duration::from_secs(3600)] {
            let json = serde_json::to_string(&Moment::of(instant)).unwrap();
            let back = serde_json::from_str::<Moment>(&json).unwrap().instant();
            let off = back.max(instant) - back.min(instant);
            assert!(off < Duration::from_millis(100), "{off:?}");
        }
        assert!(Moment(u64::MAX).instant() > now);
    }
}
