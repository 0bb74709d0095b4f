use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NONE: [RunId; 0] = [];
const SMALL: Envelope = Envelope { vcpus: 1, memory_mib: 512, processes: 99, of_box: false };

/// A box with a clock that the test advances.
struct Scene {
    admission: Admission,
    now: Instant,
}

impl Scene {
    fn with_slots(slots: usize) -> Self {
        let mut new = Self { admission: Admission::default(), now: Instant::now() };
        assert_eq!(new.happens(Event::BoxSlots(slots)), NONE);
        new
    }

    /// Handles an event. Returns the runs that start.
    fn happens(&mut self, event: Event) -> Vec<RunId> {
        self.admission.handle(event, self.now).into_iter().map(|start| start.run).collect()
    }

    fn queued(&mut self, run: RunId, member: &str, slots: usize) -> Vec<RunId> {
        self.happens(Event::Queued { run, member: member.into(), slots, size: SMALL })
    }

    fn handed_over(&mut self, run: RunId, member: &str, slots: usize) -> Vec<RunId> {
        self.happens(Event::HandedOver { run, member: member.into(), slots })
    }

    fn has(&mut self, member: &str, slots: usize) -> Vec<RunId> {
        self.happens(Event::MemberSlots { member: member.into(), slots })
    }

    fn ended(&mut self, run: RunId) -> Vec<RunId> {
        self.happens(Event::Ended { run })
    }

    fn charged_to(&self, run: RunId) -> &str {
        self.admission.charged_to(run).expect("it is there")
    }
}

#[test]
fn a_start_says_how_large_it_is_and_how_long_it_waited() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 4), [1]);
    scene.now += Duration::from_secs(3);
    assert_eq!(scene.queued(2, "alice", 4), NONE);
    scene.now += Duration::from_secs(7200);
    let start = scene.admission.handle(Event::Ended { run: 1 }, scene.now);
    assert_eq!(start, [Start { run: 2, size: SMALL, waited: Duration::from_secs(7200) }]);
}

#[test]
fn a_member_with_many_builds_waits_in_a_queue_of_that_member_and_not_at_the_head_of_all() {
    let mut scene = Scene::with_slots(2);
    assert_eq!(scene.queued(1, "alice", 1), [1]);
    (2..10).for_each(|run| assert_eq!(scene.queued(run, "alice", 1), NONE));
    assert_eq!(scene.queued(10, "bob", 4), [10]);
    assert_eq!(scene.queued(11, "bob", 4), NONE);
    assert_eq!(scene.queued(12, "carol", 4), NONE);
    // Alice's second run gets her slot when her first ends; those of bob and carol have waited longer for the box.
    assert_eq!(scene.ended(1), [11]);
    assert_eq!(scene.ended(10), [12]);
    assert_eq!(scene.ended(12), [2]);
}

#[test]
fn more_slots_count_at_once_and_fewer_as_builds_end() {
    let mut scene = Scene::with_slots(8);
    assert_eq!(scene.queued(1, "alice", 1), [1]);
    (2..6).for_each(|run| assert_eq!(scene.queued(run, "alice", 1), NONE));
    assert_eq!(scene.has("alice", 3), [2, 3]);
    assert_eq!(scene.has("alice", 1), NONE);
    assert_eq!(scene.ended(2), NONE);
    assert_eq!(scene.ended(1), NONE);
    assert_eq!(scene.ended(3), [4]);
}

/// A member has two connections, one of which logged in before the limit was changed. The two limits do not add up.
#[test]
fn a_member_who_is_queued_with_two_numbers_in_turn_has_the_slots_of_the_last() {
    let mut scene = Scene::with_slots(64);
    let started: Vec<RunId> =
        (0..20).flat_map(|run| scene.queued(run, "alice", 2 + run as usize % 2)).collect();
    assert_eq!(started, [0, 1, 2]);
    assert_eq!(scene.has("alice", 2), NONE);
    assert_eq!(scene.ended(0), NONE);
    assert_eq!(scene.ended(1), [3]);
}

#[test]
fn fewer_slots_also_hold_for_runs_that_wait_for_the_box() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 4), [1]);
    (2..5).for_each(|run| assert_eq!(scene.queued(run, "alice", 4), NONE));
    assert_eq!(scene.has("alice", 1), NONE);
    assert_eq!(scene.happens(Event::BoxSlots(8)), NONE);
    // The runs still start in the order in which they came.
    assert_eq!(scene.ended(1), [2]);
    assert_eq!(scene.has("alice", 4), [3, 4]);
}

