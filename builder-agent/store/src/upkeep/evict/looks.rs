//! How often a payer may make the box look for what can be charged less.
//!
//! Such a look goes through all that the payer has and needs, while the commits of others wait. A payer who is at the limit,
//! and asks for more again and again, gets the answer of the last look as long as nothing has changed that could give
//! another one, and causes looks for a small part of the time at most.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::types::Member;

/// A look through so many rows takes no longer than a small commit, and is followed by no pause.
const FEW: usize = 1000;
/// Time until the next look, for each row that the last one went through: about ten times as long as that took.
const PAUSE: Duration = Duration::from_micros(5);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(5);
/// For so long the answer of a look counts if nothing has changed that is known to change it.
const COUNTS: Duration = Duration::from_secs(10);

/// What changes the answer: what the payer is charged for, and how many holds have ended and roots have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Situation {
    pub(crate) charged: u64,
    pub(crate) freed: u64,
}

struct Look {
    at: Instant,
    rows: usize,
    situation: Situation,
    /// Bytes that the payer could be charged less.
    possible: u64,
}

/// The last looks.
#[derive(Default)]
pub(crate) struct Looks(Mutex<HashMap<Member, Look>>);

impl Looks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Member, Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a look that went through so many rows and left the payer in this situation.
    pub(crate) fn note(&self, payer: &Member, rows: usize, situation: Situation, possible: u64) {
        let look = Look { at: Instant::now(), rows, situation, possible };
        self.lock().insert(payer.clone(), look);
    }

    /// The bytes that the payer can be charged less at most, if another look is not due for a payer who needs so many.
    pub(crate) fn known(
        &self,
        payer: &Member,
        now: Instant,
        situation: Situation,
        needed: u64,
    ) -> Option<u64> {
        let mut looks = self.lock();
        let Look { at, rows, situation: then, possible } = looks.get(payer)?;
        let age = now.saturating_duration_since(*at);
        let is_same = *then == situation && age < COUNTS && *possible < needed;
        let rows = if *rows > FEW { u32::try_from(*rows).unwrap_or(u32::MAX) } else { 0 };
        let pause = PAUSE.saturating_mul(rows).min(LONGEST);
        if is_same || age < pause {
            return Some(if *then == situation { *possible } else { 0 });
        }
        looks.remove(payer);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts_until_something_changes_and_a_look_at_much_is_not_repeated_at_once() {
        let (looks, alice) = (Looks::default(), Member::new("alice"));
        let (now, then) = (Instant::now(), Situation { charged: 100, freed: 1 });
        assert_eq!(looks.known(&alice, now, then, 10), None, "there was none");
        looks.note(&alice, 2, then, 5);
        let later = Instant::now() + Duration::from_millis(1);
        assert_eq!(looks.known(&alice, later, then, 10), Some(5));
        assert_eq!(looks.known(&Member::new("bob"), later, then, 10), None);
        assert_eq!(looks.known(&alice, later, then, 5), None, "so much is possible");
        looks.note(&alice, 2, then, 5);
        let changed = Situation { freed: 2, ..then };
        assert_eq!(looks.known(&alice, Instant::now() + Duration::from_millis(1), changed, 10), None);
        looks.note(&alice, 100_000, then, 5);
        let later = |millis| Instant::now() + Duration::from_millis(millis);
        assert_eq!(looks.known(&alice, later(100), changed, 10), Some(0), "whatever has changed");
        assert_eq!(looks.known(&alice, later(501), changed, 10), None);
    }
}
