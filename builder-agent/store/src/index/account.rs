//! What decides which path goes first when room is needed: who brought it, and when it was last used.
//!
//! The time of the last use is exact in memory, and coarse in the database: a question must not cost a write. After a
//! restart a path can look up to [`COARSE`] older than it is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::Member;

/// Time between two writes of one path's last use, in milliseconds: an hour.
const COARSE: u64 = 3_600_000;

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The part of a row that is about its costs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Who brought a Verified path first; `None`: the box. A claim is always its own member's.
    pub(crate) payer: Option<Member>,
    /// The last use, in milliseconds since 1970.
    pub(crate) used: u64,
}

impl Account {
    /// Of a path that `payer` brings at this moment.
    pub(crate) fn opened_by(payer: Option<Member>) -> Self {
        Self { payer, used: now() }
    }
}

/// The last use of a path. Changed by questions, which only read the index.
#[derive(Debug, Default)]
pub(crate) struct LastUse {
    at: AtomicU64,
    /// The value in the database, or on its way there.
    noted: AtomicU64,
    /// Whether somebody else than its payer has used it in this process.
    by_others: AtomicBool,
}

impl LastUse {
    pub(crate) fn new(at: u64) -> Self {
        Self { at: at.into(), noted: at.into(), by_others: false.into() }
    }

    pub(crate) fn at(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    pub(crate) fn is_by_others(&self) -> bool {
        self.by_others.load(Ordering::Relaxed)
    }

    /// Notes a use at `now`. True: the database should learn of it.
    pub(crate) fn touch(&self, now: u64, by_other: bool) -> bool {
        self.at.fetch_max(now, Ordering::Relaxed);
        if by_other {
            self.by_others.store(true, Ordering::Relaxed);
        }
        let noted = self.noted.load(Ordering::Relaxed);
        // Of two threads one wins, so each use is written once.
        now >= noted.saturating_add(COARSE)
            && self.noted.compare_exchange(noted, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_exact_in_memory_and_written_once_an_hour() {
        let used = LastUse::new(1000);
        assert!(!used.touch(2000, false) && !used.touch(COARSE, false));
        assert_eq!(used.at(), COARSE);
        assert!(used.touch(1000 + COARSE, true), "an hour later");
        assert!(!used.touch(1001 + COARSE, false), "it is written already");
        assert!(
            !used.touch(5, false) && used.at() == 1001 + COARSE,
            "a clock that was set back changes nothing"
        );
        assert!(used.is_by_others());
    }
}
