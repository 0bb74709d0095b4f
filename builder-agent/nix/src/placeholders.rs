//! Placeholders in strings of a derivation give way to the paths they stand for.
//!
//! A placeholder is a slash and the 52 characters of a hash in base 32 (Nix: `hashPlaceholder`, `DownstreamPlaceholder`).
//! No path that replaces one can be part of another, so one pass over the text does what Nix does with one pass for each:
//! a derivation may have a thousand outputs and megabytes of variables.

use std::collections::HashMap;

/// A slash, and a SHA-256 hash.
const LENGTH: usize = 1 + 52;

/// Placeholders and their replacements.
#[derive(Debug, Default)]
pub struct Placeholders(HashMap<[u8; LENGTH], Vec<u8>>);

impl Placeholders {
    /// Of equal placeholders the last counts. A text without the form of a placeholder is ignored.
    pub fn insert(&mut self, placeholder: &str, path: String) {
        if let Ok(placeholder) = placeholder.as_bytes().try_into() {
            self.0.insert(placeholder, path.into_bytes());
        }
    }

    /// The same text with paths in it.
    pub fn filled(&self, text: Vec<u8>) -> Vec<u8> {
        if self.0.is_empty() {
            return text;
        }
        // Up to where `text` has been copied.
        let mut copied = 0;
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(slash) = text.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'/')) {
            at += slash;
            let Some(candidate) = text.get(at..at + LENGTH) else { break };
            // From the back: most of what follows a slash has another soon, and that is where to look next.
            if let Some(other) = candidate[1..].iter().rposition(|byte| !is_base32(*byte)) {
                at += 1 + other;
            } else if let Some(path) =
                candidate.try_into().ok().and_then(|key: [u8; LENGTH]| self.0.get(&key))
            {
                out.extend_from_slice(&text[copied..at]);
                out.extend_from_slice(path);
                at += LENGTH;
                copied = at;
            } else {
                at += LENGTH;
            }
        }
        if copied == 0 {
            return text;
        }
        out.extend_from_slice(&text[copied..]);
        out
    }
}

/// One of Nix's 32 characters: no e, o, t, u.
pub fn is_base32(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'z') && !matches!(byte, b'e' | b'o' | b't' | b'u')
}

#[cfg(test)]
mod tests {
    use nix_derivation::store_path::hash_placeholder;
    use proptest::prelude::*;

    use super::*;

    /// As Nix does it: one after the other.
    fn one_by_one(mut text: String, pairs: &[(String, String)]) -> String {
        for (from, to) in pairs {
            text = text.replace(from, to);
        }
        text
    }

    proptest! {
        #[test]
        fn one_pass_gives_what_one_pass_for_each_gives(parts in proptest::collection::vec(0_usize..9, 0..40)) {
            let path = |name| format!("/nix/store/8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0v-{name}");
            let pairs = ["out", "dev"].map(|name| (hash_placeholder(name), path(name)));
            let almost = &pairs[0].0[..LENGTH - 1];
            let words = ["/", "x", "0", "//", "e", almost, &pairs[0].0, &pairs[1].0, "/nix/store/"];
            let text: String = parts.iter().map(|at| words[*at]).collect();
            let mut placeholders = Placeholders::default();
            for (from, to) in &pairs {
                placeholders.insert(from, to.clone());
            }
            let filled = placeholders.filled(text.clone().into_bytes());
            prop_assert_eq!(String::from_utf8(filled).expect("text"), one_by_one(text, &pairs));
        }
    }
}
