use super::*;

const NONE: [RunId; 0] = [];
pub const SLOT: Size = Size { vcpus: 4, memory_mib: 8192 };
const HALF: Size = Size { vcpus: 2, memory_mib: 4096 };

/// A box with a clock that the test advances.
pub struct Scene {
    pub admission: Admission,
    pub now: Instant,
}

/// A member of no group.
pub fn member(name: &str, slots: usize) -> Owner {
    Owner::member(&name.into(), Terms::slots(slots))
}

/// A member of these groups, with their slots.
pub fn in_groups(name: &str, groups: &[(&str, usize)]) -> Owner {
    let groups =
        groups.iter().map(|(name, slots)| Group { name: (*name).into(), slots: *slots, most: Size::ALL });
    Owner { groups: groups.collect(), ..member(name, 8) }
}

impl Scene {
    pub fn with_slots(slots: usize) -> Self {
        let mut new = Self { admission: Admission::default(), now: Instant::now() };
        assert_eq!(new.happens(Event::Box { slots, slot: SLOT, most: Size::ALL }), NONE);
        new
    }

    /// Handles an event. Returns the runs that start.
    pub fn happens(&mut self, event: Event) -> Vec<RunId> {
        self.admission.handle(event, self.now).into_iter().map(|start| start.run).collect()
    }

    pub fn passes(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn queued(&mut self, run: RunId, name: &str, slots: usize) -> Vec<RunId> {
        self.queued_by(run, member(name, slots), Class::Interactive)
    }

    fn queued_by(&mut self, run: RunId, owner: Owner, class: Class) -> Vec<RunId> {
        self.happens(Event::Queued { run, owner, asked: class.into(), size: SLOT })
    }

    fn handed_over(&mut self, run: RunId, name: &str, slots: usize) -> Vec<RunId> {
        self.happens(Event::HandedOver { run, owner: member(name, slots) })
    }

    fn has(&mut self, member: &str, slots: usize) -> Vec<RunId> {
        self.happens(Event::Terms { owners: vec![self::member(member, slots)] })
    }

    pub fn ended(&mut self, run: RunId) -> Vec<RunId> {
        self.happens(Event::Ended { run })
    }

    fn charged_to(&self, run: RunId) -> &str {
        self.admission.charged_to(run).expect("it is there")
    }

    /// The next in turn, each of which runs for a minute. The box has one slot.
    fn order(&mut self, mut running: RunId, count: usize) -> Vec<RunId> {
        let next = |_| {
            self.passes(60);
            let starts = self.ended(running);
            running = starts[0];
            running
        };
        (0..count).map(next).collect()
    }
}

#[test]
fn a_start_says_how_long_it_waited() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 4), [1]);
    scene.passes(3);
    assert_eq!(scene.queued(2, "alice", 4), NONE);
    scene.passes(7200);
    let start = scene.admission.handle(Event::Ended { run: 1 }, scene.now);
    assert_eq!(start, [Start { run: 2, waited: Duration::from_secs(7200) }]);
}

#[test]
fn a_run_that_waits_is_kept_by_the_nearest_that_is_full() {
    let mut scene = Scene::with_slots(3);
    let start = |scene: &mut Scene, run, owner: Owner| scene.queued_by(run, owner, Class::Interactive);
    let with_key = |slots| {
        let key = Level::new(&"laptop".into(), Terms::slots(slots));
        Owner { key, ..member("alice", 2) }
    };
    assert_eq!(start(&mut scene, 1, with_key(1)), [1]);
    start(&mut scene, 2, with_key(1));
    assert_eq!(scene.admission.kept_by(2), Some(Full::Key));
    assert_eq!(start(&mut scene, 3, member("alice", 2)), [3]);
    start(&mut scene, 4, member("alice", 2));
    assert_eq!(scene.admission.kept_by(4), Some(Full::Member));
    assert_eq!(start(&mut scene, 5, in_groups("bob", &[("dev", 4), ("ci", 1)])), [5]);
    start(&mut scene, 6, in_groups("bob", &[("dev", 4), ("ci", 1)]));
    assert_eq!(scene.admission.kept_by(6), Some(Full::Group("ci".into())));
    let small = || {
        let most = Size { vcpus: 2 * SLOT.vcpus - 1, ..Size::ALL };
        Owner { groups: vec![Group { name: "small".into(), slots: 4, most }], ..member("dora", 8) }
    };
    let mut wide = Scene::with_slots(3);
    assert_eq!(start(&mut wide, 1, small()), [1]);
    start(&mut wide, 2, small());
    assert_eq!(wide.admission.kept_by(2), Some(Full::Size("small".into())));
    start(&mut scene, 7, member("carol", 1));
    assert_eq!(scene.admission.kept_by(7), Some(Full::Box));
    assert_eq!((scene.admission.kept_by(1), scene.admission.kept_by(99)), (None, None));
}