#[test]
fn a_run_that_is_handed_over_while_it_waits_waits_among_the_runs_of_its_new_owner() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 1), [1]);
    assert_eq!(scene.queued(2, "alice", 1), NONE);
    assert_eq!(scene.queued(3, "bob", 1), NONE);
    assert_eq!(scene.handed_over(2, "bob", 1), NONE);
    assert_eq!(scene.charged_to(2), "bob");
    assert_eq!(scene.ended(1), [3]);
    assert_eq!(scene.ended(3), [2]);
    // Run 4 has a slot of its member and waits for the box.
    assert_eq!(scene.queued(4, "alice", 1), NONE);
    assert_eq!(scene.queued(5, "alice", 1), NONE);
    assert_eq!(scene.handed_over(4, "carol", 1), NONE);
    assert_eq!(scene.ended(2), [5]);
    assert_eq!(scene.ended(5), [4]);
}

#[test]
fn a_run_that_is_handed_over_to_another_request_of_its_member_keeps_its_place() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 1), [1]);
    assert_eq!(scene.queued(2, "alice", 1), NONE);
    assert_eq!(scene.queued(3, "alice", 1), NONE);
    assert_eq!(scene.handed_over(2, "alice", 1), NONE);
    assert_eq!(scene.ended(1), [2]);
}

#[test]
fn a_build_is_charged_to_its_new_owner_only_if_a_slot_is_free() {
    let mut scene = Scene::with_slots(8);
    assert_eq!(scene.queued(1, "alice", 1), [1]);
    assert_eq!(scene.queued(2, "alice", 1), NONE);
    assert_eq!(scene.queued(3, "bob", 1), [3]);
    assert_eq!(scene.handed_over(1, "bob", 1), NONE);
    assert_eq!(scene.charged_to(1), "alice");
    // Carol now has a run, and alice's slot is free again.
    assert_eq!(scene.handed_over(1, "carol", 1), [2]);
    assert_eq!(scene.charged_to(1), "carol");
    assert_eq!(scene.queued(4, "carol", 1), NONE);
    assert_eq!(scene.ended(1), [4]);
}

#[test]
fn members_without_runs_are_forgotten() {
    let mut scene = Scene::with_slots(1);
    scene.has("nobody", 3);
    scene.queued(1, "alice", 1);
    scene.queued(2, "alice", 1);
    scene.queued(3, "bob", 1);
    scene.handed_over(1, "carol", 1);
    scene.handed_over(3, "carol", 1);
    assert_eq!(scene.admission.members().count(), 2);
    (1..4).for_each(|run| drop(scene.ended(run)));
    assert_eq!(scene.admission.members().count(), 0);
    assert!(scene.admission.runs.is_empty() && scene.admission.ready.is_empty());
    assert_eq!(scene.admission.started, 0);
}

/// The rules again, in the simplest form: lists, which are searched for every decision.
#[derive(Default)]
struct Rules {
    of_box: usize,
    of_member: BTreeMap<Arc<str>, usize>,
    /// Runs without a slot of their member.
    waiting: Vec<(RunId, Arc<str>)>,
    /// Runs with such a slot, in the order in which they got it.
    ready: Vec<(RunId, Arc<str>)>,
    started: Vec<(RunId, Arc<str>)>,
}

impl Rules {
    fn has_free(&self, member: &Arc<str>) -> bool {
        let charged = self.ready.iter().chain(&self.started).filter(|(_, who)| who == member).count();
        charged < self.of_member.get(member).copied().unwrap_or(0)
    }

