//! The order of the builds of one request: which derivations may start, and which fail because of another one.
//!
//! A state machine without I/O. The caller starts the derivations that [`Order::next`] returns, and reports how each
//! one ended.
//! Not here: how many builds run at once (`targets`, and the scheduler for all requests together).

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::StorePath;

/// The builds of a request that have not started, and the dependencies between them.
#[derive(Debug)]
pub(super) struct Order {
    keep_going: bool,
    /// By derivation, the inputs that it still waits for.
    waiting: BTreeMap<StorePath, BTreeSet<StorePath>>,
    /// By input, all derivations that need it.
    needed_by: BTreeMap<StorePath, BTreeSet<StorePath>>,
    /// The last derivation starts first.
    ready: Vec<StorePath>,
    /// All derivations that failed, for any reason.
    failed: BTreeSet<StorePath>,
    stopped: bool,
}

/// The consequences of failures.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Consequences {
    /// The failed derivations that others of the request need, in the order in which they are reported.
    pub needed: Vec<StorePath>,
    /// Derivations that fail because of those, also indirectly, each with the number of its inputs that failed.
    pub dependents: Vec<(StorePath, usize)>,
}

impl Order {
    /// `builds`: the derivations to build, each with those that must be built before.
    pub fn new(builds: impl IntoIterator<Item = (StorePath, BTreeSet<StorePath>)>, keep_going: bool) -> Self {
        let mut waiting = BTreeMap::new();
        let mut needed_by: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
        let mut ready = Vec::new();
        for (drv, inputs) in builds {
            for input in &inputs {
                needed_by.entry(input.clone()).or_default().insert(drv.clone());
            }
            match inputs.is_empty() {
                true => ready.push(drv),
                false => drop(waiting.insert(drv, inputs)),
            }
        }
        // The first to start is the first in the order of the plan.
        ready.reverse();
        Self { keep_going, waiting, needed_by, ready, failed: BTreeSet::new(), stopped: false }
    }

    /// The number of derivations that have not started.
    pub fn left(&self) -> usize {
        self.waiting.len() + self.ready.len()
    }

    /// The number of derivations that failed, by themselves or because of another one.
    pub fn failures(&self) -> usize {
        self.failed.len()
    }

    /// Whether a failure ended the request: no other derivation starts, and running builds are no longer needed.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The next derivation to build.
    pub fn next(&mut self) -> Option<StorePath> {
        if self.stopped { None } else { self.ready.pop() }
    }

    /// Reports that the outputs of `drv` are valid.
    pub fn succeeded(&mut self, drv: &StorePath) {
        for user in self.needed_by.get(drv).into_iter().flatten() {
            if let Some(inputs) = self.waiting.get_mut(user) {
                inputs.remove(drv);
                if inputs.is_empty() {
                    self.waiting.remove(user);
                    self.ready.push(user.clone());
                }
            }
        }
    }