#[test]
fn a_first_build_is_next_however_many_builds_of_others_wait() {
    let mut scene = Scene::with_slots(2);
    assert_eq!(scene.queued(1, "alice", 8), [1]);
    assert_eq!(scene.queued(2, "alice", 8), [2]);
    (3..2000).for_each(|run| assert_eq!(scene.queued(run, "alice", 8), NONE));
    scene.passes(600);
    assert_eq!(scene.queued(5000, "bob", 8), NONE);
    assert_eq!(scene.queued(5001, "carol", 8), NONE);
    assert_eq!(scene.queued(5002, "bob", 8), NONE);
    assert_eq!(scene.ended(1), [5000]);
    assert_eq!(scene.ended(2), [5001]);
}

/// The run of a small build of many hours ends. Its member has used little for its time, waits for another run, and waited
/// before the member with the first build.
#[test]
fn a_first_build_goes_before_the_next_of_a_member_who_has_had_one() {
    let mut scene = Scene::with_slots(2);
    let small = |run| {
        let size = Size { vcpus: 1, memory_mib: 1024 };
        Event::Queued { run, owner: member("alice", 8), asked: Class::Interactive.into(), size }
    };
    assert_eq!(scene.happens(small(1)), [1]);
    assert_eq!(scene.queued(10, "bob", 8), [10]);
    for run in 11..20 {
        assert_eq!(scene.queued(run, "bob", 8), NONE);
        scene.passes(3600);
        assert_eq!(scene.ended(run - 1), [run]);
    }
    assert_eq!(scene.happens(small(2)), NONE);
    scene.passes(60);
    assert_eq!(scene.queued(30, "carol", 8), NONE);
    assert_eq!(scene.ended(1), [30]);
    assert_eq!(scene.ended(19), [2]);
}

#[test]
fn members_with_equal_weights_take_turns_and_a_weight_of_two_has_two_turns() {
    let mut scene = Scene::with_slots(1);
    let mut carol = member("carol", 8);
    carol.member.terms.weight = 2;
    assert_eq!(scene.queued(0, "zoe", 1), [0]);
    for run in 1..=20 {
        scene.queued(run, "alice", 8);
        scene.queued(100 + run, "bob", 8);
        scene.queued_by(200 + run, carol.clone(), Class::Interactive);
    }
    let order = scene.order(0, 40);
    let turns = |from| order.iter().filter(|run| (from..from + 100).contains(*run)).count();
    assert_eq!((turns(1), turns(101), turns(201)), (10, 10, 20));
}

#[test]
fn a_run_of_half_a_slots_size_is_charged_half() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(0, "zoe", 1), [0]);
    for run in 1..=20 {
        scene.queued(run, "alice", 8);
        scene.happens(Event::Queued {
            run: 100 + run,
            owner: member("bob", 8),
            asked: Class::Bulk.into(),
            size: HALF,
        });
    }
    let order = scene.order(0, 30);
    assert_eq!(order.iter().filter(|run| **run < 100).count(), 10);
}