    fn known(&self, member: &Arc<str>) -> bool {
        self.waiting.iter().chain(&self.ready).chain(&self.started).any(|(_, who)| who == member)
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::BoxSlots(slots) => self.of_box = *slots,
            Event::MemberSlots { member, slots } => drop(self.of_member.insert(member.clone(), *slots)),
            Event::Queued { run, member, slots, .. } => {
                self.of_member.insert(member.clone(), *slots);
                self.waiting.push((*run, member.clone()));
            }
            Event::HandedOver { run, member, slots } => self.hand_over(*run, member, *slots),
            Event::Ended { run } => {
                for list in [&mut self.waiting, &mut self.ready, &mut self.started] {
                    list.retain(|(there, _)| there != run);
                }
            }
        }
    }

    fn hand_over(&mut self, run: RunId, member: &Arc<str>, slots: usize) {
        let waits =
            |list: &[(RunId, Arc<str>)]| list.iter().any(|(there, who)| *there == run && who != member);
        if waits(&self.waiting) || waits(&self.ready) {
            self.apply(&Event::Ended { run });
            self.ready_up();
            self.of_member.insert(member.clone(), slots);
            self.waiting.push((run, member.clone()));
        } else if waits(&self.started) {
            self.of_member.insert(member.clone(), slots);
            self.ready_up();
            if self.has_free(member) {
                let it = self.started.iter_mut().find(|(there, _)| *there == run);
                it.expect("it has started").1 = member.clone();
            }
        }
    }

    /// Gives the slots of members to their first waiting runs; if there are fewer slots now, the last runs give theirs
    /// back.
    fn ready_up(&mut self) {
        while let Some(at) = self.waiting.iter().position(|(_, who)| self.has_free(who)) {
            let next = self.waiting.remove(at);
            self.ready.push(next);
        }
        let over = |rules: &Self, who: &Arc<str>| {
            let charged = rules.ready.iter().chain(&rules.started).filter(|(_, other)| other == who).count();
            charged > rules.of_member.get(who).copied().unwrap_or(0)
        };
        while let Some(at) = self.ready.iter().rposition(|(_, who)| over(self, who)) {
            let last = self.ready.remove(at);
            self.waiting.insert(0, last);
        }
    }

    fn start(&mut self) -> Vec<RunId> {
        self.ready_up();
        let free = self.of_box.saturating_sub(self.started.len());
        let first: Vec<_> = self.ready.drain(..free.min(self.ready.len())).collect();
        self.started.extend(first.iter().cloned());
        first.into_iter().map(|(run, _)| run).collect()
    }

    /// Checks rules that hold under any policy.
    fn hold(&self, starts: &[RunId]) -> Result<(), TestCaseError> {
        let charged = |who: &Arc<str>| self.started.iter().filter(|(_, other)| other == who).count();
        if !starts.is_empty() {
            prop_assert!(self.started.len() <= self.of_box, "more than the box has");
        }
        for (run, who) in &self.started {
            if starts.contains(run) {
                prop_assert!(charged(who) <= self.of_member[who], "more than {who} has");
            }
        }
        let full = self.started.len() >= self.of_box;
        for (run, who) in self.waiting.iter().chain(&self.ready) {
            prop_assert!(
                full || charged(who) >= self.of_member[who],
                "{run} of {who} may start and does not"
            );
        }
        Ok(())
    }
}

/// Numbers for events: a new run gets the next number; other events choose among existing runs.
fn events() -> impl Strategy<Value = Vec<(u8, usize, usize, usize)>> {
    prop::collection::vec((0..10u8, 0..4usize, 0..5usize, any::<usize>()), 1..120)
}

proptest! {
    #[test]
    fn no_member_has_more_runs_than_slots_and_the_first_run_that_may_start_starts(script in events()) {
        let (mut scene, mut rules) = (Scene::with_slots(2), Rules { of_box: 2, ..Rules::default() });
        let (mut next, mut there) = (0, Vec::new());
        for (kind, who, slots, which) in script {
            let member: Arc<str> = ["alice", "bob", "carol", "dave"][who].into();
            let run = there.get(which % there.len().max(1)).copied();
            let event = match (kind, run) {
                (0..4, _) | (_, None) => {
                    next += 1;
                    there.push(next);
                    Event::Queued { run: next, member, slots, size: SMALL }
                }
                (4..7, Some(run)) => {
                    there.retain(|other| *other != run);
                    Event::Ended { run }
                }
                (7, Some(run)) => Event::HandedOver { run, member, slots },
                (8, _) if rules.known(&member) => Event::MemberSlots { member, slots },
                _ => Event::BoxSlots(slots),
            };
            rules.apply(&event);
            let starts = scene.happens(event.clone());
            prop_assert_eq!(&starts, &rules.start(), "at {:?}", event);
            rules.hold(&starts)?;
            for (run, who) in rules.waiting.iter().chain(&rules.ready).chain(&rules.started) {
                prop_assert_eq!(scene.charged_to(*run), &**who, "run {}", run);
            }
        }
        // No run is lost: with room for all of them, all start.
        let mut started = rules.started.len();
        started += scene.happens(Event::BoxSlots(there.len())).len();
        for member in ["alice", "bob", "carol", "dave"] {
            started += scene.has(member, there.len()).len();
        }
        prop_assert_eq!(started, there.len());
    }
}
