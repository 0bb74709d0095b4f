//! What members are promised, over random histories: the first build, no starvation, shares by weight, and that no way of
//! asking gains a share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::admit_test::{SLOT, Scene, member};
use super::*;

const SIZES: [Size; 4] = [
    SLOT,
    Size { vcpus: 1, memory_mib: 2048 },
    Size { vcpus: 3, memory_mib: 1024 },
    Size { vcpus: 4 * SLOT.vcpus, memory_mib: SLOT.memory_mib },
];
/// Of each of these sizes, in thousandths of a slot.
const PARTS: [u64; 4] = [1000, 250, 750, 4000];

/// A box that executes what starts.
struct Simulated {
    scene: Scene,
    slots: usize,
    /// The groups of each owner.
    groups: BTreeMap<usize, Vec<Group>>,
    next: RunId,
    /// Ends to come.
    running: BTreeSet<(Instant, RunId)>,
    /// Seconds that a run takes, its owner's number, and its size.
    runs: BTreeMap<RunId, (u64, usize, usize)>,
    begun: BTreeMap<RunId, Instant>,
    /// Slot-seconds that each owner has got, in thousandths.
    got: BTreeMap<usize, u64>,
    /// Runs that wait, by owner.
    waiting: BTreeMap<usize, usize>,
}

fn owner(who: usize) -> Owner {
    member(&format!("member {who}"), usize::MAX)
}

impl Simulated {
    fn with_slots(slots: usize) -> Self {
        let (groups, running, runs, begun, got, waiting) = Default::default();
        Self { scene: Scene::with_slots(slots), slots, groups, next: 0, running, runs, begun, got, waiting }
    }

    /// Eight owners, each in those of the groups, with so many slots, for which `is_in` is true.
    fn group(&mut self, slots: &[usize], is_in: impl Fn(usize, usize) -> bool) {
        let group = |(n, slots): (usize, &usize)| Group {
            name: format!("group {n}").into(),
            slots: *slots,
            most: Size::ALL,
        };
        let all: Vec<Group> = slots.iter().enumerate().map(group).collect();
        for who in 0..8 {
            let own = (0..all.len()).filter(|n| is_in(who, *n)).map(|n| all[n].clone());
            self.groups.insert(who, own.collect());
        }
    }

    fn owner(&self, who: usize) -> Owner {
        let groups = self.groups.get(&who).cloned().unwrap_or_default();
        Owner { groups, ..owner(who) }
    }

    fn note(&mut self, starts: &[RunId]) {
        for run in starts {
            let (seconds, who, _) = self.runs[run];
            self.running.insert((self.scene.now + Duration::from_secs(seconds), *run));
            self.begun.insert(*run, self.scene.now);
            *self.waiting.entry(who).or_default() -= 1;
        }
    }

    fn queue(&mut self, who: usize, of: Owner, class: impl Into<Asked>, seconds: u64, size: usize) -> RunId {
        self.next += 1;
        let run = self.next;
        self.runs.insert(run, (seconds, who, size));
        *self.waiting.entry(who).or_default() += 1;
        let starts =
            self.scene.happens(Event::Queued { run, owner: of, asked: class.into(), size: SIZES[size] });
        self.note(&starts);
        run
    }

    /// Ends the run that ends next.
    fn step(&mut self) -> RunId {
        let (at, run) = self.running.pop_first().expect("something runs");
        self.scene.now = self.scene.now.max(at);
        self.end(run);
        run
    }

    fn end(&mut self, run: RunId) {
        self.running.retain(|(_, there)| *there != run);
        let (_, who, size) = self.runs[&run];
        match self.begun.get(&run) {
            Some(begun) => {
                let seconds = (self.scene.now - *begun).as_secs();
                *self.got.entry(who).or_default() += seconds * PARTS[size];
            }
            None => *self.waiting.entry(who).or_default() -= 1,
        }
        let starts = self.scene.ended(run);
        self.note(&starts);
    }

    fn waits(&self, who: usize) -> usize {
        self.waiting.get(&who).copied().unwrap_or(0)
    }

    fn has_started(&self, who: usize) -> bool {
        self.running.iter().any(|(_, run)| self.runs[run].1 == who)
    }

    fn seconds_of(&self, who: usize) -> u64 {
        self.got.get(&who).copied().unwrap_or(0) / 1000
    }

