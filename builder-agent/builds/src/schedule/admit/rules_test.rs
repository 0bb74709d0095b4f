//! The rules again, in the simplest form: lists, which are searched and summed up for every decision.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::admit_test::{SLOT, Scene};
use super::*;

/// An owner as the names from the outside in.
type Path = Vec<String>;

const SCALE: i128 = 1 << 20;

struct Run {
    id: RunId,
    path: Path,
    class: Class,
    /// Asked for alone, and interactive.
    is_alone: bool,
    size: Size,
    came: Instant,
    number: u64,
    started: Option<Instant>,
}

/// A run's time with one owner.
struct Charge {
    run: RunId,
    path: Path,
    /// Per level, from the outside in.
    rates: Vec<i128>,
    from: Instant,
    to: Option<(Instant, Duration)>,
}

struct Rules {
    base: Instant,
    slots: usize,
    /// What all started runs may take together.
    most: Size,
    /// Since when a member is passed by who would be next.
    passed: BTreeMap<Path, Instant>,
    runs: Vec<Run>,
    charges: Vec<Charge>,
    terms: BTreeMap<Path, Terms>,
    /// The limits of each group.
    groups: BTreeMap<Arc<str>, (usize, Size)>,
    /// The groups of each member.
    groups_of: BTreeMap<Path, BTreeSet<Arc<str>>>,
    lifts: BTreeMap<Path, i128>,
    floors: BTreeMap<Path, i128>,
    since: BTreeMap<Path, u64>,
    classes: BTreeMap<Path, Class>,
    last: u64,
    swept: Instant,
    /// Owners with a waiting run, and a free slot on each level from theirs inwards.
    ready: BTreeSet<Path>,
}

fn path(owner: &Owner) -> Path {
    vec![format!("member {}", owner.member.name), format!("key {}", owner.key.name)]
}

fn prefixes(path: &Path) -> impl DoubleEndedIterator<Item = Path> {
    (1..=path.len()).map(|n| path[..n].to_vec())
}

/// Milliseconds in an eighth of the half-life.
const STEP: i128 = HALF_LIFE.as_millis() as i128 / 8;

/// The worth of a millisecond in this step.
fn worth(step: i128) -> i128 {
    let within = (65_536.0 * (f64::from((step % 8) as u8) / 8.0).exp2()).round() as i128;
    within * (1 << (step / 8))
}

impl Rules {
    fn counted(&self, at: Instant) -> i128 {
        let millis = (at - self.base).as_millis() as i128;
        let full = millis / STEP;
        (0..full).map(|step| STEP * worth(step)).sum::<i128>() + millis % STEP * worth(full)
    }

    fn worth(&self, at: Instant) -> i128 {
        worth((at - self.base).as_millis() as i128 / STEP)
    }

    fn used(&self, owner: &Path, now: Instant) -> i128 {
        let below = self.charges.iter().filter(|charge| charge.path.starts_with(owner));
        let charged = below.map(|charge| {
            let (to, missing) = charge.to.unwrap_or((now, Duration::ZERO));
            let time = self.counted(to) - self.counted(charge.from);
            let missing = missing.as_millis() as i128 * self.worth(to);
            charge.rates[owner.len() - 1] * (time + missing)
        });
        charged.sum::<i128>() + self.lifts.get(owner).copied().unwrap_or(0)
    }

    fn floor(&self, owner: &[String]) -> i128 {
        self.floors.get(owner).copied().unwrap_or(0)
    }

    fn started(&self, owner: &Path) -> usize {
        self.charges.iter().filter(|charge| charge.to.is_none() && charge.path.starts_with(owner)).count()
    }

    fn has_room(&self, owner: &Path) -> bool {
        self.started(owner) < self.terms[owner].slots
    }

    fn started_in(&self, group: &Arc<str>) -> usize {
        let members = self.groups_of.iter().filter(|(_, groups)| groups.contains(group));
        members.map(|(member, _)| self.started(member)).sum()
    }

    fn groups(&self, owner: &Path) -> &BTreeSet<Arc<str>> {
        &self.groups_of[&owner[..1]]
    }

