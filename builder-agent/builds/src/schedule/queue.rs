//! Waiting for admission: the state machine of `admit` behind a lock, and a wake-up for each run that waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::admit::{Admission, Asked, Event, Full, Owner, RunId, Size, Start};

/// The queues of the box. One per scheduler.
pub(super) struct Queue {
    state: Mutex<State>,
    slots: usize,
    slot: Size,
}

#[derive(Default)]
struct State {
    admission: Admission,
    /// The receiver of each start.
    waiting: HashMap<RunId, oneshot::Sender<Start>>,
}

/// One run's place in the queues, and its slots once it has started. Dropping it leaves the queue or frees the slots.
pub(super) struct Turn {
    queue: Arc<Queue>,
    run: RunId,
    start: oneshot::Receiver<Start>,
}

impl Queue {
    /// For a box with so many slots of this size.
    pub fn new(slots: usize, slot: Size) -> Arc<Self> {
        let queue = Self { state: Mutex::default(), slots, slot };
        queue.hold(false);
        Arc::new(queue)
    }

    /// Starts no runs from now on, or starts them again.
    pub fn hold(&self, is_held: bool) {
        let slots = if is_held { 0 } else { self.slots };
        // Builds can be larger than a slot: else a few large ones could take more memory than the machine has.
        let most = self.slot.times(self.slots);
        self.lock().handle(Event::Box { slots, slot: self.slot, most });
    }

    /// A run that an earlier process has started. `alone`: it was asked for alone.
    pub fn goes_on(
        self: &Arc<Self>,
        run: RunId,
        owner: impl FnOnce() -> Owner,
        alone: bool,
        size: Size,
    ) -> Turn {
        // Its start is not waited for any more.
        let (_, start) = oneshot::channel();
        let mut state = self.lock();
        state.handle(Event::GoesOn { run, owner: owner(), alone, size });
        Turn { queue: self.clone(), run, start }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a run. `owner` returns the owner with the current terms. It is called with the queues locked, as in
    /// [`Queue::follow`], so that the latest answer stays.
    pub fn enter(
        self: &Arc<Self>,
        run: RunId,
        owner: impl FnOnce() -> Owner,
        asked: Asked,
        size: Size,
    ) -> Turn {
        let (tell, start) = oneshot::channel();
        let mut state = self.lock();
        state.waiting.insert(run, tell);
        state.handle(Event::Queued { run, owner: owner(), asked, size });
        Turn { queue: self.clone(), run, start }
    }

    /// Why this run has not started, and the member whose slot it waits for; `None` if it waits no more.
    pub fn kept_by(&self, run: RunId) -> Option<(Full, Arc<str>)> {
        let state = self.lock();
        state.admission.kept_by(run).zip(state.admission.charged_to(run).cloned())
    }

    /// Sets the terms and groups of every member who has runs here. If `owner` returns `None`, they stay.
    pub fn follow(&self, owner: impl Fn(&str) -> Option<Owner>) {
        let mut state = self.lock();
        let owners = state.admission.members().filter_map(|member| owner(member)).collect();
        state.handle(Event::Terms { owners });
    }
}

impl State {
    fn handle(&mut self, event: Event) {
        for start in self.admission.handle(event, Instant::now()) {
            if let Some(waits) = self.waiting.remove(&start.run) {
                // An error means that nobody waits for the start: the `Turn` is being dropped, which ends the run.
                let _ = waits.send(start);
            }
        }
    }
}

impl Turn {
    /// Waits until the run may start. The wait can be cancelled and repeated until it has returned a start.
    pub async fn start(&mut self) -> Option<Start> {
        (&mut self.start).await.ok()
    }

    /// Gives the run to another owner. Returns whether the run is charged, or will be, to that member.
    pub fn hand_over(&self, owner: impl FnOnce() -> Owner) -> bool {
        let mut state = self.queue.lock();
        let owner = owner();
        let member = owner.member.name.clone();
        state.handle(Event::HandedOver { run: self.run, owner });
        state.admission.charged_to(self.run) == Some(&member)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.waiting.remove(&self.run);
        state.handle(Event::Ended { run: self.run });
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::super::admit::{Class, Group, Terms};
    use super::*;

    const SIZE: Size = Size { vcpus: 1, memory_mib: 512 };

    fn alice(slots: usize) -> Owner {
        Owner::member(&"alice".into(), Terms::slots(slots))
    }

    fn enter(queue: &Arc<Queue>, run: RunId) -> Turn {
        queue.enter(run, || alice(4), Class::Interactive.into(), SIZE)
    }

    /// Whether the run may start now. Drops the wait, as `select!` does.
    fn starts(turn: &mut Turn) -> bool {
        let start = std::pin::pin!(turn.start());
        matches!(start.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Some(_)))
    }

    #[test]
    fn a_turn_that_is_dropped_gives_its_slot_to_the_next_and_a_wait_can_be_cancelled() {
        let queue = Queue::new(1, SIZE);
        let (mut first, mut second, mut third) = (enter(&queue, 1), enter(&queue, 2), enter(&queue, 3));
        assert!(starts(&mut first) && !starts(&mut second) && !starts(&mut third));
        drop(second);
        drop(first);
        assert!(starts(&mut third));
        // This run has started, but its task has not read that yet.
        let mut fourth = enter(&queue, 4);
        let fifth = enter(&queue, 5);
        drop((third, fifth));
        assert!(starts(&mut fourth));
        drop(fourth);
        assert!(starts(&mut enter(&queue, 6)) && queue.lock().waiting.is_empty());
    }

    #[test]
    fn slots_follow_the_roster() {
        let queue = Queue::new(8, SIZE);
        let mut turns: Vec<Turn> = (0..6).map(|run| enter(&queue, run)).collect();
        assert_eq!(turns.iter_mut().map(starts).filter(|starts| *starts).count(), 4);
        queue.follow(|member| (member == "alice").then(|| alice(5)));
        assert!(starts(&mut turns[4]) && !starts(&mut turns[5]));
        let groups = vec![Group { name: "ci".into(), slots: 5, most: Size::ALL }];
        queue.follow(|_| Some(Owner { groups: groups.clone(), ..alice(8) }));
        assert!(!starts(&mut turns[5]));
        queue.follow(|_| Some(alice(8)));
        assert!(starts(&mut turns[5]));
    }
}