    /// Runs until so many seconds are over, while `refill` keeps owners waiting.
    fn during(&mut self, seconds: u64, mut refill: impl FnMut(&mut Self)) {
        let until = self.scene.now + Duration::from_secs(seconds);
        while self.scene.now < until {
            refill(self);
            self.step();
        }
    }

    /// Gives these owners, in proportion to the slots, more waiting runs than can start at once.
    fn refill(&mut self, who: usize, seconds: u64) {
        while self.waits(who) < self.slots {
            self.queue(who, self.owner(who), Class::Bulk, seconds, 0);
        }
    }
}

/// Numbers for a history: who, seconds of the run, size, what happens, seconds before it.
fn history() -> impl Strategy<Value = Vec<(usize, u64, usize, u8, u64)>> {
    prop::collection::vec((0..8usize, 1..3000u64, 0..3usize, 0..8u8, 0..400u64), 1..120)
}

fn class_of(what: u8) -> Asked {
    [Class::Interactive.into(), Class::Bulk.into(), Asked::Alone][usize::from(what % 3)]
}

impl Simulated {
    /// One event of a history: mostly a new run, sometimes the end of one that waits or runs.
    fn happens(&mut self, (who, seconds, size, what, pause): (usize, u64, usize, u8, u64)) {
        let until = self.scene.now + Duration::from_secs(pause);
        while self.running.first().is_some_and(|(end, _)| *end <= until) {
            self.step();
        }
        self.scene.now = self.scene.now.max(until);
        let there = self.scene.admission.charged_to(u64::from(what) * 5 + self.next / 2).is_some();
        match what {
            7 if there => self.end(u64::from(what) * 5 + self.next / 2),
            _ => drop(self.queue(who, self.owner(who), class_of(what), seconds, size)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The first build of a member waits for one end, and one more for each member who waits and came before, and has nothing
    /// running or waits for a slot of a group. How many builds the others have queued does not matter.
    #[test]
    fn a_first_build_starts_when_one_build_has_ended_and_those_who_came_before_have_one_each(
        before in history(), after in history(), slots in 1..5usize, size in 0..3usize,
        of_groups in prop::collection::vec(1..4usize, 0..=3),
    ) {
        let mut at = Simulated::with_slots(slots);
        // Owner 0 is in none of them, and owner 7 in all.
        at.group(&of_groups, |who, group| (who >> group) % 2 == 1);
        before.into_iter().for_each(|event| at.happens(event));
        while at.running.len() < slots {
            at.refill(0, 1000);
        }
        let may_be_held_up = |who: &usize| !at.owner(*who).groups.is_empty();
        let ahead = (0..8).filter(|who| at.waits(*who) > 0 && (!at.has_started(*who) || may_be_held_up(who))).count();
        let first = at.queue(99, owner(99), Class::Bulk, 60, size);
        for event in after.into_iter().cycle().take(8 * (ahead + 1)) {
            // The others go on asking.
            let (who, seconds, size, what, _) = event;
            at.queue(who, at.owner(who), class_of(what), seconds, size);
        }
        for _ in 0..=ahead {
            at.step();
        }
        prop_assert!(at.begun.contains_key(&first), "{ahead} were ahead");
    }

    /// The bound: before each start of the run's own member, every other member gets at most what that member is ahead by,
    /// which is at most all that the box can do in the history, and overshoots by what runs at once. No member is in two
    /// groups here: see the design.
    #[test]
    fn every_run_starts_after_a_bounded_time_whatever_the_others_ask_for(
        before in history(), slots in 1..5usize, which in any::<usize>(), lengths in prop::collection::vec(1..600u64, 1..9),
        of_groups in prop::collection::vec(1..4usize, 0..=3),
    ) {
        let mut at = Simulated::with_slots(slots);
        at.group(&of_groups, |who, group| who % 4 == group);
        let start = at.scene.now;
        before.into_iter().for_each(|event| at.happens(event));
        at.queue(0, at.owner(0), Class::Bulk, 600, 0);
        let waiting: Vec<RunId> =
            at.runs.keys().filter(|run| !at.begun.contains_key(run) && at.scene.admission.charged_to(**run).is_some()).copied().collect();
        prop_assume!(!waiting.is_empty());
        let run = waiting[which % waiting.len()];
        let who = at.runs[&run].1;
        let (turns, past) = (2 * at.waits(who) as u64 + 1, (at.scene.now - start).as_secs());
        let longest = 3000;
        let bound = BULK_PATIENCE.as_secs() + turns * 8 * 4 * (past + 2 * longest + CREDIT.as_secs() + ADVANCE.as_secs());
        let until = at.scene.now + Duration::from_secs(bound);
        let mut lengths = lengths.into_iter().cycle();
        while !at.begun.contains_key(&run) {
            for other in (0..8).filter(|other| *other != who) {
                at.refill(other, lengths.next().expect("endless"));
            }
            at.step();
            prop_assert!(at.scene.now < until, "{run} of {who} waits for more than {bound} s");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// With runs that never end all at one moment there is never room for a run that takes the whole box, unless it is kept. Then
    /// the others go on.
    #[test]
    fn a_run_as_large_as_the_box_waits_for_the_reserve_and_some_of_the_longest_runs_and_no_longer(
        lengths in prop::collection::vec(1..1800u64, 2..9), members in 1..8usize, size in 0..3usize, past in 0..9000u64,
    ) {
        let mut at = Simulated::with_slots(4);
        let starts = at.scene.happens(Event::Box { slots: 4, slot: SLOT, most: SLOT.times(4) });
        at.note(&starts);
        let (longest, mut endless) = (*lengths.iter().max().expect("some"), lengths.into_iter().cycle());
        let mut refill = |at: &mut Simulated| {
            for who in 0..members {
                while at.waits(who) < 4 {
                    at.queue(who, owner(who), Class::Bulk, endless.next().expect("endless"), size);
                }
            }
        };
        at.during(past, &mut refill);
        refill(&mut at);
        let large = at.queue(99, owner(99), Class::Bulk, 60, 3);
        let until = at.scene.now + RESERVE + Duration::from_secs(4 * longest);
        while !at.begun.contains_key(&large) {
            refill(&mut at);
            at.step();
            prop_assert!(at.scene.now <= until, "it waits for longer");
        }
        prop_assert_eq!(at.running.len(), 1);
        at.step();
        prop_assert_eq!(at.running.len(), 4, "the others go on");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn under_saturation_members_get_the_box_by_weight_whatever_the_lengths_and_sizes_of_their_runs(
        weights in prop::collection::vec(1..5u32, 2..6), lengths in prop::collection::vec(5..600u64, 5), slots in 2..7usize,
    ) {
        let mut at = Simulated::with_slots(slots);
        let refill = |at: &mut Simulated| {
            for (who, weight) in weights.iter().enumerate() {
                let mut of = owner(who);
                of.member.terms.weight = *weight;
                while at.waits(who) < slots {
                    // Not all of one owner's runs are of one length.
                    let seconds = lengths[who] * (1 + at.next % 3);
                    at.queue(who, of.clone(), Class::Bulk, seconds, who % 3);
                }
            }
        };
        at.during(4 * 3600, refill);
        let before = at.got.clone();
        at.during(60 * 3600, refill);
        let got = |who: usize| (at.got[&who] - before.get(&who).unwrap_or(&0)) as f64;
        let total: f64 = (0..weights.len()).map(got).sum();
        for (who, weight) in weights.iter().enumerate() {
            let due = total * f64::from(*weight) / f64::from(weights.iter().sum::<u32>());
            // What is under way at either end, in thousandths of slot-seconds.
            let rest = 3.0 * 1000.0 * lengths.iter().max().map_or(0.0, |longest| *longest as f64) * slots as f64;
            prop_assert!((got(who) - due).abs() < rest + due * 0.04, "{who} got {} of {due}", got(who));
        }
    }
}

/// Two members ask for all of a box of four slots, for a day. Returns the part that the first gets.
fn part_of_first(mut first: impl FnMut(&mut Simulated), seconds_of_second: u64) -> f64 {
    let mut at = Simulated::with_slots(4);
    at.during(24 * 3600, |at| {
        first(at);
        at.refill(1, seconds_of_second);
    });
    let (mine, theirs) = (at.seconds_of(0) as f64, at.seconds_of(1) as f64);
    mine / (mine + theirs)
}

#[test]
fn many_small_runs_do_not_gain_a_share() {
    let part = part_of_first(|at| at.refill(0, 2), 900);
    assert!((part - 0.5).abs() < 0.03, "{part}");
}

#[test]
fn many_keys_and_more_waiting_runs_do_not_gain_a_share() {
    let keys = |at: &mut Simulated| {
        for n in 0..40 {
            let key = Level::new(&format!("key {n}").into(), Terms::default());
            if at.waits(0) < 100 {
                at.queue(0, Owner { key, ..owner(0) }, Class::Interactive, 120, 0);
            }
        }
    };
    let part = part_of_first(keys, 120);
    assert!((part - 0.5).abs() < 0.03, "{part}");
}

#[test]
fn to_cancel_and_ask_again_does_not_gain_a_share() {
    let (mut waiting, mut turn) = (VecDeque::new(), 0);
    let cancel = |at: &mut Simulated| {
        turn += 1;
        // Leaves the queue altogether, and comes back; and ends what runs after half of its time.
        while let Some(run) = waiting.pop_front() {
            if at.scene.admission.charged_to(run).is_some() && (turn % 4 < 2 || !at.begun.contains_key(&run))
            {
                at.end(run);
            }
        }
        waiting.extend((0..6).map(|_| at.queue(0, owner(0), Class::Interactive, 120, 0)));
    };
    let part = part_of_first(cancel, 120);
    assert!(part < 0.53, "{part}");
}

#[test]
fn to_hand_runs_over_does_not_gain_a_share() {
    // Member 0 gives each run to member 2, a friend with nothing to build, as soon as it has started.
    let mut at = Simulated::with_slots(4);
    at.during(24 * 3600, |at| {
        at.refill(0, 300);
        at.refill(1, 300);
        let given: Vec<RunId> =
            at.running.iter().map(|(_, run)| *run).filter(|run| at.runs[run].1 == 0).collect();
        for run in given {
            let starts = at.scene.happens(Event::HandedOver { run, owner: owner(2) });
            at.note(&starts);
        }
    });
    // Two members' worth, which both of them would have without this, and no more.
    let (theirs, other) = (at.seconds_of(0) as f64, at.seconds_of(1) as f64);
    assert!(theirs / (theirs + other) < 2.0 / 3.0 + 0.03, "{theirs} {other}");
}

/// Two members fill the box; a third comes, or comes back, after a day. Returns by how much the third has got more than each of the
/// others at any time since, in slot-seconds.
fn lead_of_third(used_before: bool) -> u64 {
    let mut at = Simulated::with_slots(4);
    if used_before {
        at.during(3600, |at| at.refill(2, 300));
    }
    at.during(24 * 3600, |at| (0..2).for_each(|who| at.refill(who, 300)));
    let before = (at.seconds_of(0), at.seconds_of(1), at.seconds_of(2));
    let mut lead = 0;
    for _ in 0..1000 {
        (0..3).for_each(|who| at.refill(who, 300));
        at.step();
        let since = (at.seconds_of(0) - before.0, at.seconds_of(1) - before.1, at.seconds_of(2) - before.2);
        lead = lead.max(since.2.saturating_sub(since.0.min(since.1)));
    }
    lead
}

#[test]
fn a_member_who_comes_or_comes_back_has_no_more_credit_than_named() {
    for used_before in [false, true] {
        let lead = lead_of_third(used_before);
        // Four runs may be under way on either side.
        let most = CREDIT.as_secs() + 8 * 300;
        assert!((CREDIT.as_secs() / 2..most).contains(&lead), "{lead}");
    }
}

#[test]
fn who_used_an_empty_box_alone_is_not_behind_for_longer_than_the_credit() {
    let mut at = Simulated::with_slots(4);
    // Never more than the slots: nobody waits.
    at.during(10 * 3600, |at| {
        while at.running.len() < 4 {
            at.queue(0, owner(0), Class::Bulk, 300, 0);
        }
    });
    let alone = at.seconds_of(0);
    at.during(4 * 3600, |at| (0..2).for_each(|who| at.refill(who, 300)));
    let lead = at.seconds_of(1).saturating_sub(at.seconds_of(0) - alone);
    assert!(lead < CREDIT.as_secs() + 8 * 300, "{lead}");
}
