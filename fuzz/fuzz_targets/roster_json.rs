//! Any bytes as roster.json: whoever is let in has an entry in order, and writing it again changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roster::{Roster, name, read};

fuzz_target!(|bytes: &[u8]| {
    let Ok(first) = read(bytes) else { return };
    for (member, keys) in &first.members {
        assert!(name::check(&member.name).is_ok() && member.limits.check().is_ok());
        assert!(!keys.is_empty() && keys.len() == member.keys.len());
        assert!(member.groups.iter().all(|name| first.groups.iter().any(|group| group.name == *name)));
    }
    for left in &first.errors {
        assert!(!left.error.contains('\n'));
    }
    let first = Roster::from(first);
    let second = read(first.to_json().as_bytes()).map(Roster::from);
    assert_eq!(second.expect("our own"), first);
});
