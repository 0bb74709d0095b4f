//! Any bytes as `users.nix`, and as the key file it may name: an answer comes back, within small limits.
#![no_main]

use access_manager::nix::Limits;
use access_manager::roster::evaluate;
use access_manager::source::Memory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut files = Memory::default();
    files.0.insert("users.nix".into(), data.to_vec());
    files.0.insert("keys/alice.pub".into(), data.to_vec());
    let limits = Limits { steps: 50_000, values: 50_000, text: 1 << 18, depth: 200, ..Limits::default() };
    match evaluate(files, "users.nix", limits) {
        Ok(roster) => assert!(roster.members.iter().all(|m| !m.keys.is_empty())),
        Err(diagnostic) => assert!(diagnostic.to_string().starts_with("error: ")),
    }
});
