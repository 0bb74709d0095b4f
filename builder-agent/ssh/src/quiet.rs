//! Limits log lines about strangers to a number that a person can read.
//!
//! Anybody who can connect can make the agent log, and a journal full of lines about one address hides everything else.
//! So such lines have a budget, and the lines that exceed it are counted and the count is logged. Lines about members
//! have no limit: each names a person who can be asked. Not here: the lines themselves.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines at once, for a burst that is worth reading completely.
const BURST: f64 = 100.0;
/// Lines per second after a burst.
const PER_SECOND: f64 = 2.0;
/// Interval for logging the number of left-out lines, if no other line logs it.
pub(super) const REPORT: Duration = Duration::from_secs(10);

pub(super) struct Quiet {
    budget: Mutex<Budget>,
}

struct Budget {
    lines: f64,
    at: Instant,
    left_out: u64,
}

/// The permission to log one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Number of lines left out since the last line.
    pub left_out: Option<u64>,
}

impl Quiet {
    pub fn new() -> Self {
        Self { budget: Mutex::new(Budget { lines: BURST, at: Instant::now(), left_out: 0 }) }
    }

    /// Permission for one line about a stranger; `None` if it has to be left out.
    pub fn line(&self) -> Option<Line> {
        self.line_at(Instant::now())
    }

    fn line_at(&self, now: Instant) -> Option<Line> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(budget.at).as_secs_f64();
        budget.lines = (budget.lines + passed * PER_SECOND).min(BURST);
        budget.at = now;
        if budget.lines < 1.0 {
            budget.left_out += 1;
            return None;
        }
        budget.lines -= 1.0;
        let left_out = std::mem::take(&mut budget.left_out);
        Some(Line { left_out: (left_out > 0).then_some(left_out) })
    }

    /// Number of left-out lines that has not been logged yet.
    pub fn untold(&self) -> Option<u64> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        Some(std::mem::take(&mut budget.left_out)).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_every_one_that_is_left_out_is_counted_once() {
        let (quiet, now) = (Quiet::new(), Instant::now());
        let said = (0..10_000).filter(|_| quiet.line_at(now).is_some()).count();
        assert_eq!(said, BURST as usize);
        let next = quiet.line_at(now + Duration::from_secs(1)).expect("a line a second later");
        assert_eq!(next.left_out, Some(10_000 - said as u64));
        assert_eq!(quiet.untold(), None);
        let later = now + Duration::from_secs(3600);
        let said = (0..10_000).filter(|_| quiet.line_at(later).is_some()).count();
        assert_eq!(said, BURST as usize, "an hour of silence does not add up");
        assert_eq!(quiet.untold(), Some(10_000 - said as u64));
    }
}
