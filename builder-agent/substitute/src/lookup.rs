//! Remembers the answers of sources for a while.
//!
//! Answers are kept for each member: the time of an answer must not tell one member which paths another one asked for.
//! Their total size is bounded, because a cache may name ten thousand references of each path. Above the bound the
//! member with the most bytes loses the oldest answer, so no member can push out the answers of others. A forgotten
//! question is asked again.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use store::Member;

use super::Answer;

/// Bytes of all answers that are kept: those for some fifty thousand paths as they are in nixpkgs.
const MAX_BYTES: u64 = 64 << 20;
/// Memory of an answer without its text or offer.
const ANSWER_BYTES: u64 = 384;
/// How long an offer is remembered. Caches delete files rarely, and a download notices a missing file.
const FOUND: Duration = Duration::from_secs(3600);
/// How long it is remembered that no source has a path: somebody may push it soon.
const NOWHERE: Duration = Duration::from_secs(60);

pub struct Lookups {
    members: HashMap<Member, Shelf>,
    bytes: u64,
    most: u64,
    next: u64,
}

impl Default for Lookups {
    fn default() -> Self {
        Self::of(MAX_BYTES)
    }
}

/// The answers that are remembered for one member.
#[derive(Default)]
struct Shelf {
    answers: HashMap<StorePath, Known>,
    /// The paths in the order in which the answers came.
    order: BTreeMap<u64, StorePath>,
    bytes: u64,
}

struct Known {
    until: Instant,
    answer: Answer,
    place: u64,
    bytes: u64,
}

impl Lookups {
    /// With room for so many bytes.
    pub fn of(most: u64) -> Self {
        Self { members: HashMap::new(), bytes: 0, most, next: 0 }
    }

    /// Forgets everything, and remembers nothing from now on.
    pub fn close(&mut self) {
        *self = Self::of(0);
    }

    pub fn get(&self, member: &Member, path: &StorePath) -> Option<Answer> {
        let known = self.members.get(member)?.answers.get(path)?;
        (Instant::now() < known.until).then(|| known.answer.clone())
    }

    pub fn put(&mut self, member: &Member, path: &StorePath, answer: &Answer) {
        let holds = match answer {
            Answer::Offer(_) => FOUND,
            Answer::Refused(_) | Answer::Nowhere { trouble: None } => NOWHERE,
            // A source could not be asked. Its pause (`health`) remembers that.
            Answer::Nowhere { trouble: Some(_) } => return,
        };
        let bytes = ANSWER_BYTES
            + match answer {
                Answer::Offer(offer) => offer.memory(),
                Answer::Refused(why) => why.len() as u64,
                Answer::Nowhere { .. } => 0,
            };
        self.next += 1;
        let known = Known { until: Instant::now() + holds, answer: answer.clone(), place: self.next, bytes };
        let shelf = self.members.entry(member.clone()).or_default();
        self.bytes -= shelf.take(path);
        shelf.order.insert(known.place, path.clone());
        shelf.answers.insert(path.clone(), known);
        shelf.bytes += bytes;
        self.bytes += bytes;
        while self.bytes > self.most && self.make_room() {}
    }

    /// Forgets the oldest answer of the member with the most bytes.
    fn make_room(&mut self) -> bool {
        let Some(fullest) = self.members.values_mut().max_by_key(|shelf| shelf.bytes) else { return false };
        let Some((_, oldest)) = fullest.order.pop_first() else { return false };
        self.bytes -= fullest.take(&oldest);
        true
    }

    /// Forgets all answers about a path, after an offer that was wrong.
    pub fn forget(&mut self, path: &StorePath) {
        self.bytes -= self.members.values_mut().map(|shelf| shelf.take(path)).sum::<u64>();
    }
}

impl Shelf {
    /// Forgets this answer; returns the number of its bytes.
    fn take(&mut self, path: &StorePath) -> u64 {
        let Some(known) = self.answers.remove(path) else { return 0 };
        self.order.remove(&known.place);
        self.bytes -= known.bytes;
        known.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn path(n: u32) -> StorePath {
        let mut digest = [0; 20];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        StorePath::from_parts(digest, "x").expect("a path")
    }

    #[test]
    fn one_members_answers_are_not_anothers() {
        let mut lookups = Lookups::default();
        let (alice, bob) = (Member::new("alice"), Member::new("bob"));
        lookups.put(&alice, &path(1), &Answer::Nowhere { trouble: None });
        assert!(lookups.get(&alice, &path(1)).is_some());
        assert!(lookups.get(&bob, &path(1)).is_none());
        lookups.put(&alice, &path(2), &Answer::Nowhere { trouble: Some(Arc::from("down")) });
        assert!(lookups.get(&alice, &path(2)).is_none(), "trouble is not an answer");
        lookups.put(&alice, &path(1), &Answer::Nowhere { trouble: None });
        lookups.forget(&path(1));
        assert!(lookups.get(&alice, &path(1)).is_none());
        assert_eq!(lookups.bytes, 0);
    }

    #[test]
    fn who_has_the_most_remembered_makes_room() {
        let mut lookups = Lookups::default();
        let (alice, mallory) = (Member::new("alice"), Member::new("mallory"));
        lookups.put(&alice, &path(0), &Answer::Nowhere { trouble: None });
        let long: Arc<str> = "x".repeat(1 << 20).into();
        for n in 0..100 {
            lookups.put(&mallory, &path(n), &Answer::Refused(long.clone()));
        }
        assert!(lookups.get(&mallory, &path(0)).is_none() && lookups.get(&mallory, &path(99)).is_some());
        assert!(lookups.get(&alice, &path(0)).is_some(), "hers is the oldest, and stays");
        assert!(lookups.bytes <= MAX_BYTES);
    }
}
