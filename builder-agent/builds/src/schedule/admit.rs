//! Admission: which runs may start, when, and how large.
//!
//! A state machine: it takes events and returns starts. It has no task, no lock and no clock of its own, so a test can
//! simulate hours of a busy box in a millisecond.
//!
//! A run waits twice. First it waits for a slot of its member; then it keeps that slot and waits for a slot of the box.
//! Both queues are first come, first served. So a member with many builds waits in that member's own queue, and does
//! not fill the head of the box's queue. A run is *charged* to a member from the first slot on.
//!
//! The number of slots can change at any time. More slots count at once. Fewer slots stop no run that has started; runs that
//! have not started give their slots back, the last first. A run that gets another owner while it waits goes to the end of
//! the new owner's queue. A run that gets another owner after its start is charged to that owner only if a slot is free;
//! otherwise the charge stays: no member has more runs than slots, and no run stops because another member is busy.
//!
//! Every run gets the envelope that it asks for. Not here: who owns a run (`share`), and waiting itself (`queue`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Envelope;

/// Names a run on this box, also in logs.
pub(super) type RunId = u64;

/// Something that can change who may start.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The box has so many slots from now on. Before the first of these it has none.
    BoxSlots(usize),
    /// This member has so many slots from now on.
    MemberSlots { member: Arc<str>, slots: usize },
    /// A new run for this member, who has so many slots now.
    Queued { run: RunId, member: Arc<str>, slots: usize, size: Envelope },
    /// The run has another owner, who has so many slots now.
    HandedOver { run: RunId, member: Arc<str>, slots: usize },
    /// The run is over, or is no longer wanted. Each run ends with exactly one of these.
    Ended { run: RunId },
}

/// A run may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub run: RunId,
    /// How large the run may be.
    pub size: Envelope,
    /// How long the run waited.
    pub waited: Duration,
}

/// All runs that wait or have started.
#[derive(Debug, Default)]
pub(super) struct Admission {
    slots: usize,
    started: usize,
    /// Runs with a slot of their member, in the order in which they got it.
    ready: VecDeque<RunId>,
    /// Members without runs are not listed.
    members: HashMap<Arc<str>, Account>,
    runs: HashMap<RunId, Entry>,
}

/// One member's slots.
#[derive(Debug, Default)]
struct Account {
    slots: usize,
    /// Runs that have one: ready or started.
    charged: usize,
    /// Runs without one, in the order in which they came.
    waiting: VecDeque<RunId>,
}

#[derive(Debug)]
struct Entry {
    /// The member to whom the run is charged, or will be.
    member: Arc<str>,
    size: Envelope,
    queued: Instant,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In its member's queue.
    Waiting,
    /// In the box's queue.
    Ready,
    Started,
}

