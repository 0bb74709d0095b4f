//! Any text as a file of allowed signers: no panic, and a refusal names a line of the file.
#![no_main]

use access_manager::sync::signatures::allowed::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(signers) => {
            assert!(signers.len() <= text.lines().count());
            for signer in signers {
                assert!(!signer.principals.is_empty());
                let _ = signer.may_sign("git", 1_700_000_000);
            }
        }
        Err(error) => assert!(error.line >= 1 && error.line <= text.lines().count()),
    }
});