    /// Processors and memory of the started runs that are charged to such owners.
    fn taken(&self, is_in: impl Fn(&Path) -> bool) -> (u64, u64) {
        let started = self.runs.iter().filter(|run| run.started.is_some());
        let charged = |run: &&Run| {
            let open = self.charges.iter().find(|charge| charge.run == run.id && charge.to.is_none());
            open.is_some_and(|charge| is_in(&charge.path))
        };
        let add = |(vcpus, memory), size: Size| {
            (vcpus + u64::from(size.vcpus), memory + u64::from(size.memory_mib))
        };
        started.filter(charged).map(|run| run.size).fold((0, 0), add)
    }

    fn taken_in(&self, group: &Arc<str>) -> (u64, u64) {
        self.taken(|path| self.groups(path).contains(group))
    }

    /// Whether a run of this size is alone, or fits beside those that take so much.
    fn fits(size: Size, (vcpus, memory): (u64, u64), most: Size) -> bool {
        let vcpus_fit = vcpus + u64::from(size.vcpus) <= most.vcpus.into();
        let memory_fits = memory + u64::from(size.memory_mib) <= most.memory_mib.into();
        (vcpus, memory) == (0, 0) || vcpus_fit && memory_fits
    }

    fn group_has_room(&self, group: &Arc<str>, size: Size) -> bool {
        let (slots, most) = self.groups[group];
        self.started_in(group) < slots && Self::fits(size, self.taken_in(group), most)
    }

    /// Whether the owner may have a run of this size, too.
    fn has_room_for(&self, owner: &Path, size: Size) -> bool {
        let taken = self.taken(|path| path.starts_with(owner));
        self.has_room(owner) && Self::fits(size, taken, self.terms[owner].most)
    }

    fn box_has_room(&self, size: Size) -> bool {
        Self::fits(size, self.taken(|_| true), self.most)
    }

    /// Whether runs of this owner may start as far as the slots of the levels matter.
    fn has_slots(&self, owner: &Path) -> bool {
        prefixes(owner).all(|owner| self.has_room(&owner))
    }

    /// The next run of a member.
    fn next_of(&self, member: &Path, now: Instant) -> Option<usize> {
        let may =
            |run: &Run| run.started.is_none() && run.path.starts_with(member) && self.has_slots(&run.path);
        let mut left: Vec<usize> = (0..self.runs.len()).filter(|at| may(&self.runs[*at])).collect();
        left.first()?;
        let class = self.class(member, &left, now);
        left.retain(|at| self.runs[*at].class == class);
        let (key, _) = self.first(member, &left, now);
        left.retain(|at| self.runs[*at].path.starts_with(&key));
        left.into_iter().min_by_key(|at| self.runs[*at].number)
    }

    /// The members whose next run may start as far as they and every group of theirs matter.
    fn may_but_for_the_box(&self, now: Instant) -> BTreeSet<Path> {
        let waiting = self.runs.iter().filter(|run| run.started.is_none());
        let members: BTreeSet<Path> = waiting.map(|run| run.path[..1].to_vec()).collect();
        let may = |member: &Path| {
            let Some(next) = self.next_of(member, now) else { return false };
            let size = self.runs[next].size;
            self.has_room_for(member, size)
                && self.groups(member).iter().all(|group| self.group_has_room(group, size))
        };
        members.into_iter().filter(may).collect()
    }

    fn next_fits(&self, member: &Path, now: Instant) -> bool {
        self.next_of(member, now).is_some_and(|next| self.box_has_room(self.runs[next].size))
    }

    /// The member who would be next if the box had room for everything, if it has not.
    fn passed_by(&self, now: Instant) -> Option<Path> {
        let members = self.may_but_for_the_box(now);
        let is_its = |run: &Run| {
            run.started.is_none() && self.has_slots(&run.path) && members.contains(&run.path[..1])
        };
        let left: Vec<usize> = (0..self.runs.len()).filter(|at| is_its(&self.runs[*at])).collect();
        left.first()?;
        let (member, _) = self.first(&Path::new(), &left, now);
        (!self.next_fits(&member, now)).then_some(member)
    }

