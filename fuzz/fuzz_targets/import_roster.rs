//! Any bytes as `users.nix`, and as the key file it may name: an import gives the same roster, or says what is wrong
//! with the old one.
#![no_main]

use access_manager::import::{ImportError, KeyFiles, import};
use access_manager::source::Memory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The text of a real key file, so that a few bytes of Nix make a roster.
    let text = String::from_utf8_lossy(data);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl";
    let comment = text.lines().next().unwrap_or_default();
    let mut files = Memory::with(&[("k", &format!("{key} {comment}")), ("users.nix", "")]);
    for users in [data.to_vec(), format!("{{ a.keys = builtins.readFile ./k; {text} }}").into_bytes()] {
        files.0.insert("users.nix".into(), users);
        for keys in [KeyFiles::InPlace, KeyFiles::Copied] {
            match import(&files, "users.nix", keys) {
                Ok(imported) => assert!(!imported.text.is_empty()),
                Err(ImportError::Refused(_) | ImportError::Mistakes(_)) => {}
                // A few bytes of code make thousands of members, whose text is longer than a roster may be.
                Err(ImportError::Unreadable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
});
