//! The rows that nobody needs, the least recently used first, and which of them go together.
//!
//! A path counts as used when something that refers to it was. So what refers to a path is never newer than the path, and
//! taking rows in the order of their ages takes referrers before, or together with, what they refer to.
//!
//! Commits wait while this is made and used. So it takes as long as there are rows and references, in whatever order they
//! refer to each other: references are looked up once.

use std::collections::HashMap;

use nix_derivation::StorePath;

use super::needed::Needed;
use crate::index::change::Change;
use crate::index::memory::{Entry, Layer, Memory};
use crate::types::Member;

/// Of the Verified layer, or of one member's.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) layer: Option<&'a Member>,
    pub(super) entry: &'a Entry,
}

impl<'a> Row<'a> {
    fn path(&self) -> &'a StorePath {
        &self.entry.info.path
    }

    /// Who is charged for it; `None`: the box.
    pub(super) fn payer(&self, memory: &'a Memory) -> Option<&'a Member> {
        self.layer.or(self.entry.payer.as_ref()).map(|member| memory.payer_of(member))
    }

    pub(super) fn drop(&self) -> Change {
        let path = self.path().clone();
        match self.layer {
            None => Change::DropVerified { path },
            Some(member) => Change::DropClaim { member: member.clone(), path },
        }
    }
}

/// Pairs of rows, by the first one.
struct Edges {
    /// Where the list of each row begins in `to`, and the end of the last one.
    begin: Vec<u32>,
    to: Vec<u32>,
}

impl Edges {
    fn new(rows: usize, pairs: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut begin = vec![0_u32; rows + 1];
        pairs.clone().for_each(|(from, _)| begin[from as usize + 1] += 1);
        (0..rows).for_each(|n| begin[n + 1] += begin[n]);
        let mut to = vec![0; begin[rows] as usize];
        let mut next = begin.clone();
        for (from, other) in pairs {
            let place = &mut next[from as usize];
            to[*place as usize] = other;
            *place += 1;
        }
        Self { begin, to }
    }

    fn of(&self, n: usize) -> impl Iterator<Item = usize> {
        self.to[self.begin[n] as usize..self.begin[n + 1] as usize].iter().map(|n| *n as usize)
    }
}

/// Rows by number.
pub(super) struct Rows<'a> {
    pub(super) rows: Vec<Row<'a>>,
    /// The last use of each, or of anything that refers to it.
    pub(super) ages: Vec<u64>,
    /// The rows to which each one refers, in the view of its layer's member.
    below: Edges,
    /// The Verified row that hides this one, if it is a claim.
    hider: HashMap<usize, usize>,
    /// The rows without which each one cannot go: those that refer to it, in any layer, and claims that it hides.
    above: Edges,
}

impl<'a> Rows<'a> {
    /// The rows that are not `needed`, of all layers, or of the layers of `only`. What is needed is closed: it refers to none
    /// of these rows, and hides none.
    pub(super) fn unneeded(memory: &'a Memory, needed: &Needed<'a>, only: Option<&[&Member]>) -> Self {
        let mut layers: Vec<(Option<&'a Member>, &'a Layer)> = Vec::new();
        match only {
            None => {
                layers.push((None, memory.verified()));
                layers.extend(memory.claims().map(|(member, layer)| (Some(member), layer)));
            }
            Some(only) => {
                let own = only.iter().filter_map(|member| memory.claims_with_name(member));
                layers.extend(own.map(|(member, layer)| (Some(member), layer)));
            }
        }
        let mut rows = Vec::new();
        // By layer, in their order.
        let mut numbers: Vec<HashMap<&'a StorePath, u32>> = Vec::with_capacity(layers.len());
        let mut place_of_verified = None;
        for (place, (layer, entries)) in layers.iter().enumerate() {
            let needed = needed.of(*layer);
            let mut of_layer = HashMap::new();
            for (path, entry) in entries.entries().filter(|(path, _)| !needed.contains(*path)) {
                of_layer.insert(path, rows.len() as u32);
                rows.push(Row { layer: *layer, entry });
            }
            numbers.push(of_layer);
            if layer.is_none() {
                place_of_verified = Some(place);
            }
        }
        let verified =
            |path: &StorePath| place_of_verified.and_then(|place| numbers[place].get(path).copied());
        // What a row of this layer means with `path`.
        let meant = |place: usize, path: &StorePath| match verified(path) {
            None if memory.is_verified(path) => None,
            None => numbers[place].get(path).copied(),
            found => found,
        };
        let (mut pairs, mut hider) = (Vec::new(), HashMap::new());
        for (place, (layer, entries)) in layers.iter().enumerate() {
            for (path, entry) in entries.entries() {
                let hides = if layer.is_some() { verified(path) } else { None };
                let below = entry.info.references.iter().filter_map(|path| meant(place, path));
                match numbers[place].get(path) {
                    Some(&number) => {
                        pairs.extend(below.filter(|other| *other != number).map(|other| (number, other)));
                        hider.extend(hides.map(|other| (number as usize, other as usize)));
                    }
                    None => debug_assert_eq!(below.chain(hides).next(), None, "'{path}' is needed"),
                }
            }
        }
        let below = Edges::new(rows.len(), pairs.iter().copied());
        let hidden = hider.iter().map(|(claim, verified)| (*claim as u32, *verified as u32));
        let above =
            Edges::new(rows.len(), pairs.iter().copied().chain(hidden).map(|(above, below)| (below, above)));
        let ages = vec![0; rows.len()];
        let mut all = Self { rows, ages, below, hider, above };
        all.find_ages();
        all
    }

    /// From the newest to the oldest: each gives its age to all that it refers to and that has none yet.
    fn find_ages(&mut self) {
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        order.sort_unstable_by_key(|n| std::cmp::Reverse(self.rows[*n].entry.used.at()));
        let mut known = vec![false; self.rows.len()];
        let mut todo = Vec::new();
        for start in order {
            let age = self.rows[start].entry.used.at();
            todo.push(start);
            while let Some(n) = todo.pop() {
                if std::mem::replace(&mut known[n], true) {
                    continue;
                }
                self.ages[n] = age;
                todo.extend(self.below.of(n));
            }
        }
    }

    /// From the oldest to the newest.
    pub(super) fn oldest_first(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        // Of two with the same age, the one that has it from the other comes later: the other refers to it. Names only make
        // the same store have the same outcome.
        let own = |n: &usize| self.rows[*n].entry.used.at();
        order.sort_unstable_by_key(|n| (self.ages[*n], std::cmp::Reverse(own(n)), self.rows[*n].path()));
        order
    }

    /// Marks these rows, and all that cannot go while one of them stays. Looks once at each row that gets a mark.
    pub(super) fn spread(&self, mut from: Vec<usize>, marks: &mut [bool]) {
        while let Some(n) = from.pop() {
            if !std::mem::replace(&mut marks[n], true) {
                from.extend(self.below.of(n).chain(self.hider.get(&n).copied()));
            }
        }
    }

    /// Takes row `n`, and all rows without which it cannot go: those that refer to it, in any layer, and claims of the same
    /// name, which a Verified path hides. Returns those that were not `taken` before. Each row is looked at once, when it is
    /// taken.
    pub(super) fn take_with_referrers(&self, n: usize, taken: &mut [bool]) -> Vec<usize> {
        let mut new = Vec::new();
        let mut todo = vec![n];
        while let Some(n) = todo.pop() {
            if !std::mem::replace(&mut taken[n], true) {
                new.push(n);
                todo.extend(self.above.of(n));
            }
        }
        new
    }
}
