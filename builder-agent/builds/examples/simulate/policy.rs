//! The policies that are compared. `Fair` is the agent's own state machine; the others are as small as they can be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use builds::schedule::admit::{Admission, Asked, Class, Event, Owner, Terms};

use super::workload::{SLOT, Workload};

/// Takes in what happens, and returns the numbers of the builds that start.
pub trait Policy {
    fn queued(&mut self, build: usize, at: u64) -> Vec<usize>;
    fn ended(&mut self, build: usize, at: u64) -> Vec<usize>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Fair,
    FirstCome,
    RoundRobin,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Fair, Self::FirstCome, Self::RoundRobin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Fair => "fair (the agent)",
            Self::FirstCome => "first come, first served",
            Self::RoundRobin => "round robin",
        }
    }

    pub fn start(self, workload: &Workload, slots: usize) -> Box<dyn Policy + '_> {
        match self {
            Self::Fair => Box::new(Fair::new(workload, slots)),
            Self::FirstCome => Box::new(FirstCome { free: slots, line: VecDeque::new() }),
            Self::RoundRobin => {
                let lines = vec![VecDeque::new(); workload.members.len()];
                Box::new(RoundRobin { workload, free: slots, lines, turns: VecDeque::new() })
            }
        }
    }
}

struct Fair<'a> {
    workload: &'a Workload,
    admission: Admission,
    owners: Vec<Owner>,
    start: Instant,
}

impl<'a> Fair<'a> {
    fn new(workload: &'a Workload, slots: usize) -> Self {
        let owner = |(n, member): (usize, &super::workload::Member)| {
            let name: Arc<str> = format!("member {n}").into();
            let terms = Terms { weight: member.weight, ..Terms::default() };
            Owner::member(&name, terms)
        };
        let owners = workload.members.iter().enumerate().map(owner).collect();
        let (mut admission, start) = (Admission::default(), Instant::now());
        admission.handle(Event::Box { slots, slot: SLOT, most: SLOT.times(slots) }, start);
        Self { workload, admission, owners, start }
    }

    fn handle(&mut self, event: Event, at: u64) -> Vec<usize> {
        let starts = self.admission.handle(event, self.start + Duration::from_millis(at));
        starts.into_iter().map(|start| start.run as usize).collect()
    }
}

impl Policy for Fair<'_> {
    fn queued(&mut self, build: usize, at: u64) -> Vec<usize> {
        let it = &self.workload.builds[build];
        let (owner, size) = (self.owners[it.member].clone(), self.workload.members[it.member].size);
        let asked = match it.alone {
            true => Asked::Alone,
            false => Class::of_run_after(it.before).into(),
        };
        self.handle(Event::Queued { run: build as u64, owner, asked, size }, at)
    }

    fn ended(&mut self, build: usize, at: u64) -> Vec<usize> {
        self.handle(Event::Ended { run: build as u64 }, at)
    }
}

struct FirstCome {
    free: usize,
    line: VecDeque<usize>,
}

impl FirstCome {
    fn start(&mut self) -> Vec<usize> {
        let starts: Vec<usize> = self.line.drain(..self.free.min(self.line.len())).collect();
        self.free -= starts.len();
        starts
    }
}

impl Policy for FirstCome {
    fn queued(&mut self, build: usize, _: u64) -> Vec<usize> {
        self.line.push_back(build);
        self.start()
    }

    fn ended(&mut self, _: usize, _: u64) -> Vec<usize> {
        self.free += 1;
        self.start()
    }
}

/// One build of each member in turn.
struct RoundRobin<'a> {
    workload: &'a Workload,
    free: usize,
    lines: Vec<VecDeque<usize>>,
    /// The members with waiting builds.
    turns: VecDeque<usize>,
}

impl RoundRobin<'_> {
    fn start(&mut self) -> Vec<usize> {
        let mut starts = Vec::new();
        while self.free > 0
            && let Some(member) = self.turns.pop_front()
        {
            starts.extend(self.lines[member].pop_front());
            if !self.lines[member].is_empty() {
                self.turns.push_back(member);
            }
            self.free -= 1;
        }
        starts
    }
}

impl Policy for RoundRobin<'_> {
    fn queued(&mut self, build: usize, _: u64) -> Vec<usize> {
        let member = self.workload.builds[build].member;
        if self.lines[member].is_empty() {
            self.turns.push_back(member);
        }
        self.lines[member].push_back(build);
        self.start()
    }

    fn ended(&mut self, _: usize, _: u64) -> Vec<usize> {
        self.free += 1;
        self.start()
    }
}
