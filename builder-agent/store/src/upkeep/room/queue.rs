//! Uploads that wait for room, without a thread: who is next when there is some again.
//!
//! Whoever was given the least since the queue began is next, so a member with many uploads waits no less than one with a
//! single upload. What does not fit waits; a smaller piece of somebody else may go on meanwhile.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::Waker;
use std::time::Instant;

use crate::types::Member;

/// The end of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Room,
    /// Nothing more can be evicted, or it took too long.
    Full,
}

struct Waiting {
    payer: Member,
    bytes: u64,
    /// Objects; each is a file.
    files: u64,
    deadline: Instant,
    /// It is refused when so many rounds have ended without any effect.
    until_idle: u64,
    answer: Option<Answer>,
    waker: Waker,
}

/// All uploads that wait.
#[derive(Default)]
pub(super) struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Bytes that each payer was given since the queue was empty.
    given: HashMap<Member, u64>,
}

impl Queue {
    /// Waits for room for so many bytes in so many files. Returns the number for [`Queue::answer`] and [`Queue::remove`].
    pub(super) fn add(
        &mut self,
        payer: &Member,
        (bytes, files): (u64, u64),
        (deadline, until_idle): (Instant, u64),
        waker: Waker,
    ) -> u64 {
        self.next += 1;
        let payer = payer.clone();
        let waiting = Waiting { payer, bytes, files, deadline, until_idle, answer: None, waker };
        self.waiting.insert(self.next, waiting);
        self.next
    }

    /// The answer, if there is one; else `waker` is woken when there is.
    pub(super) fn answer(&mut self, id: u64, waker: &Waker) -> Option<Answer> {
        let waiting = self.waiting.get_mut(&id)?;
        if waiting.answer.is_none() {
            waiting.waker.clone_from(waker);
        }
        waiting.answer
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.waiting.remove(&id);
        if self.waiting.is_empty() {
            self.given.clear();
        }
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.values().all(|waiting| waiting.answer.is_some())
    }

    /// Bytes and files that all who wait want together.
    pub(super) fn wanted(&self) -> (u64, u64) {
        let open = self.waiting.values().filter(|waiting| waiting.answer.is_none());
        open.fold((0, 0), |(bytes, files), waiting| {
            (bytes.saturating_add(waiting.bytes), files.saturating_add(waiting.files))
        })
    }

    /// Answers those who have room now, and those who have waited long enough. `fits` says whether there is room for so many
    /// bytes and files. Returns whom to wake.
    pub(super) fn serve(
        &mut self,
        now: Instant,
        idle_rounds: u64,
        fits: impl Fn(u64, u64) -> bool,
    ) -> Vec<Waker> {
        let (mut bytes, mut files, mut wake) = (0_u64, 0, Vec::new());
        let mut next_of: HashMap<Member, VecDeque<u64>> = HashMap::new();
        for (id, waiting) in self.waiting.iter().filter(|(_, waiting)| waiting.answer.is_none()) {
            next_of.entry(waiting.payer.clone()).or_default().push_back(*id);
        }
        loop {
            let given = |payer: &Member| self.given.get(payer).copied().unwrap_or_default();
            let first = |ids: &VecDeque<u64>| ids.front().copied().unwrap_or(u64::MAX);
            let next = next_of.iter().min_by_key(|(payer, ids)| (given(payer), first(ids)));
            let Some((payer, id)) = next.map(|(payer, ids)| (payer.clone(), first(ids))) else { break };
            let fit = self
                .waiting
                .get_mut(&id)
                .filter(|waiting| fits(bytes.saturating_add(waiting.bytes), files + waiting.files));
            let Some(waiting) = fit else {
                next_of.remove(&payer);
                continue;
            };
            (bytes, files) = (bytes + waiting.bytes, files + waiting.files);
            waiting.answer = Some(Answer::Room);
            wake.push(waiting.waker.clone());
            *self.given.entry(payer.clone()).or_default() += waiting.bytes;
            let is_last =
                next_of.get_mut(&payer).is_none_or(|ids| ids.pop_front().is_none() || ids.is_empty());
            if is_last {
                next_of.remove(&payer);
            }
        }
        let over = |waiting: &&mut Waiting| {
            waiting.answer.is_none() && (now >= waiting.deadline || idle_rounds >= waiting.until_idle)
        };
        for waiting in self.waiting.values_mut().filter(over) {
            waiting.answer = Some(Answer::Full);
            wake.push(waiting.waker.clone());
        }
        wake
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn queue(waiting: &[(&str, u64)]) -> (Queue, Vec<u64>, Instant) {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let limits = (now + Duration::from_secs(60), 2);
        let add = |(payer, bytes): &(&str, u64)| {
            queue.add(&Member::new(payer), (*bytes, 1), limits, Waker::noop().clone())
        };
        let ids = waiting.iter().map(add).collect();
        (queue, ids, now)
    }

    fn answers(queue: &mut Queue, ids: &[u64]) -> Vec<Option<Answer>> {
        ids.iter().map(|id| queue.answer(*id, Waker::noop())).collect()
    }

    const ROOM: Option<Answer> = Some(Answer::Room);

    #[test]
    fn many_objects_of_one_upload_need_as_many_files() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let limits = (now + Duration::from_secs(60), 2);
        let mut add = |name, files| queue.add(&Member::new(name), (1, files), limits, Waker::noop().clone());
        let ids = [add("mallory", 400), add("bob", 1)];
        assert_eq!(queue.wanted(), (2, 401));
        queue.serve(now, 0, |_, files| files <= 100);
        assert_eq!(answers(&mut queue, &ids), [None, ROOM]);
    }

