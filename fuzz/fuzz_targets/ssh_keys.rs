//! Any text as a key file: what is accepted is one line of a known type, and accepting it again changes nothing.
#![no_main]

use access_manager::ssh_keys::{KEY_TYPES, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for (offset, key) in parse(text) {
        assert!(text.is_char_boundary(offset));
        match key {
            Ok(key) => {
                let line = key.line();
                assert!(!line.contains(['\n', '\r']));
                assert!(KEY_TYPES.contains(&line.split(' ').next().unwrap_or("")));
                assert_eq!(parse(&line), vec![(0, Ok(key))]);
            }
            Err(error) => assert!(!error.explain().0.is_empty()),
        }
    }
});
