//! Waiting for admission: the state machine of `admit` behind a lock, and a wake-up for each run that waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::admit::{Admission, Event, RunId, Start};
use crate::Envelope;

/// The queues of the box. One per scheduler.
pub(super) struct Queue {
    state: Mutex<State>,
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
    pub fn new(slots: usize) -> Arc<Self> {
        let queue = Self { state: Mutex::default() };
        queue.lock().handle(Event::BoxSlots(slots));
        Arc::new(queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a run. `slots` returns the member's number of slots. It is called with the queues locked, as in
    /// [`Queue::follow`], so that the latest answer stays.
    pub fn enter(
        self: &Arc<Self>,
        run: RunId,
        member: &Arc<str>,
        slots: impl FnOnce() -> usize,
        size: Envelope,
    ) -> Turn {
        let (tell, start) = oneshot::channel();
        let mut state = self.lock();
        state.waiting.insert(run, tell);
        state.handle(Event::Queued { run, member: member.clone(), slots: slots(), size });
        Turn { queue: self.clone(), run, start }
    }

    /// Sets the number of slots of every member who has runs here. If `slots` returns `None`, the number stays.
    pub fn follow(&self, slots: impl Fn(&str) -> Option<usize>) {
        let mut state = self.lock();
        let members: Vec<Arc<str>> = state.admission.members().cloned().collect();
        for member in members {
            if let Some(slots) = slots(&member) {
                state.handle(Event::MemberSlots { member, slots });
            }
        }
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
    pub fn hand_over(&self, member: &Arc<str>, slots: impl FnOnce() -> usize) -> bool {
        let mut state = self.queue.lock();
        state.handle(Event::HandedOver { run: self.run, member: member.clone(), slots: slots() });
        state.admission.charged_to(self.run) == Some(member)
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

    use super::*;

    const SIZE: Envelope = Envelope { vcpus: 1, memory_mib: 512, processes: 99, of_box: true };

    fn enter(queue: &Arc<Queue>, run: RunId) -> Turn {
        queue.enter(run, &"alice".into(), || 4, SIZE)
    }

    /// Whether the run may start now. Drops the wait, as `select!` does.
    fn starts(turn: &mut Turn) -> bool {
        let start = std::pin::pin!(turn.start());
        matches!(start.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Some(_)))
    }

    #[test]
    fn a_turn_that_is_dropped_gives_its_slot_to_the_next_and_a_wait_can_be_cancelled() {
        let queue = Queue::new(1);
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
        let queue = Queue::new(8);
        let mut turns: Vec<Turn> = (0..6).map(|run| enter(&queue, run)).collect();
        assert_eq!(turns.iter_mut().map(starts).filter(|starts| *starts).count(), 4);
        queue.follow(|member| (member == "alice").then_some(5));
        assert!(starts(&mut turns[4]) && !starts(&mut turns[5]));
    }
}