/// Many builds that `--builders` offers, each in a call of its own, and then small requests of the same member.
#[test]
fn of_builds_that_are_offered_one_by_one_a_key_has_two_before_its_bulk_and_a_small_request_does_not_wait_for_the_rest()
 {
    let mut scene = Scene::with_slots(1);
    let with_key = |key: &str| Owner { key: Level::new(&key.into(), Terms::default()), ..member("alice", 8) };
    let alone = |scene: &mut Scene, run, key: &str| {
        scene.happens(Event::Queued { run, owner: with_key(key), asked: Asked::Alone, size: SLOT })
    };
    assert_eq!(scene.queued(0, "zoe", 1), [0]);
    for run in 1..=100 {
        assert_eq!(alone(&mut scene, run, "laptop"), NONE);
    }
    // A call for one build or for some.
    assert_eq!(scene.queued_by(200, with_key("laptop"), Class::Interactive), NONE);
    assert_eq!(scene.order(0, 5), [1, 2, 200, 3, 4]);
    // The two are over, so the next one counts again; and another key has its own two.
    assert_eq!(alone(&mut scene, 101, "laptop"), NONE);
    assert_eq!(alone(&mut scene, 301, "phone"), NONE);
    assert_eq!(alone(&mut scene, 302, "phone"), NONE);
    assert_eq!(alone(&mut scene, 303, "phone"), NONE);
    let order = scene.order(4, 6);
    let (mut first, rest) = (order[..3].to_vec(), &order[3..]);
    first.sort_unstable();
    assert_eq!(first, [101, 301, 302]);
    assert!(rest.contains(&303) && rest.contains(&5), "keys share their member's bulk: {rest:?}");
    // What is left of a run that is cancelled is nothing.
    (1..=303).for_each(|run| drop(scene.ended(run)));
    assert!(scene.admission.alone.is_empty());
}

#[test]
fn keys_share_within_their_member() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(0, "zoe", 1), [0]);
    let with_key = |key: &str| Owner { key: Level::new(&key.into(), Terms::default()), ..member("alice", 8) };
    for run in 1..=40 {
        scene.queued_by(run, member("bob", 8), Class::Bulk);
        scene.queued_by(100 + run, with_key("laptop"), Class::Bulk);
        scene.queued_by(200 + run, with_key("phone"), Class::Bulk);
    }
    let order = scene.order(0, 40);
    let turns = |from| order.iter().filter(|run| (from..from + 100).contains(*run)).count();
    assert_eq!((turns(1), turns(101), turns(201)), (20, 10, 10));
}

#[test]
fn members_of_a_large_group_have_the_shares_of_members_without_a_group() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(0, "zoe", 1), [0]);
    for run in 1..=40 {
        scene.queued(run, "alice", 8);
        for (n, name) in (1..).zip(["bob", "carol", "dave"]) {
            scene.queued_by(100 * n + run, in_groups(name, &[("ci", 8)]), Class::Interactive);
        }
    }
    let order = scene.order(0, 40);
    let turns = |from| order.iter().filter(|run| (from..from + 100).contains(*run)).count();
    assert_eq!([turns(1), turns(101), turns(201), turns(301)], [10; 4]);
}

#[test]
fn a_group_has_no_more_runs_than_slots_and_its_members_wait_for_nobody_elses() {
    let mut scene = Scene::with_slots(8);
    let of_group = |name: &str, slots| in_groups(name, &[("ci", slots)]);
    assert_eq!(scene.queued_by(1, of_group("alice", 2), Class::Bulk), [1]);
    assert_eq!(scene.queued_by(2, of_group("bob", 2), Class::Bulk), [2]);
    assert_eq!(scene.queued_by(3, of_group("alice", 2), Class::Bulk), NONE);
    assert_eq!(scene.queued(4, "carol", 8), [4]);
    // A run of the group that gets another owner in the group takes no other slot of it.
    assert_eq!(scene.happens(Event::HandedOver { run: 1, owner: of_group("dave", 2) }), NONE);
    assert_eq!(scene.charged_to(1), "dave");
    assert_eq!(scene.happens(Event::HandedOver { run: 4, owner: of_group("dave", 2) }), NONE);
    assert_eq!(scene.charged_to(4), "carol");
    // To an owner outside of it: the group's slot is free.
    assert_eq!(scene.handed_over(1, "erin", 8), [3]);
    assert_eq!(scene.charged_to(1), "erin");
    // The slots are those that came last, also with another member of the group.
    assert_eq!(scene.queued_by(5, of_group("bob", 2), Class::Bulk), NONE);
    assert_eq!(scene.queued_by(6, of_group("frank", 3), Class::Bulk), [6]);
    assert_eq!(scene.happens(Event::Terms { owners: vec![of_group("bob", 4)] }), [5]);
    assert_eq!(scene.happens(Event::Terms { owners: vec![of_group("bob", 1)] }), NONE);
    assert_eq!(scene.queued_by(7, of_group("alice", 1), Class::Bulk), NONE);
    assert_eq!([2, 3, 5].map(|run| scene.ended(run)), [NONE; 3]);
    assert_eq!(scene.ended(6), [7]);
}

