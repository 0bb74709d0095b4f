//! Answers of sources, remembered for a while.
//!
//! Kept per member: how fast an answer comes must not tell one member what another asked for. Bounded; what is
//! forgotten is asked again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use store::Member;

use super::Answer;

/// Answers kept. One with its references takes about a kilobyte.
const MAX: usize = 50_000;
/// How long an offer holds. Caches delete rarely, and a file that is gone is noticed.
const FOUND: Duration = Duration::from_secs(3600);
/// How long "nowhere" holds: somebody may be about to push it.
const NOWHERE: Duration = Duration::from_secs(60);

type Key = (Member, StorePath);

#[derive(Default)]
pub struct Lookups {
    answers: HashMap<Key, (Instant, Answer)>,
    /// In the order in which they came.
    order: VecDeque<Key>,
}

impl Lookups {
    pub fn get(&self, member: &Member, path: &StorePath) -> Option<Answer> {
        let (until, answer) = self.answers.get(&(member.clone(), path.clone()))?;
        (Instant::now() < *until).then(|| answer.clone())
    }

    pub fn put(&mut self, member: &Member, path: &StorePath, answer: &Answer) {
        let holds = match answer {
            Answer::Offer(_) => FOUND,
            Answer::Refused(_) | Answer::Nowhere { trouble: None } => NOWHERE,
            // A source was not heard; that is for its own pause to remember.
            Answer::Nowhere { trouble: Some(_) } => return,
        };
        let key = (member.clone(), path.clone());
        if self.answers.insert(key.clone(), (Instant::now() + holds, answer.clone())).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }

    /// After an offer that turned out to be wrong.
    pub fn forget(&mut self, path: &StorePath) {
        self.answers.retain(|(_, known), _| known != path);
        self.order.retain(|(_, known)| known != path);
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
        lookups.forget(&path(1));
        assert!(lookups.get(&alice, &path(1)).is_none() && lookups.order.is_empty());
    }

    #[test]
    fn old_answers_make_room() {
        let mut lookups = Lookups::default();
        let alice = Member::new("alice");
        for n in 0..=MAX as u32 {
            lookups.put(&alice, &path(n), &Answer::Nowhere { trouble: None });
        }
        assert!(lookups.get(&alice, &path(0)).is_none());
        assert!(lookups.get(&alice, &path(MAX as u32)).is_some());
        assert_eq!((lookups.answers.len(), lookups.order.len()), (MAX, MAX));
    }
}
