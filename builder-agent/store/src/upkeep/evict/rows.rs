//! The rows that nobody needs, the least recently used first.
//!
//! A path counts as used when something that refers to it was. So what refers to a path is never newer than the path, and
//! taking rows in the order of their ages takes referrers before, or together with, what they refer to.

use std::collections::{HashMap, HashSet};

use nix_derivation::StorePath;

use super::needed::Needed;
use crate::index::change::Change;
use crate::index::memory::{Entry, Memory};
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
    pub(super) fn payer(&self) -> Option<&'a Member> {
        self.layer.or(self.entry.payer.as_ref())
    }

    pub(super) fn drop(&self) -> Change {
        let path = self.path().clone();
        match self.layer {
            None => Change::DropVerified { path },
            Some(member) => Change::DropClaim { member: member.clone(), path },
        }
    }
}

/// Rows by number.
pub(super) struct Rows<'a> {
    memory: &'a Memory,
    pub(super) rows: Vec<Row<'a>>,
    numbers: HashMap<(Option<&'a Member>, &'a StorePath), usize>,
    /// The last use of each, or of anything that refers to it.
    pub(super) ages: Vec<u64>,
}

impl<'a> Rows<'a> {
    /// The rows that are not `needed`, of all layers, or of the layer of `only`.
    pub(super) fn unneeded(memory: &'a Memory, needed: &Needed<'a>, only: Option<&Member>) -> Self {
        let mut rows = Vec::new();
        if only.is_none() {
            let entries = memory.verified().entries().map(|(_, entry)| Row { layer: None, entry });
            rows.extend(entries.filter(|row| !needed.has(None, row.path())));
        }
        for (member, layer) in memory.claims().filter(|(member, _)| only.is_none_or(|only| *member == only)) {
            let entries = layer.entries().map(|(_, entry)| Row { layer: Some(member), entry });
            rows.extend(entries.filter(|row| !needed.has(Some(member), row.path())));
        }
        let numbers = rows.iter().enumerate().map(|(n, row)| ((row.layer, row.path()), n)).collect();
        let ages = vec![0; rows.len()];
        let mut all = Self { memory, rows, numbers, ages };
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
                todo.extend(self.references(n));
            }
        }
    }

    /// The rows to which row `n` refers, in the view of its layer's member.
    fn references(&self, n: usize) -> impl Iterator<Item = usize> {
        let Row { layer, entry } = self.rows[n];
        let layer_of = move |path: &StorePath| if self.memory.is_verified(path) { None } else { layer };
        entry
            .info
            .references
            .iter()
            .filter_map(move |path| self.numbers.get(&(layer_of(path), path)).copied())
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

    /// Row `n`, and all rows without which it cannot go: those that refer to it, in any layer, and claims of the same name,
    /// which a Verified path hides. Without those that are `taken` already; `None` if one of them is needed.
    pub(super) fn with_referrers(&self, n: usize, taken: &HashSet<usize>) -> Option<Vec<usize>> {
        let (mut new, mut met) = (Vec::new(), HashSet::new());
        let mut todo = vec![n];
        while let Some(n) = todo.pop() {
            if taken.contains(&n) || !met.insert(n) {
                continue;
            }
            new.push(n);
            let Row { layer, entry } = self.rows[n];
            let path = &entry.info.path;
            match layer {
                None => {
                    self.number_all(None, self.memory.verified().referrers(path), &mut todo)?;
                    for (member, claims) in self.memory.claims() {
                        let hidden = claims.entry(path).map(|entry| &entry.info.path);
                        self.number_all(Some(member), claims.referrers(path).chain(hidden), &mut todo)?;
                    }
                }
                // What refers to the name of a hidden claim refers to the Verified path.
                Some(_) if self.memory.is_verified(path) => {}
                Some(member) => {
                    let claims = self.memory.claims_of(member)?;
                    self.number_all(layer, claims.referrers(path), &mut todo)?;
                }
            }
        }
        Some(new)
    }

    /// The numbers of `paths` in this layer; `None` if one of them is needed.
    fn number_all<'p>(
        &self,
        layer: Option<&Member>,
        paths: impl Iterator<Item = &'p StorePath>,
        to: &mut Vec<usize>,
    ) -> Option<()> {
        for path in paths {
            to.push(*self.numbers.get(&(layer, path))?);
        }
        Some(())
    }
}
