//! Admission: which runs may start, and when.
//!
//! A state machine: it takes events and returns starts. It has no task, no lock and no clock of its own, so a test can
//! simulate hours of a busy box in a millisecond, and `examples/simulate` days.
//!
//! The rules, from the outside in (`docs/design/scheduling.md` gives the reasons and the proofs):
//!
//! 1. A member's next run *may start* if its owner has a free slot: the key, the member, and each group of the member,
//!    and the member, the groups and the box also have the processors and the memory that the run takes. A free slot of the
//!    box never stays empty while a run may start, except where the box keeps its room for a member who would have been
//!    next and has been passed by for [`RESERVE`].
//! 2. The slot goes down the tree of owners (members, then keys), at each level to the one with the smallest weighted recent usage (`tree`).
//!    Usage is what runs took of the box, in time that counts less the longer ago it is (`decay`).
//! 3. Within a member interactive runs go before bulk, and bulk that waits for long takes turns; within a class first
//!    come, first served (`line`). Of the runs that a key asks for one by one, [`ALONE`] at a time are interactive.
//!
//! The number of slots can change at any time. More slots count at once. Fewer slots stop no run that has started. A run
//! that gets another owner while it waits goes to the end of the new owner's line. A run that gets another owner after
//! its start is charged to that owner from then on, but only if the owner has a free slot and has not used more than who
//! started it. Otherwise the charge stays: no member and no group has more runs than slots, no member gets rid of a charge,
//! and no run stops because another member is busy. A group counts the runs that are charged to its members.
//!
//! Numbers of runs do not matter for speed: an event costs at most a look at each owner that waits with a slot of its own, and at its
//! groups, and the logarithm of the length of a line.
//! Not here: who owns a run (`share`), and waiting itself (`queue`). This module is public for the simulator alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod decay;
mod line;
mod node;
mod owner;
mod tree;
mod usage;

pub use decay::HALF_LIFE;
pub use line::{ALONE, Asked, BULK_PATIENCE, Class};
pub use owner::{Group, Level, MAX_WEIGHT, Owner, Size, Terms};
pub use tree::RESERVE;
pub use usage::{ADVANCE, CREDIT, SHORTEST};

use tree::{Charge, Leaf, Tree};

/// Names a run on this box, also in logs.
pub type RunId = u64;

/// Something that can change who may start.
#[derive(Debug, Clone)]
pub enum Event {
    /// The box has so many slots from now on, each of this size, and all runs together take at most so much, or are one run
    /// that is larger. Before the first of these it has none.
    Box { slots: usize, slot: Size, most: Size },
    /// These are the terms and groups, from now on, of the owners who have runs here; the others are passed over. One
    /// event for all of them: nothing starts by half of a change.
    Terms { owners: Vec<Owner> },
    /// A new run for this owner, whose current terms are in it.
    Queued { run: RunId, owner: Owner, asked: Asked, size: Size },
    /// A run that an earlier process has started, for this owner. It has its slots whatever the limits are. `alone`: it is
    /// one that was asked for alone, as far as [`ALONE`] of them count.
    GoesOn { run: RunId, owner: Owner, alone: bool, size: Size },
    /// The run has another owner, whose current terms are in it.
    HandedOver { run: RunId, owner: Owner },
    /// The run is over, or is no longer wanted. Each run ends with exactly one of these.
    Ended { run: RunId },
}

/// What has no free slot for a run that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Full {
    Key,
    Member,
    /// Not the slots of the member, but the processors or the memory.
    MemberSize,
    Group(Arc<str>),
    /// Not the slots of the group, but its processors or its memory.
    Size(Arc<str>),
    /// The processors or the memory of the box: they are taken, or kept for a larger run.
    Room,
    Box,
}

/// A run may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub run: RunId,
    /// How long the run waited.
    pub waited: Duration,
}

/// All runs that wait or have started, and the recent usage of their owners.
#[derive(Debug, Default)]
pub struct Admission {
    slots: usize,
    slot: Size,
    started: usize,
    tree: Tree,
    runs: HashMap<RunId, Entry>,
    /// The interactive runs of each key that were asked for alone; none is in no list.
    alone: HashMap<Leaf, usize>,
}

#[derive(Debug)]
struct Entry {
    /// The member to whom the run is charged, or will be.
    member: Arc<str>,
    leaf: Leaf,
    class: Class,
    /// It counts in [`Admission::alone`].
    is_alone: bool,
    size: Size,
    queued: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// In the line of its owner, with this number.
    Waiting(u64),
    Started {
        at: Instant,
        charge: Charge,
    },
}

