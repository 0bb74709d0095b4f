//! The rows that sessions, builds and roots need. They stay.
//!
//! What a member needs is looked up in that member's own layer and the Verified one, so the needs of one member keep
//! nothing of another. The needs are closed: with a path comes all that it refers to.
//!
//! When room is short, the needs of one member count only up to a part. The views of one payer (a member, and the holders
//! of the member's tickets) have one part together.
//! Commits wait meanwhile, so each row is looked at once for a payer, however many needs lead to it.

use std::collections::btree_set::Iter;
use std::collections::{BTreeMap, HashMap, HashSet};

use nix_derivation::StorePath;

use crate::index::holds::Needs;
use crate::index::memory::{Entry, Layer, Memory};
use crate::types::Member;

/// The needed rows of all members.
#[derive(Default)]
pub(super) struct Needed<'a> {
    pub(super) verified: HashSet<&'a StorePath>,
    claims: HashMap<&'a Member, HashSet<&'a StorePath>>,
}

/// What is known about a row in a [`Walk`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Some of its references are not decided yet.
    Open,
    Needed,
    /// It does not fit, or something that it refers to does not. It never fits later: what is needed only grows.
    TooMuch,
}

/// One member's view, and what it needs.
struct Side<'a> {
    member: Option<&'a Member>,
    layer: Option<&'a Layer>,
    claims: HashMap<&'a StorePath, State>,
}

/// The needs of the views of one payer, up to `most` bytes.
struct Walk<'a> {
    verified_layer: &'a Layer,
    most: u64,
    bytes: u64,
    verified: HashMap<&'a StorePath, State>,
    sides: Vec<Side<'a>>,
}

/// A row that a view shows.
#[derive(Clone, Copy)]
struct Shown<'a> {
    side: usize,
    is_verified: bool,
    entry: &'a Entry,
}

/// A row whose references are being decided.
struct Step<'a> {
    shown: Shown<'a>,
    references: Iter<'a, StorePath>,
    fits: bool,
}

impl<'a> Walk<'a> {
    /// First what sessions hold and builds use, then roots, then leases from the newest to the oldest. A path counts after
    /// all that it refers to, so what counts is closed.
    fn of(memory: &'a Memory, views: &[&Needs], most: u64) -> Self {
        let side = |needs: &&Needs| {
            let (member, layer) = memory.claims_with_name(&needs.member).unzip();
            Side { member, layer, claims: HashMap::new() }
        };
        let sides = views.iter().map(side).collect();
        let mut walk =
            Self { verified_layer: memory.verified(), most, bytes: 0, verified: HashMap::new(), sides };
        for (side, needs) in views.iter().enumerate() {
            needs.held.iter().for_each(|path| walk.add(side, path));
        }
        for side in 0..views.len() {
            let roots = walk.sides[side].layer.into_iter().flat_map(|layer| layer.roots().values());
            roots.for_each(|path| walk.add(side, path));
        }
        for (side, needs) in views.iter().enumerate() {
            needs.leased.iter().for_each(|path| walk.add(side, path));
        }
        walk
    }

    fn shown(&self, side: usize, path: &StorePath) -> Option<Shown<'a>> {
        let verified = self.verified_layer.entry(path).map(|entry| Shown { side, is_verified: true, entry });
        let own = || Some(Shown { side, is_verified: false, entry: self.sides[side].layer?.entry(path)? });
        verified.or_else(own)
    }

    fn states(&mut self, shown: Shown<'a>) -> &mut HashMap<&'a StorePath, State> {
        match shown.is_verified {
            true => &mut self.verified,
            false => &mut self.sides[shown.side].claims,
        }
    }

    /// The state of a row that was met before; else it is open now.
    fn meet(&mut self, shown: Shown<'a>) -> Option<State> {
        let (path, states) = (&shown.entry.info.path, self.states(shown));
        let known = states.get(path).copied();
        if known.is_none() {
            states.insert(path, State::Open);
        }
        known
    }

    /// Decides about `path` and all that it refers to. Where something does not fit, what is above is not looked at further.
    fn add(&mut self, side: usize, path: &StorePath) {
        let step = |shown: Shown<'a>| {
            let references = shown.entry.info.references.iter();
            Step { shown, references, fits: true }
        };
        let Some(first) = self.shown(side, path) else { return };
        let mut steps = match self.meet(first) {
            None => vec![step(first)],
            Some(_) => return,
        };
        while let Some(last) = steps.last_mut() {
            let Step { shown: Shown { side, entry, .. }, .. } = *last;
            if last.fits
                && let Some(reference) = last.references.next()
            {
                if *reference == entry.info.path {
                    continue;
                }
                let Some(shown) = self.shown(side, reference) else { continue };
                match self.meet(shown) {
                    None => steps.push(step(shown)),
                    Some(State::Needed) => {}
                    // References that go in a circle are made up: without a limit they are needed like others.
                    Some(State::Open) if self.most == u64::MAX => {}
                    Some(State::Open | State::TooMuch) => last.fits = false,
                }
                continue;
            }
            let Some(Step { shown, fits, .. }) = steps.pop() else { break };
            let bytes = self.bytes.saturating_add(shown.entry.size);
            let state = match fits && bytes <= self.most {
                true => State::Needed,
                false => State::TooMuch,
            };
            if state == State::Needed {
                self.bytes = bytes;
            } else if let Some(above) = steps.last_mut() {
                above.fits = false;
            }
            self.states(shown).insert(&shown.entry.info.path, state);
        }
    }
}

