//! Any bytes as roster-status.json: what is read is short, fit for a terminal, and the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roster::Status;

fuzz_target!(|bytes: &[u8]| {
    let Ok(first) = Status::read(bytes) else { return };
    if let Some(problem) = &first.problem {
        assert!(!problem.reason.contains(|c: char| c.is_control() && c != '\n'));
    }
    for commit in first.accepted.iter().map(|accepted| &accepted.commit) {
        assert!(commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    assert_eq!(Status::read(first.to_json().as_bytes()).expect("our own"), first);
});
