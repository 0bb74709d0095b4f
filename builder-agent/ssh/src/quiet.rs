//! Log lines about strangers, as many as a person could read.
//!
//! Whoever can connect can make us log, and a journal that is full of one address hides everything else. So such lines
//! have a budget, and what did not fit is counted and told. Lines about members are not held back: each names somebody
//! who can be asked. Not here: the lines themselves.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines at once, for a burst that is worth reading whole.
const BURST: f64 = 100.0;
/// And from then on per second.
const PER_SECOND: f64 = 2.0;
/// How often lines that were left out are told about when no other line tells.
pub(super) const REPORT: Duration = Duration::from_secs(10);

pub(super) struct Quiet {
    budget: Mutex<Budget>,
}

struct Budget {
    lines: f64,
    at: Instant,
    left_out: u64,
}

/// Leave to log one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// How many lines did not get one since the last that did.
    pub left_out: Option<u64>,
}

impl Quiet {
    pub fn new() -> Self {
        Self { budget: Mutex::new(Budget { lines: BURST, at: Instant::now(), left_out: 0 }) }
    }

    /// For one line about a stranger; `None` if it has to be left out.
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

    /// Lines that were left out since anybody told.
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