/// The largest part of `all` for each such that nobody gets more than they need, and what some do not need the others get.
fn fair_part(all: u64, mut needs: Vec<u64>) -> u64 {
    needs.sort_unstable();
    let (mut left, mut rest) = (all, needs.len() as u64);
    for need in needs {
        let part = left / rest;
        if need > part {
            return part;
        }
        (left, rest) = (left - need, rest - 1);
    }
    u64::MAX
}

impl<'a> Needed<'a> {
    /// Of everybody: of those in `needs`, who have sessions or builds, and of those who have roots. With `together`, the
    /// needs of one payer count up to an equal part of so many bytes; what some do not need of theirs is for the others.
    pub(super) fn of_all(memory: &'a Memory, needs: &[Needs], together: Option<u64>) -> Self {
        let here: HashSet<&Member> = needs.iter().map(|needs| &needs.member).collect();
        let away =
            memory.claims().filter(|(member, layer)| !here.contains(member) && !layer.roots().is_empty());
        let away: Vec<Needs> = away.map(|(member, _)| Needs::none(member)).collect();
        let views: Vec<&Needs> = needs.iter().chain(&away).collect();
        let mut needed = Self::default();
        let Some(together) = together else {
            needed.add(Walk::of(memory, &views, u64::MAX));
            return needed;
        };
        let mut by_payer: BTreeMap<&Member, Vec<&Needs>> = BTreeMap::new();
        for view in views {
            by_payer.entry(memory.payer_of(&view.member)).or_default().push(view);
        }
        let walks: Vec<_> =
            by_payer.into_values().map(|views| (Walk::of(memory, &views, u64::MAX), views)).collect();
        let part = fair_part(together, walks.iter().map(|(walk, _)| walk.bytes).collect());
        for (walk, views) in walks {
            needed.add(if walk.bytes <= part { walk } else { Walk::of(memory, &views, part) });
        }
        needed
    }

    /// What these views need, without a limit.
    pub(super) fn of_some(memory: &'a Memory, needs: &[Needs]) -> Self {
        let mut needed = Self::default();
        needed.add(Walk::of(memory, &needs.iter().collect::<Vec<_>>(), u64::MAX));
        needed
    }

    fn add(&mut self, walk: Walk<'a>) {
        let counts = |(path, state): (&'a StorePath, State)| (state == State::Needed).then_some(path);
        self.verified.extend(walk.verified.into_iter().filter_map(counts));
        for Side { member, claims, .. } in walk.sides {
            let Some(member) = member else { continue };
            self.claims.entry(member).or_default().extend(claims.into_iter().filter_map(counts));
        }
    }

    /// Those of this layer.
    pub(super) fn of(&self, layer: Option<&Member>) -> &HashSet<&'a StorePath> {
        static NONE: std::sync::LazyLock<HashSet<&'static StorePath>> =
            std::sync::LazyLock::new(HashSet::new);
        match layer {
            None => &self.verified,
            Some(member) => self.claims.get(member).unwrap_or(&NONE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_not_needed_is_for_the_others() {
        assert_eq!(fair_part(100, vec![]), u64::MAX);
        assert_eq!(fair_part(100, vec![50, 50]), u64::MAX);
        assert_eq!(fair_part(100, vec![90, 90]), 50);
        assert_eq!(fair_part(100, vec![10, 20, 90]), 70);
        assert_eq!(fair_part(100, vec![0, 200]), 100);
        assert_eq!(fair_part(0, vec![1, 1]), 0);
    }
}
