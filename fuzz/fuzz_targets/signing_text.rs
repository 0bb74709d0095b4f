//! Any text as a key or a signature: no panic, nothing verifies that was not signed, what is accepted comes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::signing::{PublicKey, SecretKey, Signer, TrustedKeys, is_signature};

/// A key of this file's own.
const SECRET: &str =
    "box.example.org-1:FNX0CHzmtMOh3AGn1HlgfQPraXr63GkmgSqwT1Q2ERnbSePu9W+EUDXRccypOMBRhbeNcFmybI9aj/SUEe2+aQ==";

fuzz_target!(|text: &str| {
    if let Ok(key) = text.parse::<PublicKey>() {
        let shown = key.to_string();
        assert_eq!(shown.parse::<PublicKey>().as_ref(), Ok(&key));
        assert!(!key.name().contains(|c: char| c.is_whitespace() || c == ':'));
    }
    if let Ok(key) = text.parse::<SecretKey>() {
        let signature = key.sign(b"text");
        assert!(is_signature(&signature) && key.public().verify(b"text", &signature));
    }
    let ours: SecretKey = SECRET.parse().expect("a key");
    let trusted = TrustedKeys::new([ours.public()]);
    // Ed25519 signatures do not vary: only the one we make ourselves can be right.
    let named = format!("box.example.org-1:{text}");
    for signature in [text, named.as_str()] {
        if trusted.verify(b"text", signature) {
            assert_eq!(signature.trim(), ours.sign(b"text"));
        }
    }
});
