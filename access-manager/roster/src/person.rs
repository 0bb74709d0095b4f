//! The keys by which the box tells one person of a name from another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ssh_key::public::KeyData;

use crate::Key;

/// The fingerprints of each member's keys and authorities. An authority of several members is left out, as it identifies
/// none of them.
pub fn personal_keys<'a>(members: &[(&'a str, &[Key])]) -> BTreeMap<&'a str, BTreeSet<String>> {
    let mut authorities: HashMap<&KeyData, usize> = HashMap::new();
    for key in members.iter().flat_map(|(_, keys)| *keys).filter(|key| key.authority.is_some()) {
        *authorities.entry(&key.data).or_default() += 1;
    }
    let personal = |key: &&Key| key.authority.is_none() || authorities.get(&key.data) == Some(&1);
    members
        .iter()
        .map(|(name, keys)| (*name, keys.iter().filter(personal).map(Key::fingerprint).collect()))
        .collect()
}

/// Whether a name that was never away still means the same person. If one side has no personal keys, nothing can be
/// compared, and the name decides.
pub fn is_same(before: &BTreeSet<String>, now: &BTreeSet<String>) -> bool {
    before.is_empty() || now.is_empty() || !before.is_disjoint(now)
}
