//! The rows that sessions, builds and roots need. They stay.
//!
//! What a member needs is looked up in that member's own layer and the Verified one, so the needs of one member keep
//! nothing of another. The needs are closed: with a path comes all that it refers to.

use std::collections::{HashMap, HashSet};

use nix_derivation::StorePath;

use crate::index::holds::Needs;
use crate::index::memory::{Entry, Layer, Memory};
use crate::types::Member;

/// The needed rows of all members.
#[derive(Default)]
pub(super) struct Needed<'a> {
    pub(super) verified: HashSet<&'a StorePath>,
    pub(super) claims: HashMap<&'a Member, HashSet<&'a StorePath>>,
}

/// The needs of one member. With `most`, needs whose closure would make the sum larger than this many bytes are left out.
pub(super) struct Walk<'a> {
    verified_layer: &'a Layer,
    own_layer: Option<&'a Layer>,
    most: u64,
    bytes: u64,
    pub(super) verified: HashSet<&'a StorePath>,
    pub(super) claims: HashSet<&'a StorePath>,
}

impl<'a> Walk<'a> {
    /// First what sessions hold and builds use, then roots, then leases from the newest to the oldest.
    pub(super) fn of(memory: &'a Memory, needs: &Needs, most: u64) -> Self {
        let (verified_layer, own_layer) = (memory.verified(), memory.claims_of(&needs.member));
        let (verified, claims) = (HashSet::new(), HashSet::new());
        let mut walk = Self { verified_layer, own_layer, most, bytes: 0, verified, claims };
        let roots = own_layer.into_iter().flat_map(|layer| layer.roots().values());
        needs.held.iter().chain(roots).chain(&needs.leased).for_each(|path| walk.add(path));
        walk
    }

    /// The row that the member's view shows: whether it is Verified, and its entry.
    fn row(&self, path: &StorePath) -> Option<(bool, &'a Entry)> {
        let verified = self.verified_layer.entry(path).map(|entry| (true, entry));
        verified.or_else(|| Some((false, self.own_layer?.entry(path)?)))
    }

    /// Adds the closure of `path`, all or nothing.
    fn add(&mut self, path: &StorePath) {
        let (mut verified, mut claims, mut bytes) = (HashSet::new(), HashSet::new(), 0);
        let mut todo: Vec<&Entry> = Vec::new();
        let mut next = self.row(path);
        let mut meet = |this: &Self, (is_verified, entry): (bool, &'a Entry)| {
            let (known, new) = match is_verified {
                true => (&this.verified, &mut verified),
                false => (&this.claims, &mut claims),
            };
            let is_new = !known.contains(&entry.info.path) && new.insert(&entry.info.path);
            bytes += if is_new { entry.size } else { 0 };
            is_new
        };
        loop {
            if let Some(row) = next.take()
                && meet(self, row)
            {
                todo.push(row.1);
            }
            let Some(entry) = todo.pop() else { break };
            for reference in &entry.info.references {
                if let Some(row) = self.row(reference)
                    && meet(self, row)
                {
                    todo.push(row.1);
                }
            }
        }
        if self.bytes.saturating_add(bytes) <= self.most {
            self.bytes += bytes;
            self.verified.extend(verified);
            self.claims.extend(claims);
        }
    }
}

impl<'a> Needed<'a> {
    /// Of everybody. `needs` has those with sessions or builds; others may have roots.
    pub(super) fn of_all(memory: &'a Memory, needs: &[Needs], most: u64) -> Self {
        let mut needed = Self::default();
        let here: HashSet<&Member> = needs.iter().map(|needs| &needs.member).collect();
        let away =
            memory.claims().filter(|(member, layer)| !here.contains(member) && !layer.roots().is_empty());
        let away: Vec<Needs> = away
            .map(|(member, _)| Needs { member: member.clone(), held: Vec::new(), leased: Vec::new() })
            .collect();
        for needs in needs.iter().chain(&away) {
            let walk = Walk::of(memory, needs, most);
            needed.verified.extend(walk.verified);
            if let Some((member, _)) = memory.claims().find(|(member, _)| **member == needs.member) {
                needed.claims.insert(member, walk.claims);
            }
        }
        needed
    }

    /// What one member needs.
    pub(super) fn of_one(memory: &'a Memory, needs: &Needs) -> Self {
        let walk = Walk::of(memory, needs, u64::MAX);
        let member = memory.claims().find(|(member, _)| **member == needs.member).map(|(member, _)| member);
        Self {
            verified: walk.verified,
            claims: member.map(|member| (member, walk.claims)).into_iter().collect(),
        }
    }

    pub(super) fn has(&self, layer: Option<&Member>, path: &StorePath) -> bool {
        match layer {
            None => self.verified.contains(path),
            Some(member) => self.claims.get(member).is_some_and(|claims| claims.contains(path)),
        }
    }
}
