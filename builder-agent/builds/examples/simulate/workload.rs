//! The workloads: who asks for what, when, and how long each build takes.
//!
//! Shapes are those of published models; the numbers of a community's box are not published. Each shape has the same
//! number of builds, and arrivals are spread so that the box has work for [`LOAD`] of its time: with the daily cycle,
//! hours of a full queue and hours of free slots.

use builds::schedule::admit::Size;

use super::random::{Random, cumulative};

/// Work that arrives, as a part of what the box can do.
const LOAD: f64 = 0.85;
/// Longest build in seconds.
const LONGEST: f64 = 4.0 * 3600.0;
const DAY: f64 = 86_400.0;
/// Members of the shape with continuous integration who are machines.
const MACHINES: usize = 5;

pub const SLOT: Size = Size { vcpus: 4, memory_mib: 8192 };

#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub members: usize,
    pub builds: usize,
    pub slots: usize,
    pub seed: u64,
}

pub struct Member {
    pub weight: u32,
    /// Of each of the member's builds.
    pub size: Size,
}

pub struct Build {
    pub member: usize,
    pub millis: u64,
    /// Builds of the same request that were asked for before.
    pub before: u64,
    /// Asked for in a call of its own, as with `--builders`.
    pub alone: bool,
    /// Builds that must end before.
    pub after: Vec<usize>,
}

/// Builds with these numbers are asked for at one time.
pub struct Request {
    pub at: u64,
    pub builds: std::ops::Range<usize>,
}

pub struct Workload {
    pub members: Vec<Member>,
    pub builds: Vec<Build>,
    pub requests: Vec<Request>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Jobs,
    Sessions,
    Graphs,
    Integration,
    Flood,
}

impl Shape {
    pub const ALL: [Self; 5] = [Self::Jobs, Self::Sessions, Self::Graphs, Self::Integration, Self::Flood];

    pub fn title(self) -> &'static str {
        match self {
            Self::Jobs => "Single jobs (Lublin and Feitelson)",
            Self::Sessions => "Sessions",
            Self::Graphs => "Dependency graphs",
            Self::Integration => "Continuous integration",
            Self::Flood => "Flood",
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Jobs => "One build per request. Times are hyper-gamma, arrivals follow the daily cycle.",
            Self::Sessions => "Requests of some builds (geometric, 6 on average). Times are log-normal.",
            Self::Graphs => {
                "Each request is a graph in layers, of 4 to 4000 builds (Pareto). A build is queued when its inputs are built."
            }
            Self::Integration => {
                "Five members are machines with 60 % of all builds, up to 2000 at once, each in a call of its own. The others work in sessions."
            }
            Self::Flood => {
                "One member asks for half of all builds in the first minute. The others work in sessions."
            }
        }
    }

    pub fn generate(self, setup: Setup) -> Workload {
        let random = Random(setup.seed ^ (self as u64) << 32);
        let mut new = Generator::new(setup, random);
        while new.workload.builds.len() < setup.builds {
            new.request(self);
        }
        new.finish()
    }
}

struct Generator {
    setup: Setup,
    random: Random,
    /// Who asks, by rank.
    activity: Vec<f64>,
    hours: Vec<f64>,
    workload: Workload,
    /// The requests that do not come at a time of the day.
    at_once: Vec<usize>,
}

impl Generator {
    fn new(setup: Setup, random: Random) -> Self {
        let member = |n: usize| Member {
            weight: if n % 10 == 7 { 2 } else { 1 },
            size: if n % 5 == 3 { Size { vcpus: 2, memory_mib: 4096 } } else { SLOT },
        };
        let members = (0..setup.members).map(member).collect();
        // Few users make most of the jobs: the activity of the n-th is about 1/n (Feitelson: Workload Modeling for Computer
        // Systems Performance Evaluation, 2015, chapters 2 and 8).
        let activity = cumulative((1..=setup.members).map(|rank| 1.0 / rank as f64));
        // The daily cycle of Lublin and Feitelson (The Workload on Parallel Supercomputers: Modeling the Characteristics of
        // Rigid Jobs, 2003): a gamma distribution over half-hours from 11:00 on; the night is its tail.
        let hours = cumulative((0..48).map(|half_hour| {
            let x = f64::from(if half_hour < 22 { half_hour + 48 } else { half_hour }) + 0.5;
            let (shape, scale) = (8.1737, 3.9631);
            x.powf(shape - 1.0) * (-x / scale).exp()
        }));
        let workload = Workload { members, builds: Vec::new(), requests: Vec::new() };
        Self { setup, random, activity, hours, workload, at_once: Vec::new() }
    }