    #[test]
    fn a_member_with_many_uploads_is_given_no_more_than_one_with_a_single_upload() {
        let (mut queue, ids, now) = queue(&[("mallory", 10), ("mallory", 10), ("mallory", 10), ("bob", 10)]);
        assert_eq!(queue.wanted(), (40, 4));
        assert_eq!(queue.serve(now, 0, |bytes, _| bytes <= 20).len(), 2);
        assert_eq!(answers(&mut queue, &ids), [ROOM, None, None, ROOM]);
        // The next one of bob's comes before the others of mallory's, too.
        let next = queue.add(&Member::new("bob"), (5, 1), (now, 2), Waker::noop().clone());
        queue.serve(now - Duration::from_secs(1), 0, |bytes, _| bytes <= 10);
        assert_eq!(answers(&mut queue, &[ids[1], ids[2], next]), [ROOM, None, None], "as much as bob");
        queue.serve(now - Duration::from_secs(1), 0, |bytes, _| bytes <= 5);
        assert_eq!(answers(&mut queue, &[ids[2], next]), [None, ROOM]);
    }

    #[test]
    fn what_does_not_fit_holds_up_nobody_else_and_files_count_too() {
        let (mut queue, ids, now) = queue(&[("alice", 100), ("bob", 10), ("carol", 10)]);
        queue.serve(now, 0, |bytes, files| bytes <= 50 && files <= 1);
        assert_eq!(answers(&mut queue, &ids), [None, ROOM, None]);
        queue.remove(ids[1]);
        queue.remove(ids[0]);
        assert_eq!(queue.wanted(), (10, 1), "whoever has gone wants nothing");
    }

    #[test]
    fn nobody_waits_beyond_the_deadline_or_when_rounds_have_no_effect() {
        let (mut queue, ids, now) = queue(&[("alice", 100)]);
        assert!(queue.serve(now, 1, |_, _| false).is_empty());
        assert_eq!(queue.serve(now, 2, |_, _| false).len(), 1);
        assert_eq!(answers(&mut queue, &ids), [Some(Answer::Full)]);
        assert!(queue.is_empty());
        let late = queue.add(&Member::new("alice"), (1, 1), (now, 9), Waker::noop().clone());
        queue.serve(now, 2, |_, _| false);
        assert_eq!(answers(&mut queue, &[late]), [Some(Answer::Full)]);
    }
}
