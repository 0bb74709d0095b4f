//! Origins: the members whose claims a claim depends on. A claim keeps its owner for ever, and sharing is
//! exactly one step.
//!
//! A path that a member builds upon is copied into the member's own layer, so that it stays when the other
//! stops sharing. The member may not share such a copy further: it remembers its original owner, and so does
//! everything that refers to it, directly or not. So one look at a row says who may see it, and no answer
//! requires a walk through a closure.
//!
//! The rule: a member sees a row of another member's layer if *all* origins of the row share with that
//! member. Origins only grow towards referrers, so a member who sees a path sees its references, too.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nix_derivation::StorePath;

use crate::index::change::Change;
use crate::index::memory::{Layer, Memory};
use crate::index::rows::Origins;
use crate::types::{Member, Provenance};

impl Origins {
    /// Origins for the copy of a row of `layer` in another layer.
    pub(crate) fn seen_from_outside(&self, layer: &Member) -> Self {
        let members = self.stored().cloned();
        Self::spelled_out(members.unwrap_or_else(|| Arc::new([layer.clone()].into())))
    }

    /// Whether `viewer` may see such a row in the layer of one of `others`, who share with `viewer`.
    pub(crate) fn are_open_to(&self, viewer: &Member, others: &[Member]) -> bool {
        let Some(members) = self.stored() else { return true };
        members.iter().all(|member| member == viewer || others.contains(member))
    }
}

/// Completes the origins of the claims that `changes` add to the layer of `member` with those of all their
/// references. Each reference is looked at once or, if it has foreign origins, once for each origin that it
/// passes on.
pub(crate) fn trace(index: &Memory, member: &Member, changes: &mut [Change]) {
    let own = index.claims_of(member);
    let added = |change: &Change| matches!(change, Change::AddPath { origins, .. } if origins.is_foreign());
    if !own.is_some_and(Layer::has_foreign) && !changes.iter().any(added) {
        return;
    }
    let mut sets: HashMap<StorePath, BTreeSet<Member>> = HashMap::new();
    let mut users: HashMap<StorePath, Vec<StorePath>> = HashMap::new();
    let mut proven: HashSet<StorePath> = HashSet::new();
    for change in changes.iter() {
        if let Change::AddPath { info, provenance, origins, .. } = change {
            match provenance {
                Provenance::Verified => drop(proven.insert(info.path.clone())),
                // The layer ignores a second claim of the same path.
                Provenance::Claimed(_) => {
                    sets.entry(info.path.clone()).or_insert_with(|| origins.members(member));
                }
            }
        }
    }
    for change in changes.iter() {
        let Change::AddPath { info, provenance: Provenance::Claimed(_), .. } = change else { continue };
        for reference in info.references.iter().filter(|r| !index.is_verified(r) && !proven.contains(*r)) {
            if sets.contains_key(reference) {
                users.entry(reference.clone()).or_default().push(info.path.clone());
            } else if let Some(entry) = own.and_then(|own| own.entry(reference))
                && entry.origins.is_foreign()
                && let Some(set) = sets.get_mut(&info.path)
            {
                set.extend(entry.origins.members(member));
            }
        }
    }
    let mut todo: Vec<StorePath> = sets.keys().cloned().collect();
    while let Some(path) = todo.pop() {
        let Some(passed_on) = sets.get(&path).cloned() else { continue };
        for user in users.get(&path).into_iter().flatten() {
            if let Some(set) = sets.get_mut(user)
                && !passed_on.is_subset(set)
            {
                set.extend(passed_on.iter().cloned());
                todo.push(user.clone());
            }
        }
    }
    for change in changes {
        if let Change::AddPath { info, provenance: Provenance::Claimed(_), origins, .. } = change
            && let Some(set) = sets.get(&info.path)
            && origins.members(member) != *set
        {
            *origins = Origins::new(set.clone(), member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_owners_have_to_share() {
        let (a, b, c) = (Member::new("a"), Member::new("b"), Member::new("c"));
        let own = Origins::new([a.clone()].into(), &a);
        assert!(own.are_open_to(&b, &[]));
        let both = Origins::new([a.clone(), b.clone()].into(), &a);
        assert!(
            !both.are_open_to(&c, std::slice::from_ref(&a)) && both.are_open_to(&c, &[b.clone(), a.clone()])
        );
        assert!(both.are_open_to(&b, std::slice::from_ref(&a)), "what was mine before is not hidden from me");
        assert!(!Origins::from_text(Some("")).are_open_to(&a, &[b]));
    }
}