    /// Whether the box keeps its room for a member who has been passed by for long.
    fn is_reserved(&self, now: Instant) -> bool {
        let since = self.passed_by(now).and_then(|member| self.passed.get(&member));
        since.is_some_and(|since| now - *since >= RESERVE)
    }

    /// The members whose next run has room everywhere.
    fn may_start(&self, now: Instant) -> BTreeSet<Path> {
        let members = self.may_but_for_the_box(now);
        members.into_iter().filter(|member| self.next_fits(member, now)).collect()
    }

    /// Of the children of `owner` with these runs, the one to whom the slot goes, and the smallest usage.
    fn first(&self, owner: &Path, left: &[usize], now: Instant) -> (Path, i128) {
        let children: BTreeSet<Path> =
            left.iter().map(|at| self.runs[*at].path[..=owner.len()].to_vec()).collect();
        let floor = self.floor(owner);
        let used = |child: &Path| self.used(child, now).max(floor);
        let ahead = |child: &Path| {
            let running = self.charges.iter().filter(|c| c.to.is_none() && c.path.starts_with(child));
            let rate = running.map(|charge| charge.rates[child.len() - 1]).sum::<i128>();
            rate * ADVANCE.as_millis() as i128 * self.worth(now)
        };
        let rank = |child: &&Path| (used(child) + ahead(child), self.since[*child]);
        let first = children.iter().min_by_key(rank).expect("a child").clone();
        (first, children.iter().map(used).min().expect("a child"))
    }

    fn learn(&mut self, owner: &Owner) {
        let path = path(owner);
        self.groups.extend(owner.groups.iter().map(|group| (group.name.clone(), (group.slots, group.most))));
        let groups = owner.groups.iter().map(|group| group.name.clone()).collect();
        self.groups_of.insert(path[..1].to_vec(), groups);
        for (path, level) in prefixes(&path).zip([&owner.member, &owner.key]) {
            self.terms.insert(path, level.terms);
        }
    }

    fn queue(&mut self, mut run: Run, now: Instant) {
        self.last += 1;
        (run.number, run.came) = (self.last, now);
        for owner in prefixes(&run.path) {
            if !self.runs.iter().any(|other| other.started.is_none() && other.path.starts_with(&owner)) {
                self.since.insert(owner.clone(), run.number);
                self.classes.remove(&owner);
                self.passed.remove(&owner);
            }
        }
        self.runs.push(run);
    }

    fn begin(&mut self, run: RunId, path: Path, size: Size, now: Instant) {
        let parts = i128::from((size.vcpus * 1000).div_ceil(4).max((size.memory_mib * 1000).div_ceil(8192)));
        for owner in prefixes(&path) {
            let missing = self.floor(&owner[..owner.len() - 1]) - self.used(&owner, now);
            *self.lifts.entry(owner).or_default() += missing.max(0);
        }
        let rate = |owner: Path| parts * (SCALE / i128::from(self.terms[&owner].weight));
        let rates = prefixes(&path).map(rate).collect();
        self.charges.push(Charge { run, path, rates, from: now, to: None });
    }

    fn stop(&mut self, run: RunId, now: Instant, missing: Duration) {
        for charge in self.charges.iter_mut().filter(|charge| charge.run == run && charge.to.is_none()) {
            charge.to = Some((now, missing));
        }
    }

    fn hand_over(&mut self, id: RunId, owner: &Owner, now: Instant) {
        let Some(at) = self.runs.iter().position(|run| run.id == id) else { return };
        self.learn(owner);
        let (from, to) = (self.runs[at].path.clone(), path(owner));
        if from == to {
            return;
        }
        if self.runs[at].started.is_none() {
            let run = self.runs.remove(at);
            return self.queue(Run { path: to, ..run }, now);
        }
        let old: Vec<Path> = prefixes(&from).collect();
        let at_level = prefixes(&from).zip(prefixes(&to)).find(|(from, to)| from != to);
        let used = |owner: &Path| self.used(owner, now).max(self.floor(&owner[..owner.len() - 1]));
        let is_ahead = at_level.is_some_and(|(from, to)| used(&to) > used(&from));
        let mut groups = self.groups(&to).difference(self.groups(&from));
        if !is_ahead
            && prefixes(&to)
                .filter(|owner| !old.contains(owner))
                .all(|owner| self.has_room_for(&owner, self.runs[at].size))
            && groups.all(|group| self.group_has_room(group, self.runs[at].size))
        {
            self.stop(id, now, Duration::ZERO);
            self.begin(id, to.clone(), self.runs[at].size, now);
            self.runs[at].path = to;
        }
    }

