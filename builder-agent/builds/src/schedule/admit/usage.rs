//! The recent usage of one member or key: the part of the box that its runs take, times counted time.
//!
//! A run is charged while it runs: usage is a sum that stands still and a rate that goes on. What is known only at the end
//! is put right at the end.
//! Not here: whose usage is compared with whose (`tree`).

use std::time::Duration;

use super::decay::{Moment, OCTAVES};

/// A run that has started counts, until it ends, as if it ran for so long from now on. So several slots that are free at
/// the same moment do not all go to the member who is behind by a second. About the time of a small build.
pub const ADVANCE: Duration = Duration::from_secs(60);

/// Time in one slot that an owner can be behind those who wait; who is further behind has lost the rest. Enough for the
/// builds of a working session to go first. The others wait for at most so much of each member who comes back.
pub const CREDIT: Duration = Duration::from_secs(1800);

/// The shortest time that is charged for a run. A sandbox costs about so much of a slot around a builder that does
/// nothing, so a swarm of such builders is not free.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Units in a thousandth of a slot. Even a run of a thousandth with the largest weight has a thousand of them.
const SCALE: u64 = 1 << 20;
/// Thousandths in a slot.
const SLOT: i128 = 1000;

#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// What would have been used if `rate` had always been what it is now, up to the base of counted time; so it can be
    /// negative.
    standing: i128,
    /// The sum of the rates of all that runs.
    rate: i128,
}

/// What a run of this many thousandths of a slot is charged per unit of counted time.
pub fn rate(parts: u64, weight: u64) -> i128 {
    i128::from(parts) * i128::from(SCALE / weight)
}

/// This much time in one slot, by an owner of weight 1, counted as if it were now.
pub fn of_a_slot(time: Duration, now: Moment) -> i128 {
    now.worth_of(time) * SLOT * i128::from(SCALE)
}

impl Usage {
    pub fn at(&self, now: Moment) -> i128 {
        self.standing + self.rate * now.counted
    }

    /// What the runs that have started count in advance.
    pub fn advance(&self, now: Moment) -> i128 {
        self.rate * now.worth_of(ADVANCE)
    }

    /// Raises the usage of an owner who is further behind than `floor`.
    pub fn lift(&mut self, floor: i128, now: Moment) {
        self.standing += (floor - self.at(now)).max(0);
    }

    pub fn begin(&mut self, rate: i128, now: Moment) {
        self.standing -= rate * now.counted;
        self.rate += rate;
    }

    /// `missing` is charged besides the time since the beginning.
    pub fn stop(&mut self, rate: i128, missing: Duration, now: Moment) {
        self.standing += rate * (now.counted + now.worth_of(missing));
        self.rate -= rate;
    }

    /// Counted time begins anew where it was `passed`, at a fraction.
    pub fn rebase(&mut self, passed: i128) {
        self.standing = (self.standing + self.rate * passed) >> OCTAVES;
    }
}