    /// Reports derivations that failed by themselves. Derivations that need them fail too.
    pub fn failed(&mut self, failed: impl IntoIterator<Item = StorePath>) -> Consequences {
        let mut consequences = Consequences::default();
        let mut direct: Vec<StorePath> = failed.into_iter().collect();
        self.failed.extend(direct.iter().cloned());
        while let Some(path) = direct.pop() {
            self.stopped |= !self.keep_going;
            if self.needed_by.contains_key(&path) {
                consequences.needed.push(path.clone());
            }
            let mut lost = vec![path];
            while let Some(input) = lost.pop() {
                for user in self.needed_by.get(&input).into_iter().flatten() {
                    let Some(inputs) = self.waiting.remove(user) else { continue };
                    let count = inputs.intersection(&self.failed).count();
                    self.failed.insert(user.clone());
                    consequences.dependents.push((user.clone(), count));
                    lost.push(user.clone());
                }
            }
        }
        consequences
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drv(n: u8) -> StorePath {
        StorePath::from_parts([n; 20], "x.drv").expect("a path")
    }

    fn order(builds: &[(u8, &[u8])], keep_going: bool) -> Order {
        let builds = builds.iter().map(|(n, inputs)| (drv(*n), inputs.iter().map(|n| drv(*n)).collect()));
        Order::new(builds, keep_going)
    }

    #[test]
    fn a_derivation_starts_when_its_last_input_is_there() {
        let mut order = order(&[(1, &[]), (2, &[]), (3, &[1, 2])], false);
        assert_eq!((order.next(), order.next(), order.next()), (Some(drv(1)), Some(drv(2)), None));
        order.succeeded(&drv(2));
        assert_eq!(order.next(), None);
        order.succeeded(&drv(1));
        assert_eq!((order.next(), order.left()), (Some(drv(3)), 0));
    }

    #[test]
    fn a_failure_fails_all_that_needs_it_however_indirectly() {
        let mut order = order(&[(1, &[]), (2, &[1]), (3, &[1, 2]), (4, &[3]), (5, &[])], true);
        assert_eq!(order.next(), Some(drv(1)));
        let consequences = order.failed([drv(1)]);
        assert_eq!(consequences.needed, [drv(1)]);
        assert_eq!(consequences.dependents, [(drv(2), 1), (drv(3), 2), (drv(4), 1)]);
        assert_eq!((order.next(), order.next(), order.left()), (Some(drv(5)), None, 0));
    }

    #[test]
    fn without_keep_going_nothing_starts_after_a_failure() {
        let mut order = order(&[(1, &[]), (2, &[]), (3, &[1])], false);
        assert_eq!(order.next(), Some(drv(1)));
        order.failed([drv(1)]);
        assert!(order.is_stopped());
        assert_eq!((order.next(), order.left()), (None, 1));
    }

    #[test]
    fn a_failure_that_nothing_needs_is_not_reported_apart_from_its_answer() {
        let mut order = order(&[(1, &[]), (2, &[])], true);
        assert_eq!(order.failed([drv(1)]), Consequences::default());
    }

    #[test]
    fn failures_known_before_all_count() {
        let mut order = order(&[(1, &[8, 9])], true);
        let consequences = order.failed([drv(8), drv(9)]);
        assert_eq!(consequences.needed, [drv(9), drv(8)]);
        assert_eq!(consequences.dependents, [(drv(1), 2)]);
    }

    #[test]
    fn derivations_that_need_each_other_never_start() {
        let mut order = order(&[(1, &[2]), (2, &[1])], true);
        assert_eq!((order.next(), order.left()), (None, 2));
    }

    proptest! {
        /// Each derivation starts after all its inputs, or fails because of one, or (without `keep_going`) is left.
        #[test]
        fn each_derivation_starts_or_fails_once(
            inputs in proptest::collection::vec(proptest::collection::btree_set(0_u8..20, 0..4), 1..20),
            bad in proptest::collection::btree_set(0_u8..20, 0..3),
            keep_going: bool,
        ) {
            let builds = inputs.iter().enumerate().map(|(n, inputs)| {
                // Inputs have lower numbers, so there is no cycle.
                (drv(n as u8), inputs.iter().filter(|i| usize::from(**i) < n).map(|i| drv(*i)).collect())
            });
            let builds: BTreeMap<StorePath, BTreeSet<StorePath>> = builds.collect();
            let bad: BTreeSet<StorePath> = bad.into_iter().map(drv).collect();
            let mut order = Order::new(builds.clone(), keep_going);
            let (mut good, mut failed) = (BTreeSet::new(), BTreeSet::new());
            while let Some(drv) = order.next() {
                prop_assert!(builds[&drv].is_subset(&good), "started before its inputs");
                if bad.contains(&drv) {
                    prop_assert!(failed.insert(drv.clone()));
                    for (dependent, count) in order.failed([drv]).dependents {
                        prop_assert!(count > 0 && count <= builds[&dependent].len());
                        prop_assert!(failed.insert(dependent));
                    }
                } else {
                    order.succeeded(&drv);
                    prop_assert!(good.insert(drv));
                }
            }
            prop_assert!(good.is_disjoint(&failed));
            prop_assert_eq!(order.is_stopped(), !keep_going && !failed.is_empty());
            prop_assert_eq!(good.len() + failed.len() + order.left(), builds.len());
            prop_assert!(order.is_stopped() || order.left() == 0);
        }
    }
}