    /// Among the waiting runs that may start.
    fn next(&mut self, now: Instant) -> Option<usize> {
        if let Some(member) = self.passed_by(now) {
            self.passed.entry(member).or_insert(now);
        }
        if self.is_reserved(now) {
            return None;
        }
        let members = self.may_start(now);
        let may = |run: &Run| {
            run.started.is_none() && self.has_slots(&run.path) && members.contains(&run.path[..1])
        };
        let mut left: Vec<usize> = (0..self.runs.len()).filter(|at| may(&self.runs[*at])).collect();
        let mut owner = Path::new();
        while left.first().is_some_and(|at| self.runs[*at].path != owner) {
            if owner.last().is_some_and(|name| name.starts_with("member")) {
                let class = self.class(&owner, &left, now);
                left.retain(|at| self.runs[*at].class == class);
                self.classes.insert(owner.clone(), class);
            }
            let (first, least) = self.first(&owner, &left, now);
            let credit = CREDIT.as_millis() as i128 * self.worth(now) * 1000 * SCALE;
            let floor = self.floor(&owner).max(least - credit);
            self.floors.insert(owner, floor);
            left.retain(|at| self.runs[*at].path.starts_with(&first));
            owner = first;
        }
        left.into_iter().min_by_key(|at| self.runs[*at].number)
    }

    fn class(&self, member: &Path, left: &[usize], now: Instant) -> Class {
        let runs = || left.iter().map(|at| &self.runs[*at]);
        let aged = runs().any(|run| run.class == Class::Bulk && now - run.came >= BULK_PATIENCE);
        let last = self.classes.get(member).copied().unwrap_or_default();
        match runs().any(|run| run.class == Class::Interactive) {
            true if aged && last == Class::Interactive => Class::Bulk,
            true => Class::Interactive,
            false => Class::Bulk,
        }
    }

    /// Once an hour, who has no runs and is at the floor comes back there, and all below are level again.
    fn sweep(&mut self, now: Instant) {
        if now - self.swept < Duration::from_secs(3600) {
            return;
        }
        self.swept = now;
        let all: Vec<Path> = self.terms.keys().cloned().collect();
        for owner in &all {
            let is_idle = !self.runs.iter().any(|run| run.path.starts_with(owner));
            if is_idle && self.used(owner, now) <= self.floor(&owner[..owner.len() - 1]) {
                for below in all.iter().filter(|path| path.starts_with(owner) && path != &owner) {
                    *self.lifts.entry(below.clone()).or_default() -= self.used(below, now);
                    self.floors.remove(below);
                }
                self.floors.remove(owner);
            }
        }
    }

    /// The class of a new run of this key, and whether it counts as one of those that were asked for alone.
    fn class_of(&self, asked: Asked, key: &Path) -> (Class, bool) {
        let of_key = self.runs.iter().filter(|run| run.is_alone && run.path == *key).count();
        match asked {
            Asked::As(class) => (class, false),
            Asked::Alone if of_key < ALONE => (Class::Interactive, true),
            Asked::Alone => (Class::Bulk, false),
        }
    }

