//! How many builds each member runs at once.
//!
//! The number is the roster's and can change at any time. There is one set of slots per member for as long as the member
//! is in the roster: were a changed number a new set, whoever is asked for by two numbers in turn would have a set for
//! each. More takes effect at once; less, as builds end. Not here: the box's own slots (`scheduler`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Default)]
pub(super) struct MemberSlots {
    members: Mutex<HashMap<Arc<str>, Arc<Slots>>>,
}

/// Those of one member.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    /// How many there are.
    count: u32,
    /// How many of those that are taken must not come back.
    excess: u32,
}

/// One that is taken. Dropping it frees it.
pub(super) struct Slot {
    of: Arc<Slots>,
    permit: Option<OwnedSemaphorePermit>,
}

impl MemberSlots {
    /// This member's, of whom there are so many from now on.
    pub fn of(&self, member: &Arc<str>, count: u32) -> Arc<Slots> {
        let slots = lock(&self.members).entry(member.clone()).or_insert_with(|| Slots::new(count)).clone();
        slots.set(count);
        slots
    }

    /// Every member has as many as `count` says from now on; whoever has none any more is forgotten.
    pub fn follow(&self, count: impl Fn(&str) -> Option<u32>) {
        lock(&self.members).retain(|member, slots| match count(member) {
            Some(count) => {
                slots.set(count);
                true
            }
            None => false,
        });
    }
}

impl Slots {
    fn new(count: u32) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(count as usize));
        Arc::new(Self { free, state: Mutex::new(State { count, excess: 0 }) })
    }

    fn set(&self, count: u32) {
        let mut state = lock(&self.state);
        let more = count.saturating_sub(state.count);
        let kept = more.min(state.excess);
        self.free.add_permits((more - kept) as usize);
        let less = state.count.saturating_sub(count);
        let forgotten = self.free.forget_permits(less as usize) as u32;
        state.excess = state.excess - kept + (less - forgotten);
        state.count = count;
    }

    /// Waits for one, in the order in which they were asked for.
    pub async fn take(self: &Arc<Self>) -> Option<Slot> {
        let permit = self.free.clone().acquire_owned().await.ok()?;
        Some(Slot { of: self.clone(), permit: Some(permit) })
    }

    pub fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Slot { of: self.clone(), permit: Some(permit) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.of.state);
        match self.permit.take() {
            Some(permit) if state.excess > 0 => {
                state.excess -= 1;
                permit.forget();
            }
            permit => drop(permit),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// What is there without waiting.
    fn now<T>(future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn taken(slots: &Arc<Slots>) -> Vec<Slot> {
        std::iter::from_fn(|| slots.try_take()).collect()
    }

    #[test]
    fn who_is_asked_for_by_two_numbers_in_turn_has_the_slots_of_the_last_and_not_of_both() {
        let (members, alice) = (MemberSlots::default(), "alice".into());
        let mut all = taken(&members.of(&alice, 2));
        for count in [3, 2, 3, 2] {
            all.extend(taken(&members.of(&alice, count)));
            assert!(all.len() <= 3, "{} builds run", all.len());
        }
        assert_eq!(all.len(), 3);
        all.pop();
        assert!(members.of(&alice, 2).try_take().is_none(), "two run, and there are two");
        all.pop();
        assert!(members.of(&alice, 2).try_take().is_some());
    }

    #[test]
    fn more_slots_are_there_at_once_and_fewer_as_builds_end() {
        let (members, alice) = (MemberSlots::default(), "alice".into());
        let slots = members.of(&alice, 1);
        let first = slots.try_take().expect("a slot");
        let mut waiting = Box::pin(slots.take());
        assert!(now(waiting.as_mut()).is_none());
        members.follow(|_| Some(2));
        let second = now(waiting.as_mut()).flatten().expect("a slot of the new number");
        members.follow(|_| Some(1));
        drop(first);
        assert!(slots.try_take().is_none(), "one runs, and there is one");
        drop(second);
        assert!(slots.try_take().is_some());
    }

    #[test]
    fn who_left_is_forgotten() {
        let (members, alice) = (MemberSlots::default(), "alice".into());
        let _slots = members.of(&alice, 1);
        members.follow(|_| None);
        assert!(lock(&members.members).is_empty());
    }
}
