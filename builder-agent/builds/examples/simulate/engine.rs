//! The simulated box: executes what a policy starts, on a clock of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::measure::Measures;
use super::policy::Policy;
use super::workload::Workload;

/// At one time ends come before arrivals, as on a box where both have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ends(usize),
    Arrives(usize),
}

struct Run<'a> {
    workload: &'a Workload,
    policy: Box<dyn Policy + 'a>,
    events: BinaryHeap<Reverse<(u64, What)>>,
    measures: Measures<'a>,
    slots: usize,
    busy: usize,
    waiting: usize,
    events_handled: u64,
}

/// Runs a workload to its last build. Also returns the number of events that the policy has handled.
///
/// # Panics
/// If the policy starts a build twice, or more builds than slots, or none while a slot is free and a build waits.
pub fn simulate<'a>(
    workload: &'a Workload,
    policy: Box<dyn Policy + 'a>,
    slots: usize,
) -> (Measures<'a>, u64) {
    let arrivals = workload.requests.iter().enumerate().map(|(n, it)| Reverse((it.at, What::Arrives(n))));
    let mut run = Run {
        workload,
        policy,
        events: arrivals.collect(),
        measures: Measures::new(workload, slots),
        slots,
        busy: 0,
        waiting: 0,
        events_handled: 0,
    };
    // Builds that need each build, and the number that each still needs.
    let mut needed_by = vec![Vec::new(); workload.builds.len()];
    let mut needs: Vec<usize> = workload.builds.iter().map(|build| build.after.len()).collect();
    for (n, build) in workload.builds.iter().enumerate() {
        build.after.iter().for_each(|input| needed_by[*input].push(n));
    }
    while let Some(Reverse((at, what))) = run.events.pop() {
        run.measures.advance_to(at);
        match what {
            What::Arrives(request) => {
                let ready = workload.requests[request].builds.clone().filter(|build| needs[*build] == 0);
                ready.for_each(|build| run.queue(build, at));
            }
            What::Ends(build) => {
                run.end(build, at);
                for next in &needed_by[build] {
                    needs[*next] -= 1;
                    if needs[*next] == 0 {
                        run.queue(*next, at);
                    }
                }
            }
        }
    }
    assert_eq!((run.busy, run.waiting), (0, 0), "builds are left");
    (run.measures, run.events_handled)
}

impl Run<'_> {
    fn queue(&mut self, build: usize, at: u64) {
        self.waiting += 1;
        self.measures.queued(build, at);
        let starts = self.policy.queued(build, at);
        self.start(&starts, at);
    }

    fn end(&mut self, build: usize, at: u64) {
        self.busy -= 1;
        self.measures.ended(build, at);
        let starts = self.policy.ended(build, at);
        self.start(&starts, at);
    }

    fn start(&mut self, starts: &[usize], at: u64) {
        self.events_handled += 1;
        for build in starts {
            self.busy += 1;
            self.waiting -= 1;
            self.measures.started(*build, at);
            self.events.push(Reverse((at + self.workload.builds[*build].millis, What::Ends(*build))));
        }
        assert!(self.busy <= self.slots, "more builds than slots");
        assert!(self.busy == self.slots || self.waiting == 0, "a slot is free and a build waits");
    }
}