#[test]
fn a_member_of_several_groups_starts_a_run_when_each_has_a_free_slot_and_counts_in_each() {
    let mut scene = Scene::with_slots(8);
    let both = || in_groups("alice", &[("ci", 2), ("students", 1)]);
    assert_eq!(scene.queued_by(1, both(), Class::Bulk), [1]);
    assert_eq!(scene.queued_by(2, in_groups("bob", &[("students", 1)]), Class::Bulk), NONE);
    assert_eq!(scene.queued_by(3, in_groups("carol", &[("ci", 2)]), Class::Bulk), [3]);
    assert_eq!(scene.queued_by(4, in_groups("carol", &[("ci", 2)]), Class::Bulk), NONE);
    assert_eq!(scene.queued_by(5, both(), Class::Bulk), NONE);
    // Bob has used nothing. Then one of alice's groups is full again, and carol is the next.
    assert_eq!(scene.ended(1), [2, 4]);
    // One of alice's two groups has a free slot.
    assert_eq!(scene.ended(2), NONE);
    assert_eq!(scene.ended(3), [5]);
}

/// A group's runs are those of its members: also those that started before a member joined.
#[test]
fn who_joins_a_group_brings_started_runs_along_and_who_leaves_takes_them_away() {
    let mut scene = Scene::with_slots(8);
    assert_eq!(scene.queued(1, "alice", 8), [1]);
    assert_eq!(scene.queued_by(2, in_groups("bob", &[("ci", 1)]), Class::Bulk), [2]);
    assert_eq!(scene.queued_by(3, in_groups("carol", &[("ci", 1)]), Class::Bulk), NONE);
    // One event: no run starts between bob's leaving and alice's joining.
    let owners = vec![member("bob", 8), in_groups("alice", &[("ci", 1)])];
    assert_eq!(scene.happens(Event::Terms { owners }), NONE);
    assert_eq!(scene.ended(2), NONE);
    assert_eq!(scene.happens(Event::Terms { owners: vec![member("alice", 8)] }), [3]);
    // What started in the group and ends outside of it is not subtracted from it.
    assert_eq!(scene.queued_by(4, in_groups("bob", &[("ci", 1)]), Class::Bulk), NONE);
    assert_eq!(scene.ended(1), NONE);
    assert_eq!(scene.ended(3), [4]);
}

