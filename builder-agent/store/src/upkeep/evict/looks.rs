//! How often a payer may make the box look for what can be charged less.
//!
//! Such a look goes through all that the payer has and needs, while the commits of others wait. A payer who is at the limit,
//! and asks for more again and again, gets the answer of the last look as long as nothing has changed that could give
//! another one, and causes looks for a small part of the time at most. Who asks before the next look is due waits for it: a
//! request is refused only if a look says so. One look answers all who wait for one, so nobody waits longer than for that.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
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

/// What a look has found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) began: Instant,
    /// How many rows it went through.
    pub(crate) rows: usize,
    /// Of the payer, after what was done then.
    pub(crate) situation: Situation,
    /// Bytes that the payer can be charged less after that.
    pub(crate) possible: u64,
}

impl Look {
    /// The bytes that a payer who asked at that time, and is in this situation, can be charged less, if this look says it.
    fn answer(&self, ended: Instant, now: Instant, asked: Instant, situation: Situation) -> Option<u64> {
        let is_same = self.situation == situation && now.saturating_duration_since(ended) < COUNTS;
        (is_same || self.began > asked).then_some(self.possible)
    }
}

#[derive(Default)]
struct OfPayer {
    /// With its end.
    last: Option<(Look, Instant)>,
    is_looking: bool,
}

/// The last looks.
#[derive(Default)]
pub(crate) struct Looks {
    by_payer: Mutex<HashMap<Member, OfPayer>>,
    /// A look has ended.
    ended: Condvar,
}

/// What a payer who asks for more has to do.
pub(crate) enum Next<'l> {
    /// To look. No other look for this payer begins meanwhile.
    Look(Looking<'l>),
    /// So many bytes are possible, which is not enough.
    Refused(u64),
    /// To ask again after this time, or when a look has ended; `None`: when the one that goes on has ended.
    Wait(Option<Duration>),
}

/// While it exists somebody looks.
pub(crate) struct Looking<'l> {
    looks: &'l Looks,
    payer: Member,
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        if let Some(of_payer) = self.looks.lock().get_mut(&self.payer) {
            of_payer.is_looking = false;
        }
        self.looks.ended.notify_all();
    }
}

impl Looks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Member, OfPayer>> {
        self.by_payer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a look.
    pub(crate) fn note(&self, payer: &Member, look: Look) {
        self.lock().entry(payer.clone()).or_default().last = Some((look, Instant::now()));
    }

    /// What a payer who is in this situation has to do, who asked at that time for so much that `needed` bytes have to go.
    pub(crate) fn next(
        &self,
        payer: &Member,
        (asked, now): (Instant, Instant),
        situation: Situation,
        needed: u64,
    ) -> Next<'_> {
        let mut looks = self.lock();
        let of_payer = looks.entry(payer.clone()).or_default();
        let mut pause = Duration::ZERO;
        if let Some((look, ended)) = &of_payer.last {
            // Until the one who looks has ended, its changes may not be in the index, and `needed` not know of them.
            let is_settled = !of_payer.is_looking || look.situation == situation;
            match look.answer(*ended, now, asked, situation).filter(|_| is_settled) {
                Some(possible) if possible < needed => return Next::Refused(possible),
                // It has an effect, so there is no next one before the payer has brought more.
                Some(_) => {}
                None => {
                    let rows = if look.rows > FEW { u32::try_from(look.rows).unwrap_or(u32::MAX) } else { 0 };
                    let whole = PAUSE.saturating_mul(rows).min(LONGEST);
                    pause = whole.saturating_sub(now.saturating_duration_since(*ended));
                }
            }
        }
        if of_payer.is_looking {
            return Next::Wait(None);
        }
        if !pause.is_zero() {
            return Next::Wait(Some(pause));
        }
        of_payer.is_looking = true;
        Next::Look(Looking { looks: self, payer: payer.clone() })
    }

    /// Waits as [`Next::Wait`] says.
    pub(crate) fn wait(&self, payer: &Member, pause: Option<Duration>) {
        let looks = self.lock();
        let Some(longest) = pause else {
            // It may have ended since.
            let goes_on = |looks: &mut HashMap<Member, OfPayer>| {
                looks.get(payer).is_some_and(|of_payer| of_payer.is_looking)
            };
            drop(self.ended.wait_timeout_while(looks, LONGEST, goes_on));
            return;
        };
        let last = |looks: &HashMap<Member, OfPayer>| {
            looks.get(payer).map(|of_payer| (of_payer.last.map(|(_, ended)| ended), of_payer.is_looking))
        };
        let before = last(&looks);
        drop(self.ended.wait_timeout_while(looks, longest, |looks| last(looks) == before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short word for it.
    fn word(next: &Next<'_>) -> String {
        match next {
            Next::Look(_) => "look".into(),
            Next::Refused(possible) => format!("refused, {possible}"),
            Next::Wait(None) => "wait for a look".into(),
            Next::Wait(Some(_)) => "wait".into(),
        }
    }

    fn look(rows: usize, situation: Situation) -> Look {
        Look { began: Instant::now(), rows, situation, possible: 5 }
    }

    const THEN: Situation = Situation { charged: 100, freed: 1 };
    const CHANGED: Situation = Situation { charged: 100, freed: 2 };

    #[test]
    fn a_refusal_counts_until_something_changes() {
        let (looks, alice) = (Looks::default(), Member::new("alice"));
        let next = |who: &Member, situation, needed| {
            let now = Instant::now();
            word(&looks.next(who, (now, now), situation, needed))
        };
        assert_eq!(next(&alice, THEN, 10), "look", "there was none");
        looks.note(&alice, look(2, THEN));
        assert_eq!(next(&alice, THEN, 10), "refused, 5");
        assert_eq!(next(&Member::new("bob"), THEN, 10), "look");
        assert_eq!(next(&alice, THEN, 5), "look", "so much is possible");
        assert_eq!(next(&alice, CHANGED, 10), "look");
    }

    #[test]
    fn a_look_at_much_is_not_repeated_at_once_and_nobody_is_refused_because_of_that() {
        let (looks, alice) = (Looks::default(), Member::new("alice"));
        looks.note(&alice, look(100_000, THEN));
        let next = |millis, needed| {
            let later = Instant::now() + Duration::from_millis(millis);
            word(&looks.next(&alice, (later, later), CHANGED, needed))
        };
        assert_eq!(next(100, 10), "wait");
        assert_eq!(next(100, 5), "wait", "whatever was possible then");
        assert_eq!(next(501, 10), "look");
        let now = Instant::now();
        assert_eq!(word(&looks.next(&alice, (now, now), THEN, 5)), "look", "it is known to succeed");
    }

    #[test]
    fn one_look_answers_all_who_waited_for_it_whatever_has_changed_since_and_two_do_not_look_at_once() {
        let (looks, alice) = (Looks::default(), Member::new("alice"));
        let asked = Instant::now();
        let next = |situation, needed| looks.next(&alice, (asked, Instant::now()), situation, needed);
        let looking = next(THEN, 10);
        assert_eq!(word(&next(CHANGED, 10)), "wait for a look");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| looks.wait(&alice, None));
            looks.note(&alice, look(1_000_000, THEN));
            assert_eq!(word(&next(CHANGED, 6)), "wait for a look", "its changes may not be there yet");
            drop(looking);
            waiting.join().unwrap();
        });
        assert_eq!(word(&next(CHANGED, 6)), "refused, 5");
        assert_eq!(word(&next(CHANGED, 5)), "look");
    }
}