    fn request(&mut self, shape: Shape) {
        let first = self.workload.builds.len();
        let left = self.setup.builds - first;
        match shape {
            Shape::Jobs => {
                let member = self.random.pick(&self.activity);
                let seconds = self.hyper_gamma();
                self.build(member, first, seconds, Vec::new());
            }
            Shape::Sessions => self.session(first, left, 0),
            Shape::Graphs => self.graph(first, left),
            Shape::Integration => {
                let by_machines = self.workload.builds.iter().filter(|build| build.member < MACHINES).count();
                match by_machines * 10 < first * 6 || first == 0 {
                    true => self.batch(first, left.min(self.setup.builds / 25)),
                    false => self.session(first, left, MACHINES),
                }
            }
            Shape::Flood => match first == 0 {
                true => {
                    self.at_once.push(0);
                    for _ in 0..self.setup.builds / 2 {
                        let seconds = self.of_a_package();
                        self.build(0, first, seconds, Vec::new());
                    }
                }
                false => self.session(first, left, 1),
            },
        }
        let builds = first..self.workload.builds.len();
        self.workload.requests.push(Request { at: 0, builds });
    }

    /// The times of interactive jobs of one processor in the model of Lublin and Feitelson: the logarithm of the seconds
    /// is one of two gamma distributions. Numbers are those of their program.
    fn hyper_gamma(&mut self) -> f64 {
        let log = match self.random.is(0.9156 - 0.0118) {
            true => self.random.gamma(3.8351, 0.6605),
            false => self.random.gamma(7.073, 0.6856),
        };
        log.exp()
    }

    /// Log-normal, as times in the Parallel Workloads Archive are when seen from afar (Feitelson 2015, chapter 3): most
    /// packages take a minute, some take hours.
    fn of_a_package(&mut self) -> f64 {
        self.random.log_normal(45.0, 1.5)
    }

    fn build(&mut self, member: usize, first: usize, seconds: f64, after: Vec<usize>) {
        let before = (self.workload.builds.len() - first) as u64;
        let millis = (seconds.clamp(1.0, LONGEST) * 1000.0) as u64;
        self.workload.builds.push(Build { member, millis, before, alone: false, after });
    }

    /// Some builds by a member who is not among the first.
    fn session(&mut self, first: usize, left: usize, not_first: usize) {
        let members = self.setup.members - not_first;
        let member = not_first + self.random.pick(&self.activity[..members]);
        let mut count = 1;
        while count < left && self.random.is(5.0 / 6.0) {
            count += 1;
        }
        for _ in 0..count {
            let seconds = self.of_a_package();
            self.build(member, first, seconds, Vec::new());
        }
    }

    /// Many builds of a machine: bags of tasks (Iosup and others: The Performance of Bags-of-Tasks in Large-Scale
    /// Distributed Systems, 2008).
    fn batch(&mut self, first: usize, most: usize) {
        let member = self.random.below(MACHINES);
        let count = (self.random.pareto(most as f64 / 20.0, 0.8) as usize).clamp(1, most);
        for _ in 0..count {
            let seconds = self.of_a_package();
            self.build(member, first, seconds, Vec::new());
        }
        self.workload.builds[first..].iter_mut().for_each(|build| build.alone = true);
    }

    /// Layers from many small leaves to one target; each build needs one to three of the layer before.
    fn graph(&mut self, first: usize, left: usize) {
        let member = self.random.pick(&self.activity);
        let most = left.min(self.setup.builds / 12).max(1);
        let count = (self.random.pareto(4.0, 0.9) as usize).min(most);
        let mut below = first..first;
        while self.workload.builds.len() - first < count {
            let start = self.workload.builds.len();
            let width = (count - (start - first)).div_ceil(3);
            for _ in 0..width {
                let seconds = self.of_a_package();
                let inputs = if below.is_empty() { 0 } else { 1 + self.random.below(3) };
                let mut after: Vec<usize> =
                    (0..inputs).map(|_| below.start + self.random.below(below.len())).collect();
                after.sort_unstable();
                after.dedup();
                self.build(member, first, seconds, after);
            }
            below = start..self.workload.builds.len();
        }
    }

    /// Spreads the requests over days.
    fn finish(mut self) -> Workload {
        let work: f64 = self.workload.builds.iter().map(|build| build.millis as f64 / 1000.0).sum();
        let days = work / (self.setup.slots as f64 * LOAD * DAY);
        for n in 0..self.workload.requests.len() {
            let (day, half_hour) = (self.random.unit() * days.ceil(), self.random.pick(&self.hours));
            let in_day = (half_hour as f64 + self.random.unit()) * 1800.0;
            // Less than whole days are a scale of their own: the last day is not shorter than the others.
            let at = (day.floor() * DAY + in_day) * days / days.ceil();
            self.workload.requests[n].at =
                if self.at_once.contains(&n) { 0 } else { 60_000 + (at * 1000.0) as u64 };
        }
        self.workload.requests.sort_by_key(|request| request.at);
        self.workload
    }
}