#[test]
fn the_runs_of_a_group_take_no_more_processors_and_memory_together_than_it_has() {
    let mut scene = Scene::with_slots(9);
    let most = Size { vcpus: 6, memory_mib: 9 << 10 };
    let of_group = |name: &str, most| {
        let groups = vec![Group { name: "ci".into(), slots: 9, most }];
        Owner { groups, ..member(name, 8) }
    };
    let queued = |scene: &mut Scene, run, name: &str, size| {
        let owner = of_group(name, most);
        scene.happens(Event::Queued { run, owner, asked: Class::Interactive.into(), size })
    };
    assert_eq!(queued(&mut scene, 1, "alice", HALF), [1]);
    assert_eq!(queued(&mut scene, 2, "bob", HALF), [2]);
    // The processors are enough for another half, and the memory is not; the next one is not passed by.
    assert_eq!(queued(&mut scene, 3, "alice", HALF), NONE);
    assert_eq!(queued(&mut scene, 4, "alice", Size { vcpus: 1, memory_mib: 64 }), NONE);
    assert_eq!(queued(&mut scene, 5, "bob", Size { vcpus: 1, memory_mib: 1024 }), [5]);
    // Others do not notice.
    assert_eq!(scene.queued(6, "carol", 8), [6]);
    // With the first half gone there is room for one, not for both.
    assert_eq!(scene.ended(1), [3]);
    let owners = |most| vec![of_group("alice", most), of_group("bob", most)];
    assert_eq!(scene.happens(Event::Terms { owners: owners(Size { vcpus: 6, memory_mib: 9280 }) }), [4]);

    // A run that has become larger than all that the group may have starts alone.
    assert_eq!(queued(&mut scene, 7, "bob", SLOT), NONE);
    let less = Size { vcpus: 3, memory_mib: 4096 };
    assert_eq!(scene.happens(Event::Terms { owners: owners(less) }), NONE);
    for run in [2, 3, 5] {
        assert_eq!(scene.ended(run), NONE);
    }
    assert_eq!(scene.ended(4), [7]);
    assert_eq!(
        scene.happens(Event::Queued {
            run: 8,
            owner: of_group("alice", less),
            asked: Class::Bulk.into(),
            size: HALF
        }),
        NONE
    );
    // Who leaves the group takes the run along.
    assert_eq!(scene.happens(Event::Terms { owners: vec![member("bob", 8), of_group("alice", less)] }), [8]);
}

#[test]
fn a_member_has_no_more_processors_and_memory_together_than_the_terms_say() {
    let mut scene = Scene::with_slots(9);
    let alice = || {
        let mut alice = member("alice", 8);
        alice.member.terms.most = SLOT;
        alice
    };
    assert_eq!(scene.queued_by(1, alice(), Class::Bulk), [1]);
    assert_eq!(scene.queued_by(2, alice(), Class::Bulk), NONE);
    assert_eq!(scene.admission.kept_by(2), Some(Full::MemberSize));
    // Nor does she get one that another has started.
    assert_eq!(scene.queued(3, "bob", 8), [3]);
    scene.passes(100);
    scene.happens(Event::HandedOver { run: 3, owner: alice() });
    assert_eq!(scene.charged_to(3), "bob");
    assert_eq!(scene.ended(1), [2]);
}

#[test]
fn a_run_that_the_box_has_no_room_for_is_passed_by_for_the_reserve_and_then_by_nobody() {
    let mut scene = Scene::with_slots(4);
    scene.happens(Event::Box { slots: 4, slot: SLOT, most: SLOT.times(2) });
    assert_eq!(scene.queued(1, "alice", 8), [1]);
    let large = SLOT.times(2);
    let queued = |scene: &mut Scene, run, name| {
        let (owner, asked) = (member(name, 8), Class::Bulk.into());
        scene.happens(Event::Queued { run, owner, asked, size: large })
    };
    assert_eq!(queued(&mut scene, 2, "bob"), NONE);
    assert_eq!(scene.admission.kept_by(2), Some(Full::Room));
    scene.passes(RESERVE.as_secs() - 1);
    assert_eq!(scene.queued(3, "carol", 8), [3]);
    scene.passes(1);
    assert_eq!(scene.ended(3), NONE);
    assert_eq!(scene.queued(4, "carol", 8), NONE);
    assert_eq!(scene.admission.kept_by(4), Some(Full::Room), "there is a free slot");
    assert_eq!(scene.ended(1), [2]);
    assert_eq!(scene.ended(2), [4]);
    // The next one waits anew, and who leaves keeps no room.
    assert_eq!(queued(&mut scene, 5, "frank"), NONE);
    scene.passes(RESERVE.as_secs() - 1);
    assert_eq!(scene.queued(6, "dora", 8), [6]);
    scene.passes(1);
    assert_eq!(scene.queued(7, "erin", 8), NONE);
    assert_eq!(scene.ended(6), NONE);
    assert_eq!(scene.ended(5), [7]);
}

