//! Any bytes as a narinfo and as a nix-cache-info: no panic; what is refused is told in one short line; what is accepted
//! has a NAR and stays within the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The agent's own files: the crate around them brings ssh and TLS, which fuzzing does not need.
#[allow(dead_code)]
#[path = "../../builder-agent/substitute/src/cache_info.rs"]
mod cache_info;
#[allow(dead_code)]
#[path = "../../builder-agent/substitute/src/narinfo.rs"]
mod narinfo;

fuzz_target!(|bytes: &[u8]| {
    match narinfo::NarInfo::parse(bytes) {
        Ok(info) => assert!(info.nar_size > 0 && !info.url.is_empty() && info.signatures.len() <= 64),
        Err(error) => one_line(&error.to_string()),
    }
    if let Err(error) = cache_info::CacheInfo::parse(bytes) {
        one_line(&error.to_string());
    }
});

fn one_line(text: &str) {
    assert!(text.len() < 2000 && !text.contains(['\n', '\r', '\u{1b}']), "{text}");
}