    fn apply(&mut self, event: &Event, now: Instant) -> Vec<RunId> {
        self.sweep(now);
        match event {
            Event::Box { slots, most, .. } => (self.slots, self.most) = (*slots, *most),
            Event::Terms { owners } => {
                for owner in owners {
                    if self.runs.iter().any(|run| run.path[0] == path(owner)[0]) {
                        self.learn(owner);
                    }
                }
            }
            Event::Queued { run, owner, asked, size } => {
                self.learn(owner);
                let (path, size) = (path(owner), *size);
                let (class, is_alone) = self.class_of(*asked, &path);
                let run = Run { id: *run, path, class, is_alone, size, came: now, number: 0, started: None };
                self.queue(run, now);
            }
            Event::GoesOn { run, owner, alone, size } => {
                self.learn(owner);
                let (id, path, size, started) = (*run, path(owner), *size, Some(now));
                let asked = if *alone { Asked::Alone } else { Class::Bulk.into() };
                let (class, is_alone) = self.class_of(asked, &path);
                let run =
                    Run { id, path: path.clone(), class, is_alone, size, came: now, number: 0, started };
                self.runs.push(run);
                self.begin(id, path, size, now);
            }
            Event::HandedOver { run, owner } => self.hand_over(*run, owner, now),
            Event::Ended { run } => {
                if let Some(at) = self.runs.iter().position(|there| there.id == *run) {
                    let run = self.runs.remove(at);
                    let ran = run.started.map_or(Duration::ZERO, |started| now - started);
                    self.stop(run.id, now, SHORTEST.saturating_sub(ran));
                }
            }
        }
        for owner in self.ready_now().difference(&self.ready.clone()) {
            let missing = self.floor(&owner[..owner.len() - 1]) - self.used(owner, now);
            *self.lifts.entry(owner.clone()).or_default() += missing.max(0);
        }
        let mut starts = Vec::new();
        while self.runs.iter().filter(|run| run.started.is_some()).count() < self.slots
            && let Some(at) = self.next(now)
        {
            self.last += 1;
            self.runs[at].started = Some(now);
            let (id, path, size) = (self.runs[at].id, self.runs[at].path.clone(), self.runs[at].size);
            self.passed.remove(&path[..1]);
            self.since.extend(prefixes(&path).map(|owner| (owner, self.last)));
            self.begin(id, path, size, now);
            starts.push(id);
        }
        self.ready = self.ready_now();
        starts
    }

    /// Groups do not matter to it: who waits for the slot of a group begins to wait only once.
    fn ready_now(&self) -> BTreeSet<Path> {
        let waiting = self.runs.iter().filter(|run| run.started.is_none());
        let ready =
            waiting.flat_map(|run| prefixes(&run.path).rev().take_while(|owner| self.has_room(owner)));
        ready.collect()
    }

    /// Checks rules that hold under any policy.
    fn hold(&self, starts: &[RunId], now: Instant) -> Result<(), TestCaseError> {
        let busy = self.runs.iter().filter(|run| run.started.is_some()).count();
        prop_assert!(starts.is_empty() || busy <= self.slots, "more than the box has");
        for run in &self.runs {
            if starts.contains(&run.id) {
                let too_large = |(vcpus, memory): (u64, u64), most: Size| {
                    vcpus > most.vcpus.into() || memory > most.memory_mib.into()
                };
                prop_assert!(
                    busy == 1 || !too_large(self.taken(|_| true), self.most),
                    "more than the box has room for"
                );
                let over = |owner: &Path| {
                    let (started, Terms { slots, most, .. }) = (self.started(owner), self.terms[owner]);
                    let taken = self.taken(|path| path.starts_with(owner));
                    started > slots || started > 1 && too_large(taken, most)
                };
                prop_assert!(!prefixes(&run.path).any(|owner| over(&owner)), "more than {:?} has", run.path);
                let over = |group: &Arc<str>| {
                    let ((slots, most), started) = (self.groups[group], self.started_in(group));
                    started > slots || started > 1 && too_large(self.taken_in(group), most)
                };
                prop_assert!(!self.groups(&run.path).iter().any(over), "more than a group of {:?}", run.path);
            }
        }
        prop_assert!(
            busy >= self.slots || self.may_start(now).is_empty() || self.is_reserved(now),
            "{:?} may start",
            self.may_start(now)
        );
        Ok(())
    }
}