#[test]
fn a_started_run_is_handed_over_only_into_a_group_that_has_room_for_it() {
    let mut scene = Scene::with_slots(9);
    let groups = vec![Group { name: "ci".into(), slots: 9, most: SLOT }];
    let bob = || Owner { groups: groups.clone(), ..member("bob", 8) };
    assert_eq!(scene.queued(1, "alice", 8), [1]);
    scene.passes(100);
    assert_eq!(
        scene.happens(Event::Queued { run: 2, owner: bob(), asked: Class::Bulk.into(), size: HALF }),
        [2]
    );
    assert_eq!(scene.happens(Event::HandedOver { run: 1, owner: bob() }), NONE);
    assert_eq!(scene.charged_to(1), "alice");
    scene.ended(2);
    scene.happens(Event::HandedOver { run: 1, owner: bob() });
    assert_eq!(scene.charged_to(1), "bob");
}

/// A free slot never waits for a run that cannot start: so who needs two groups can be passed by while one of them is full.
#[test]
fn a_slot_of_a_group_is_not_kept_for_a_member_whose_other_group_is_full() {
    let mut scene = Scene::with_slots(8);
    let (one, two) = (in_groups("bob", &[("one", 1)]), in_groups("carol", &[("two", 1)]));
    assert_eq!(scene.queued_by(1, one.clone(), Class::Bulk), [1]);
    assert_eq!(scene.queued_by(2, two, Class::Bulk), [2]);
    assert_eq!(scene.queued_by(3, in_groups("alice", &[("one", 1), ("two", 1)]), Class::Bulk), NONE);
    assert_eq!(scene.queued_by(4, one, Class::Bulk), NONE);
    scene.passes(60);
    assert_eq!(scene.ended(1), [4]);
    scene.passes(60);
    assert_eq!(scene.ended(2), NONE);
    assert_eq!(scene.ended(4), [3]);
}

#[test]
fn interactive_goes_before_bulk_within_a_member_and_not_before_other_members() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(0, "zoe", 1), [0]);
    for run in 1..=3 {
        scene.queued_by(run, member("alice", 8), Class::Bulk);
        scene.queued_by(10 + run, member("alice", 8), Class::Interactive);
        scene.queued_by(20 + run, member("bob", 8), Class::Bulk);
    }
    assert_eq!(scene.order(0, 9), [11, 21, 12, 22, 13, 23, 1, 2, 3]);
}

#[test]
fn bulk_that_has_waited_for_long_takes_turns_with_interactive_runs() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(0, "alice", 8), [0]);
    (1..=3).for_each(|run| drop(scene.queued_by(run, member("alice", 8), Class::Bulk)));
    (11..=30).for_each(|run| drop(scene.queued(run, "alice", 8)));
    // Ten minutes of interactive runs, then turns.
    assert_eq!(scene.order(0, 15), [11, 12, 13, 14, 15, 16, 17, 18, 19, 1, 20, 2, 21, 3, 22]);
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
    assert_eq!(scene.happens(Event::Box { slots: 8, slot: SLOT, most: Size::ALL }), NONE);
    // The runs still start in the order in which they came.
    assert_eq!(scene.ended(1), [2]);
    assert_eq!(scene.has("alice", 4), [3, 4]);
}

#[test]
fn a_run_that_is_handed_over_while_it_waits_waits_behind_the_runs_of_its_new_owner() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 1), [1]);
    assert_eq!(scene.queued(2, "alice", 1), NONE);
    assert_eq!(scene.queued(3, "bob", 1), NONE);
    assert_eq!(scene.handed_over(2, "bob", 1), NONE);
    assert_eq!(scene.charged_to(2), "bob");
    assert_eq!(scene.ended(1), [3]);
    assert_eq!(scene.ended(3), [2]);
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
fn a_build_is_not_charged_to_a_new_owner_who_has_used_more() {
    let mut scene = Scene::with_slots(2);
    assert_eq!(scene.queued(1, "bob", 1), [1]);
    scene.passes(600);
    assert_eq!(scene.queued(2, "alice", 1), [2]);
    assert_eq!(scene.ended(1), NONE);
    assert_eq!(scene.handed_over(2, "bob", 1), NONE);
    assert_eq!(scene.charged_to(2), "alice");
    scene.passes(601);
    assert_eq!(scene.handed_over(2, "bob", 1), NONE);
    assert_eq!(scene.charged_to(2), "bob");
}

