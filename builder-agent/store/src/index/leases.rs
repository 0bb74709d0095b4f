//! Leases: the paths of which a session was told that they are valid. The box does not evict them while that session
//! lasts, so a client can rely on an answer for the requests that follow it.
//!
//! A lease costs the client nothing, so there are only so many for one session, and the newest count.

use std::collections::{HashSet, VecDeque};

use nix_derivation::StorePath;

/// Most leases of one session; then the oldest ends. Large closures have some ten thousand paths. They take about 13 MB.
const MAX_LEASES: usize = 100_000;

/// The leases of one session.
#[derive(Default)]
pub(crate) struct Leases {
    /// Oldest first, each with its number, which grows over all sessions.
    by_age: VecDeque<(u64, StorePath)>,
    digests: HashSet<[u8; 20]>,
}

impl Leases {
    /// Adds a lease; `number` is called only for a new one. Two paths with one digest have one lease: such paths are
    /// made up.
    pub(crate) fn add(&mut self, path: &StorePath, number: impl FnOnce() -> u64) {
        if !self.digests.insert(*path.digest()) {
            return;
        }
        self.by_age.push_back((number(), path.clone()));
        if self.by_age.len() > MAX_LEASES
            && let Some((_, oldest)) = self.by_age.pop_front()
        {
            self.digests.remove(oldest.digest());
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_age.len()
    }

    /// The leases with at least this number, newest first.
    pub(crate) fn since(&self, number: u64) -> impl Iterator<Item = &(u64, StorePath)> {
        self.by_age.iter().rev().take_while(move |(given, _)| *given >= number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_leases_count_and_a_repeated_one_stays_where_it_is() {
        let path = |n: u32| {
            let mut digest = [0; 20];
            digest[..4].copy_from_slice(&n.to_le_bytes());
            StorePath::from_parts(digest, "p").unwrap()
        };
        let mut leases = Leases::default();
        for n in 0..=MAX_LEASES as u32 {
            leases.add(&path(n), || u64::from(n));
        }
        leases.add(&path(7), || panic!("it has a number"));
        assert_eq!(leases.len(), MAX_LEASES);
        assert_eq!(leases.since(0).last().map(|(n, _)| *n), Some(1), "the oldest has ended");
        let newest: Vec<u64> = leases.since(MAX_LEASES as u64 - 1).map(|(n, _)| *n).collect();
        assert_eq!(newest, [MAX_LEASES as u64, MAX_LEASES as u64 - 1]);
    }
}
