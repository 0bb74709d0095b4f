//! One key, or one certificate authority, of several members: allowed, since one person may have two accounts. Then the
//! ssh user name says which of them logs in, and somebody should know.

use std::collections::BTreeMap;

use ::roster::words::all_of;
use ::roster::{Key, Member, keys};

/// One warning for each set of members that one key, or one certificate, could let in.
pub fn warnings(members: &[Member]) -> Vec<String> {
    // By key, and for an authority by each principal that lets in: two members of one authority with different
    // principals cannot be confused.
    let mut owners: BTreeMap<(String, Option<String>), Vec<&str>> = BTreeMap::new();
    for member in members {
        for key in member.keys.iter().filter_map(|line| keys::parse_line(line).ok()) {
            for way in ways(member, &key) {
                let names = owners.entry((key.key.clone(), way)).or_default();
                // A member's keys come one after the other, so a repetition is the last one.
                if names.last() != Some(&member.name.as_str()) {
                    names.push(&member.name);
                }
            }
        }
    }
    let mut sets: BTreeMap<(Vec<&str>, bool), ()> = BTreeMap::new();
    for ((_, principal), names) in &owners {
        if names.len() > 1 {
            sets.insert((names.clone(), principal.is_some()), ());
        }
    }
    sets.into_keys()
        .map(|(names, by_certificate)| {
            let what = if by_certificate { "the same certificate authority and principal" } else { "the same key" };
            format!(
                "{} have {what}: the ssh user name says which of them logs in (`ssh {}@BOX`); with any other user name \
                 nobody does",
                all_of(&names),
                names[0]
            )
        })
        .collect()
}

/// `None` for a key itself; for an authority each principal that a certificate may have.
fn ways(member: &Member, key: &Key) -> Vec<Option<String>> {
    match &key.authority {
        None => vec![None],
        Some(authority) => match &authority.principals {
            Some(principals) => principals.iter().cloned().map(Some).collect(),
            None => vec![Some(member.name.clone())],
        },
    }
}