impl Admission {
    /// Takes in what happened at `now`. The runs that may start because of it are started from now on.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Start> {
        let now = self.tree.advance_to(now);
        match event {
            Event::Box { slots, slot, most } => {
                (self.slots, self.slot) = (slots, slot);
                self.tree.set_room(most);
            }
            Event::Terms { owners } => owners.iter().for_each(|owner| self.tree.update(owner, now)),
            Event::Queued { run, owner, asked, size } => {
                let leaf = self.tree.leaf_of(&owner, now);
                let (class, is_alone) = self.class_of(asked, leaf);
                let number = self.tree.enqueue(leaf, (run, size), class, now);
                let (member, stage) = (owner.member.name, Stage::Waiting(number));
                self.runs.insert(run, Entry { member, leaf, class, is_alone, size, queued: now, stage });
            }
            Event::GoesOn { run, owner, alone, size } => {
                let leaf = self.tree.leaf_of(&owner, now);
                // In which class a run waited is nothing once it has started.
                let asked = if alone { Asked::Alone } else { Class::default().into() };
                let (class, is_alone) = self.class_of(asked, leaf);
                let charge = self.tree.begin(leaf, size, size.of(self.slot), now);
                let (member, stage) = (owner.member.name, Stage::Started { at: now, charge });
                self.started += 1;
                self.runs.insert(run, Entry { member, leaf, class, is_alone, size, queued: now, stage });
            }
            Event::HandedOver { run, owner } => self.hand_over(run, owner, now),
            Event::Ended { run } => self.end(run, now),
        }
        self.start(now)
    }

    /// The member whose slot this run has, or waits for.
    #[must_use]
    pub fn charged_to(&self, run: RunId) -> Option<&Arc<str>> {
        self.runs.get(&run).map(|entry| &entry.member)
    }

    /// Why this run has not started: of what has no free slot for it, the nearest to its owner. `None`: it has started, or
    /// is unknown.
    #[must_use]
    pub fn kept_by(&self, run: RunId) -> Option<Full> {
        let entry = self.runs.get(&run)?;
        let waits = matches!(entry.stage, Stage::Waiting(_));
        let of_box = if self.started < self.slots { Full::Room } else { Full::Box };
        waits.then(|| self.tree.full(entry.leaf, entry.size).unwrap_or(of_box))
    }

    /// The members who have runs here.
    pub fn members(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tree.members()
    }

    /// The class of a run that comes now, and whether it counts as one of those that were asked for alone.
    fn class_of(&mut self, asked: Asked, leaf: Leaf) -> (Class, bool) {
        match asked {
            Asked::As(class) => (class, false),
            Asked::Alone if self.alone.get(&leaf).is_some_and(|count| *count >= ALONE) => {
                (Class::Bulk, false)
            }
            Asked::Alone => {
                *self.alone.entry(leaf).or_default() += 1;
                (Class::Interactive, true)
            }
        }
    }

    /// A run of this key that was asked for alone is over, or is another key's.
    fn not_alone(alone: &mut HashMap<Leaf, usize>, leaf: Leaf) {
        if let Some(count) = alone.get_mut(&leaf) {
            *count -= 1;
            if *count == 0 {
                alone.remove(&leaf);
            }
        }
    }

    fn hand_over(&mut self, run: RunId, owner: Owner, now: Instant) {
        let Some(entry) = self.runs.get_mut(&run) else { return };
        let leaf = self.tree.leaf_of(&owner, now);
        if leaf == entry.leaf {
            return;
        }
        match &mut entry.stage {
            Stage::Waiting(number) => {
                self.tree.leave(entry.leaf, entry.class, *number, now);
                *number = self.tree.enqueue(leaf, (run, entry.size), entry.class, now);
            }
            Stage::Started { charge, .. } => {
                if !self.tree.can_take(leaf, entry.leaf, entry.size, now) {
                    return;
                }
                self.tree.stop(charge, Duration::MAX, now);
                *charge = self.tree.begin(leaf, entry.size, entry.size.of(self.slot), now);
            }
        }
        if entry.is_alone {
            // Also beyond the number of the new key: the run has its class.
            Self::not_alone(&mut self.alone, entry.leaf);
            *self.alone.entry(leaf).or_default() += 1;
        }
        entry.leaf = leaf;
        entry.member = owner.member.name;
    }

    fn end(&mut self, run: RunId, now: Instant) {
        let Some(entry) = self.runs.remove(&run) else { return };
        if entry.is_alone {
            Self::not_alone(&mut self.alone, entry.leaf);
        }
        match entry.stage {
            Stage::Waiting(number) => self.tree.leave(entry.leaf, entry.class, number, now),
            Stage::Started { at, charge } => {
                self.started -= 1;
                self.tree.stop(&charge, now.saturating_duration_since(at), now);
            }
        }
    }

    /// Gives free slots of the box to those who are next.
    fn start(&mut self, now: Instant) -> Vec<Start> {
        let mut starts = Vec::new();
        while self.started < self.slots
            && let Some((leaf, run)) = self.tree.next(now)
        {
            let Some(entry) = self.runs.get_mut(&run) else { continue };
            let charge = self.tree.begin(leaf, entry.size, entry.size.of(self.slot), now);
            entry.stage = Stage::Started { at: now, charge };
            self.started += 1;
            starts.push(Start { run, waited: now.saturating_duration_since(entry.queued) });
        }
        starts
    }
}

#[cfg(test)]
#[path = "admit_test.rs"]
mod admit_test;
#[cfg(test)]
#[path = "admit/promises_test.rs"]
mod promises_test;
#[cfg(test)]
#[path = "admit/rules_test.rs"]
mod rules_test;