/// An owner by numbers: a member has two keys. The limits of groups, and who is in which, change with each owner.
fn owner(who: usize, weight: u32, slots: usize, groups: usize) -> Owner {
    let name = ["alice", "bob", "carol", "dave", "erin"][who % 5];
    let level = |name: &str, terms: Terms| Level::new(&name.into(), terms);
    let limits_of_member = groups / 4;
    let in_group = |n: &usize| (groups >> n) % 2 == 1;
    let group = |n: usize| {
        let limits = groups / 8 + n;
        let most = [Size::ALL, SLOT, Size { vcpus: 5, memory_mib: 9 << 10 }][limits % 3];
        Group { name: ["ci", "students", "all"][n].into(), slots: limits % 4, most }
    };
    let groups = (0..3).filter(in_group).map(group).collect();
    let key = level(["laptop", "phone"][who / 5 % 2], Terms { weight, ..Terms::default() });
    let most = [Size::ALL, Size { vcpus: 6, memory_mib: 17 << 10 }, SLOT][limits_of_member % 3];
    Owner { groups, member: level(name, Terms { weight, slots, most }), key }
}

const SIZES: [Size; 3] = [SLOT, Size { vcpus: 1, memory_mib: 1024 }, Size { vcpus: 2, memory_mib: 8192 }];

/// Numbers for events: a new run gets the next number; other events choose among existing runs.
fn events() -> impl Strategy<Value = Vec<(u8, usize, u32, usize, usize, u64)>> {
    // Mostly seconds, sometimes longer than bulk has patience, or than an owner is remembered.
    let pause = prop_oneof![4 => 0..90_000u64, 1 => 0..1_500_000u64, 1 => 0..90_000_000u64];
    let event = (0..14u8, 0..10usize, 1..4u32, 0..5usize, any::<usize>(), pause);
    prop::collection::vec(event, 1..90)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn runs_start_as_the_rules_say_and_limits_hold_and_no_slot_stays_free_while_a_run_may_start(script in events()) {
        let mut scene = Scene::with_slots(3);
        let (floors, since) = Default::default();
        let ready = BTreeSet::new();
        let (runs, charges, terms, groups, groups_of, lifts, classes) = Default::default();
        let swept = scene.now;
        let mut rules =
            Rules { ready, swept, base: scene.now, slots: 3, most: Size::ALL, passed: BTreeMap::new(), runs, charges, terms, groups, groups_of, lifts, floors, since, classes, last: 0 };
        let (mut next, mut there) = (0, Vec::new());
        for (kind, who, weight, slots, which, pause) in script {
            scene.now += Duration::from_millis(pause);
            let run = there.get(which % there.len().max(1)).copied();
            let owner = owner(who, weight, slots, which % 32);
            let event = match (kind, run) {
                (0..6, _) | (_, None) => {
                    next += 1;
                    there.push(next);
                    let ways = [Class::Interactive.into(), Class::Bulk.into(), Asked::Alone, Asked::Alone];
                    Event::Queued { run: next, owner, asked: ways[which / 3 % 4], size: SIZES[which % 3] }
                }
                (6..10, Some(run)) => {
                    there.retain(|other| *other != run);
                    Event::Ended { run }
                }
                (10..12, Some(run)) => Event::HandedOver { run, owner },
                (12, _) => Event::Terms { owners: vec![owner, self::owner(who + 1, weight, slots, which % 29)] },
                _ => {
                    let most = [Size::ALL, Size { vcpus: 9, memory_mib: 17 << 10 }, SLOT][which % 3];
                    Event::Box { slots, slot: SLOT, most }
                }
            };
            let starts = scene.happens(event.clone());
            prop_assert_eq!(&starts, &rules.apply(&event, scene.now), "at {:?}", event);
            rules.hold(&starts, scene.now)?;
            for run in &rules.runs {
                let member = scene.admission.charged_to(run.id).expect("there");
                prop_assert_eq!(&format!("member {member}"), &run.path[0]);
            }
        }
        // No run is lost: with room for all of them, all start.
        let mut started = rules.runs.iter().filter(|run| run.started.is_some()).count();
        started += scene.happens(Event::Box { slots: there.len(), slot: SLOT, most: Size::ALL }).len();
        let owners = (0..5).map(|who| owner(who, 1, usize::MAX, 0)).collect();
        started += scene.happens(Event::Terms { owners }).len();
        prop_assert_eq!(started, there.len());
    }
}
