//! Time that counts less the longer ago it is, without ever going over old charges again.
//!
//! Usage that decays with a half-life is the same as time that is worth twice as much with each half-life that passes
//! (forward decay). So a charge is made once, at the worth of its moment, and all usages stay comparable. The worth
//! rises in eight steps per half-life, and all numbers are whole: the same events give the same decisions everywhere.
//!
//! *Counted time* is what this module measures: the sum of milliseconds, each at its worth.

use std::time::{Duration, Instant};

/// In this time, usage loses half of its importance. It is long beside a build: while an owner waits because of a long
/// build, a part of that build is forgotten, so a half-life of an hour would give long builds a larger share than short
/// ones. It is short enough that one day does not decide about the next.
pub const HALF_LIFE: Duration = Duration::from_secs(24 * 3600);

const STEPS: usize = 8;
const STEP: i128 = HALF_LIFE.as_millis() as i128 / STEPS as i128;
/// 2¹⁶ · 2^(i/8): the worth of a millisecond in each step of the first half-life.
const WORTH: [i128; STEPS] = [65_536, 71_468, 77_936, 84_990, 92_682, 101_070, 110_218, 120_194];

/// After so many half-lives numbers are divided by 2 to this power, and time is counted from there. Until then counted
/// time stays below 2⁶¹ (2²⁷ milliseconds in a half-life, at less than 2³⁴). The rate of 4096 of the largest runs is at
/// most 2⁵², so usage stays below 2¹¹³.
pub const OCTAVES: u32 = 16;

/// Counts time from its first moment on.
#[derive(Debug, Clone, Copy)]
pub struct Decay {
    base: Instant,
}

/// Both at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// All time since the base, counted.
    pub counted: i128,
    /// The worth of a millisecond.
    pub worth: i128,
}

impl Moment {
    /// This time, counted as if all of it were now.
    pub fn worth_of(self, time: Duration) -> i128 {
        let millis = i128::try_from(time.as_millis()).unwrap_or(i128::MAX);
        millis.saturating_mul(self.worth)
    }
}

impl Decay {
    pub fn from(base: Instant) -> Self {
        Self { base }
    }

    pub fn at(&self, now: Instant) -> Moment {
        let millis = now.saturating_duration_since(self.base).as_millis() as i128;
        let (step, within) = (millis / STEP, millis % STEP);
        let (octave, step) = ((step / STEPS as i128) as u32, (step % STEPS as i128) as usize);
        let sum = |steps: &[i128]| STEP * steps.iter().sum::<i128>();
        let octaves = sum(&WORTH) * ((1 << octave) - 1);
        let worth = WORTH[step] << octave;
        Moment { counted: octaves + (sum(&WORTH[..step]) << octave) + within * worth, worth }
    }

    /// If the base is too long ago, moves it by [`OCTAVES`] half-lives and returns the counted time at the new one.
    pub fn rebase(&mut self, now: Instant) -> Option<i128> {
        let next = self.base + HALF_LIFE * OCTAVES;
        if now < next {
            return None;
        }
        let passed = self.at(next).counted;
        self.base = next;
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_millisecond_is_worth_twice_as_much_after_a_half_life_and_time_counts_its_worth() {
        let base = Instant::now();
        let decay = Decay::from(base);
        let mut counted = 0;
        for step in 0..8 * 12 {
            let now = decay.at(base + HALF_LIFE / 8 * step);
            assert_eq!(now.counted, counted);
            assert_eq!(now.worth, decay.at(base + HALF_LIFE / 8 * (step + 8)).worth / 2);
            let half = decay.at(base + HALF_LIFE / 8 * step + HALF_LIFE / 16);
            assert_eq!(half.counted, counted + now.worth * STEP / 2);
            // The exact curve: 2^(1/8) from step to step.
            let exact = 65_536.0 * (f64::from(step) / 8.0).exp2();
            assert!((now.worth as f64 / exact - 1.0).abs() < 1e-5);
            counted += now.worth * STEP;
        }
    }

    #[test]
    fn counted_time_goes_on_at_the_same_proportions_after_the_base_has_moved() {
        let base = Instant::now();
        let (mut decay, before) = (Decay::from(base), Decay::from(base));
        assert_eq!(decay.rebase(base + HALF_LIFE * OCTAVES - Duration::from_millis(1)), None);
        let now = base + HALF_LIFE * OCTAVES + Duration::from_secs(1234);
        let passed = decay.rebase(now).expect("long ago");
        assert_eq!((before.at(now).counted - passed) >> OCTAVES, decay.at(now).counted);
        assert_eq!(before.at(now).worth >> OCTAVES, decay.at(now).worth);
    }
}
