//! Any text as a known_hosts file: no panic, and a host is known only where the file has its key.
#![no_main]

use access_manager::sync::ssh::keys_of;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for name in ["example.org", "[example.org]:2222"] {
        match keys_of(name, text) {
            Ok(keys) => assert!(!keys.is_empty() && keys.len() <= text.lines().count()),
            Err(why) => assert!(!why.is_empty()),
        }
    }
});
