//! The pace of uploads when room in the store is scarce: the less room, the longer an upload waits before its next piece.
//!
//! All uploads of a member share one pace, in however many sessions they arrive, so a member who uploads a lot slows only
//! their own uploads down. Meanwhile nothing is held but the piece itself.
//! Not here: how scarce room is (`store`), and when uploads are refused.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The wait for a piece of [`PIECE`] bytes when room is as scarce as it can be without a refusal: 1 MiB a second.
const LONGEST: Duration = Duration::from_millis(250);
const PIECE: u64 = 256 << 10;
/// Smallest size that a piece counts for: a small path takes an inode, and those can be scarce, too.
const LEAST: u64 = 16 << 10;
/// Longest wait of one piece, however many uploads of its member wait; a member's debt does not grow beyond it.
const PATIENCE: Duration = Duration::from_secs(20);
/// More pieces than anybody waits for.
const MOST_PIECES: f64 = 1e4;
/// Time between two looks whether there is room again: then nobody waits any longer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The paces of all members. Clones share them.
#[derive(Clone)]
pub struct Paces(Arc<Inner>);

struct Inner {
    /// From 0 (no wait) to 1000.
    pressure: Box<dyn Fn() -> u32 + Send + Sync>,
    /// When the next piece of a member may go on; members without one in the future are not listed.
    next: Mutex<HashMap<Arc<str>, Instant>>,
}

impl fmt::Debug for Paces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paces").field("pressure", &(self.0.pressure)()).finish()
    }
}

impl Paces {
    /// `pressure` says how scarce room is at the moment, from 0 to 1000. It is called for every piece.
    #[must_use]
    pub fn new(pressure: impl Fn() -> u32 + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { pressure: Box::new(pressure), next: Mutex::default() }))
    }

    fn next(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.0.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pace of this member.
    #[must_use]
    pub fn of(&self, member: &Arc<str>) -> Pace {
        Pace { all: self.clone(), member: member.clone() }
    }
}

/// The pace of one member.
#[derive(Clone, Debug)]
pub struct Pace {
    all: Paces,
    member: Arc<str>,
}

impl Pace {
    /// Waits for the turn of a piece of so many bytes. Returns at once unless room is scarce.
    pub async fn step(&self, bytes: usize) {
        self.step_each(std::iter::once(bytes)).await;
    }

    /// The same for several paths, each of which counts for [`LEAST`] at least.
    pub async fn step_each(&self, paths: impl Iterator<Item = usize>) {
        let pressure = self.pressure();
        if pressure == 0 {
            return self.forget();
        }
        let turn = self.turn(Instant::now(), pressure, weight(paths));
        loop {
            let now = Instant::now();
            if now >= turn {
                return;
            }
            sleep_until(turn.min(now + LOOK_EVERY)).await;
            if self.pressure() == 0 {
                return self.forget();
            }
        }
    }

    fn pressure(&self) -> u32 {
        (self.all.0.pressure)().min(1000)
    }

    /// With room again nobody waits for what they sent before.
    fn forget(&self) {
        self.all.next().remove(&self.member);
    }

    /// When a piece may go on. It is behind the earlier pieces of the same member, but not further than [`PATIENCE`] away.
    fn turn(&self, now: Instant, pressure: u32, bytes: u64) -> Instant {
        let pieces = bytes as f64 / PIECE as f64;
        let wait = LONGEST.mul_f64((pieces * f64::from(pressure) / 1000.0).min(MOST_PIECES));
        let mut next = self.all.next();
        next.retain(|_, at| *at > now);
        let turn = (next.get(&self.member).copied().unwrap_or(now) + wait).min(now + PATIENCE);
        next.insert(self.member.clone(), turn);
        turn
    }
}

fn weight(paths: impl Iterator<Item = usize>) -> u64 {
    paths.map(|bytes| (bytes as u64).max(LEAST)).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_member_waits_behind_their_own_pieces_only_and_longer_the_scarcer_room_is() {
        let paces = Paces::new(|| 0);
        let (alice, bob) = (paces.of(&"alice".into()), paces.of(&"bob".into()));
        let now = Instant::now();
        let waits = |pace: &Pace, pressure, bytes| pace.turn(now, pressure, bytes) - now;
        assert_eq!(waits(&alice, 1000, PIECE), LONGEST);
        assert_eq!(waits(&alice, 1000, 4 * PIECE), LONGEST * 5, "behind the first one");
        assert_eq!(waits(&bob, 500, PIECE), LONGEST / 2, "others do not wait for alice");
        // Later nobody is listed any more.
        alice.turn(now + LONGEST * 100, 1000, 1);
        assert_eq!(paces.0.next.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn with_room_nobody_waits_and_without_it_nobody_waits_for_ever() {
        Paces::new(|| 0).of(&"alice".into()).step(usize::MAX).await;
        let scarce = Paces::new(|| 1000).of(&"alice".into());
        let stepping = tokio::time::timeout(Duration::from_millis(1), scarce.step(1 << 20));
        assert!(stepping.await.is_err(), "a mebibyte waits for a second");
        let now = Instant::now();
        for _ in 0..9 {
            assert!(scarce.turn(now, 1000, 1 << 40) <= now + PATIENCE, "a debt does not grow for ever");
        }
    }

    #[test]
    fn each_small_path_counts() {
        assert_eq!(weight([1].into_iter()), LEAST);
        assert_eq!(weight(std::iter::repeat_n(1, 160)), 10 * PIECE);
        assert_eq!(weight([PIECE as usize, 0].into_iter()), PIECE + LEAST);
    }

    #[tokio::test]
    async fn when_there_is_room_again_nobody_waits_for_what_they_sent_before() {
        let pressure = Arc::new(AtomicU32::new(1000));
        let seen = pressure.clone();
        let paces = Paces::new(move || seen.load(Ordering::Relaxed));
        let alice = paces.of(&"alice".into());
        let begun = Instant::now();
        let waiting = tokio::spawn({
            let alice = alice.clone();
            async move { alice.step(1 << 30).await }
        });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!waiting.is_finished());
        pressure.store(0, Ordering::Relaxed);
        waiting.await.expect("waited");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        pressure.store(1000, Ordering::Relaxed);
        let again = Instant::now();
        alice.step(1).await;
        assert!(again.elapsed() < Duration::from_secs(1), "the debt is forgotten");
    }
}