impl Admission {
    /// Takes in what happened at `now`. The runs that may start because of it are started from now on.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Start> {
        match event {
            Event::BoxSlots(slots) => self.slots = slots,
            Event::MemberSlots { member, slots } => {
                self.set_slots(&member, slots);
                self.forget_if_idle(&member);
            }
            Event::Queued { run, member, slots, size } => {
                let entry = Entry { member: member.clone(), size, queued: now, stage: Stage::Waiting };
                self.runs.insert(run, entry);
                self.enqueue(run, &member, slots);
            }
            Event::HandedOver { run, member, slots } => self.hand_over(run, &member, slots),
            Event::Ended { run } => {
                if let Some(entry) = self.runs.remove(&run) {
                    self.take_out(run, &entry.member, entry.stage);
                }
            }
        }
        self.start(now)
    }

    /// The member whose slot this run has, or waits for.
    pub fn charged_to(&self, run: RunId) -> Option<&Arc<str>> {
        self.runs.get(&run).map(|entry| &entry.member)
    }

    /// The members who have runs here.
    pub fn members(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.keys()
    }

    /// Puts a run at the end of this member's queue.
    fn enqueue(&mut self, run: RunId, member: &Arc<str>, slots: usize) {
        self.account(member).waiting.push_back(run);
        self.set_slots(member, slots);
    }

    fn account(&mut self, member: &Arc<str>) -> &mut Account {
        self.members.entry(member.clone()).or_default()
    }

    /// Gives this member's free slots to the first of the member's queue; takes slots that there are no more from the last
    /// that have not started.
    fn set_slots(&mut self, member: &Arc<str>, slots: usize) {
        let account = self.members.entry(member.clone()).or_default();
        account.slots = slots;
        while account.charged < slots
            && let Some(run) = account.waiting.pop_front()
        {
            account.charged += 1;
            self.ready.push_back(run);
            set_stage(&mut self.runs, run, Stage::Ready);
        }
        let is_theirs = |run: &RunId| self.runs.get(run).is_some_and(|entry| entry.member == *member);
        let mut returned = Vec::new();
        while account.charged > slots
            && let Some(at) = self.ready.iter().rposition(is_theirs)
        {
            account.charged -= 1;
            returned.extend(self.ready.remove(at));
        }
        for run in returned {
            account.waiting.push_front(run);
            set_stage(&mut self.runs, run, Stage::Waiting);
        }
    }

    fn hand_over(&mut self, run: RunId, member: &Arc<str>, slots: usize) {
        let Some(entry) = self.runs.get(&run) else { return };
        let (from, stage) = (entry.member.clone(), entry.stage);
        if from == *member {
            return;
        }
        if stage == Stage::Started {
            self.set_slots(member, slots);
            let account = self.account(member);
            if account.charged < account.slots {
                account.charged += 1;
                self.set_member(run, member);
                self.release(&from);
            }
            self.forget_if_idle(member);
            return;
        }
        self.take_out(run, &from, stage);
        self.set_member(run, member);
        set_stage(&mut self.runs, run, Stage::Waiting);
        self.enqueue(run, member, slots);
    }

    fn set_member(&mut self, run: RunId, member: &Arc<str>) {
        if let Some(entry) = self.runs.get_mut(&run) {
            entry.member = member.clone();
        }
    }

    /// Takes a run out of the queue it is in, and frees the slots it has.
    fn take_out(&mut self, run: RunId, member: &Arc<str>, stage: Stage) {
        match stage {
            Stage::Waiting => {
                self.account(member).waiting.retain(|waiting| *waiting != run);
                self.forget_if_idle(member);
            }
            Stage::Ready => {
                self.ready.retain(|ready| *ready != run);
                self.release(member);
            }
            Stage::Started => {
                self.started -= 1;
                self.release(member);
            }
        }
    }

    /// One slot of this member is free again.
    fn release(&mut self, member: &Arc<str>) {
        let account = self.account(member);
        account.charged -= 1;
        let slots = account.slots;
        self.set_slots(member, slots);
        self.forget_if_idle(member);
    }

    fn forget_if_idle(&mut self, member: &Arc<str>) {
        if self.members.get(member).is_some_and(|account| account.charged == 0 && account.waiting.is_empty())
        {
            self.members.remove(member);
        }
    }

    /// Gives free slots of the box to the first that are ready.
    fn start(&mut self, now: Instant) -> Vec<Start> {
        let mut starts = Vec::new();
        while self.started < self.slots
            && let Some(run) = self.ready.pop_front()
        {
            let Some(entry) = self.runs.get_mut(&run) else { continue };
            entry.stage = Stage::Started;
            self.started += 1;
            let waited = now.saturating_duration_since(entry.queued);
            starts.push(Start { run, size: entry.size, waited });
        }
        starts
    }
}

fn set_stage(runs: &mut HashMap<RunId, Entry>, run: RunId, stage: Stage) {
    if let Some(entry) = runs.get_mut(&run) {
        entry.stage = stage;
    }
}

#[cfg(test)]
#[path = "admit_test.rs"]
mod admit_test;
