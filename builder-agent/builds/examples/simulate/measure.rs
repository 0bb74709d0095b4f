//! What a run of the simulator is judged by: waits, shares, and how busy the box was.

use super::workload::{SLOT, Workload};

/// After so long without a build, in milliseconds, the next build of a member is a first one.
const AWAY: u64 = 3_600_000;

/// A member counts as saturated, for shares, after so many slot-milliseconds of what all saturated members got.
const SHARE_FROM: f64 = 3_600_000.0;

#[derive(Debug, Default, Clone)]
struct Account {
    waiting: usize,
    running: usize,
    /// When the last build ended.
    last: Option<u64>,
    /// What the member got while saturated, and what was due by weight, of what all saturated members got.
    got: f64,
    due: f64,
}

pub struct Measures<'a> {
    workload: &'a Workload,
    slots: usize,
    now: u64,
    accounts: Vec<Account>,
    queued: Vec<Option<u64>>,
    waits: Vec<Option<u64>>,
    is_first: Vec<bool>,
    running: usize,
    busy: u64,
    last_arrival: u64,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Jain's index; `None` if there were not two saturated members at any time.
    pub fairness: Option<f64>,
    /// Seconds: the median and the 99th percentile.
    pub all: (f64, f64),
    pub light: (f64, f64),
    pub first: (f64, f64),
    pub utilisation: f64,
}

impl<'a> Measures<'a> {
    pub fn new(workload: &'a Workload, slots: usize) -> Self {
        let count = workload.builds.len();
        Self {
            workload,
            slots,
            now: 0,
            accounts: vec![Account::default(); workload.members.len()],
            queued: vec![None; count],
            waits: vec![None; count],
            is_first: vec![false; count],
            running: 0,
            busy: 0,
            last_arrival: workload.requests.last().map_or(0, |request| request.at),
        }
    }

    /// Part of a slot that a build of this member takes.
    fn part(&self, member: usize) -> f64 {
        f64::from(self.workload.members[member].size.vcpus) / f64::from(SLOT.vcpus)
    }

    /// Accounts for the time until `at`.
    pub fn advance_to(&mut self, at: u64) {
        let time = at - self.now;
        self.busy += self.running as u64 * (at.min(self.last_arrival).saturating_sub(self.now));
        self.now = at;
        if time == 0 {
            return;
        }
        // Saturated: could fill the box alone.
        let full =
            |account: &&Account| account.waiting > 0 && account.waiting + account.running >= self.slots;
        let members = || self.accounts.iter().enumerate().filter(|(_, account)| full(account));
        let saturated: Vec<usize> = members().map(|(n, _)| n).collect();
        if saturated.len() < 2 {
            return;
        }
        let rate = |n: usize| self.accounts[n].running as f64 * self.part(n);
        let weight = |n: usize| f64::from(self.workload.members[n].weight);
        let (rates, weights) = saturated.iter().fold((0.0, 0.0), |(r, w), n| (r + rate(*n), w + weight(*n)));
        let got: Vec<(usize, f64, f64)> =
            saturated.iter().map(|n| (*n, rate(*n), rates * weight(*n) / weights)).collect();
        for (n, got, due) in got {
            self.accounts[n].got += got * time as f64;
            self.accounts[n].due += due * time as f64;
        }
    }

    pub fn queued(&mut self, build: usize, at: u64) {
        assert!(self.queued[build].replace(at).is_none(), "queued twice");
        let account = &mut self.accounts[self.workload.builds[build].member];
        let is_idle = account.waiting + account.running == 0;
        self.is_first[build] = is_idle && account.last.is_none_or(|last| at - last >= AWAY);
        account.waiting += 1;
    }

    pub fn started(&mut self, build: usize, at: u64) {
        let queued = self.queued[build].expect("a build starts after it was queued");
        assert!(self.waits[build].replace(at - queued).is_none(), "started twice");
        let account = &mut self.accounts[self.workload.builds[build].member];
        account.waiting -= 1;
        account.running += 1;
        self.running += 1;
    }

    pub fn ended(&mut self, build: usize, at: u64) {
        let account = &mut self.accounts[self.workload.builds[build].member];
        account.running -= 1;
        account.last = Some(at);
        self.running -= 1;
    }

    pub fn summary(&self) -> Summary {
        let is_light = self.light();
        let member = |build: usize| self.workload.builds[build].member;
        let shares: Vec<f64> = self
            .accounts
            .iter()
            .filter(|account| account.due >= SHARE_FROM)
            .map(|account| account.got / account.due)
            .collect();
        let capacity = self.last_arrival * self.slots as u64;
        Summary {
            fairness: (shares.len() > 1).then(|| jain(&shares)),
            all: self.waits_of(|_| true),
            light: self.waits_of(|build| is_light[member(build)]),
            first: self.waits_of(|build| self.is_first[build]),
            utilisation: self.busy as f64 / capacity.max(1) as f64,
        }
    }

    /// The nine tenths of the members with the least work.
    fn light(&self) -> Vec<bool> {
        let mut work = vec![0; self.accounts.len()];
        self.workload.builds.iter().for_each(|build| work[build.member] += build.millis);
        let mut order: Vec<usize> = (0..work.len()).collect();
        order.sort_by_key(|n| (work[*n], *n));
        let mut light = vec![false; work.len()];
        order[..work.len() * 9 / 10].iter().for_each(|n| light[*n] = true);
        light
    }

    fn waits_of(&self, counts: impl Fn(usize) -> bool) -> (f64, f64) {
        let waits = self.waits.iter().enumerate().filter(|(build, _)| counts(*build));
        let mut waits: Vec<u64> = waits.filter_map(|(_, wait)| *wait).collect();
        waits.sort_unstable();
        let at = |part: f64| {
            let rank = (part * waits.len() as f64).ceil() as usize;
            waits.get(rank.saturating_sub(1)).map_or(0.0, |wait| *wait as f64 / 1000.0)
        };
        (at(0.5), at(0.99))
    }
}

/// 1 if all are equal, 1/n if one has all (Jain, Chiu, Hawe: A Quantitative Measure of Fairness, 1984).
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}