#[test]
fn a_run_that_is_handed_over_leaves_what_it_took_with_its_first_owner() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 8), [1]);
    scene.passes(600);
    assert_eq!(scene.handed_over(1, "bob", 8), NONE);
    scene.passes(60);
    // Alice asked first, and has used ten times as much.
    assert_eq!(scene.queued(2, "alice", 8), NONE);
    assert_eq!(scene.queued(3, "bob", 8), NONE);
    assert_eq!(scene.order(1, 2), [3, 2]);
}

#[test]
fn usage_is_compared_in_the_same_way_after_weeks() {
    let mut scene = Scene::with_slots(1);
    assert_eq!(scene.queued(1, "alice", 8), [1]);
    scene.passes(3600);
    assert_eq!(scene.ended(1), NONE);
    // Longer than time is counted from one base.
    assert_eq!(scene.queued(2, "carol", 8), [2]);
    scene.passes(40 * 24 * 3600);
    for (run, name) in [(3, "carol"), (4, "alice"), (5, "bob")] {
        assert_eq!(scene.queued(run, name, 8), NONE);
    }
    assert_eq!(scene.order(2, 3), [5, 4, 3]);
}

#[test]
fn members_without_runs_are_forgotten_when_they_would_come_back_to_the_same_place() {
    let mut scene = Scene::with_slots(1);
    scene.has("nobody", 3);
    scene.queued(1, "alice", 1);
    scene.queued(2, "alice", 1);
    scene.queued_by(3, in_groups("bob", &[("ci", 1)]), Class::Interactive);
    assert_eq!(scene.admission.tree.groups(), 1);
    scene.handed_over(1, "carol", 1);
    scene.handed_over(3, "carol", 1);
    let names = |scene: &Scene| scene.admission.members().count();
    assert_eq!(names(&scene), 2);
    scene.passes(3600);
    (1..4).for_each(|run| drop(scene.ended(run)));
    assert_eq!(names(&scene), 0);
    assert!(scene.admission.runs.is_empty() && scene.admission.started == 0);
    assert!(scene.admission.tree.is_known("carol"));
    // Dave is ahead of everybody by more than the credit, and the next to wait would be, too.
    assert_eq!(scene.queued(4, "dave", 1), [4]);
    scene.passes(2 * 3600);
    assert_eq!(scene.queued(5, "dave", 1), NONE);
    assert_eq!(scene.ended(4), [5]);
    scene.passes(3600);
    assert_eq!(scene.ended(5), NONE);
    assert!(!scene.admission.tree.is_known("carol") && scene.admission.tree.is_known("dave"));
    assert_eq!(scene.admission.tree.groups(), 0);
}

#[test]
fn a_run_of_an_earlier_process_has_its_slots_and_gives_them_back() {
    let mut scene = Scene::with_slots(2);
    let goes_on = |run, slots| Event::GoesOn { run, owner: member("alice", slots), alone: false, size: SLOT };
    assert_eq!(scene.happens(goes_on(1, 1)), NONE);
    assert_eq!(scene.admission.kept_by(1), None);
    assert_eq!(scene.queued(2, "alice", 1), NONE);
    assert_eq!(scene.admission.kept_by(2), Some(Full::Member));
    assert_eq!(scene.queued(3, "bob", 1), [3]);
    // More than the box has, as after its slots became fewer.
    assert_eq!(scene.happens(goes_on(4, 8)), NONE);
    assert_eq!(scene.ended(1), NONE);
    assert_eq!(scene.ended(3), [2]);
    assert_eq!((scene.ended(4), scene.ended(2)), (vec![], vec![]));
}
