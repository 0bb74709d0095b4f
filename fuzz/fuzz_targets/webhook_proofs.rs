//! Any headers and body as a webhook: no panic, and nobody proves a secret that is not in the input.
#![no_main]

use access_manager::watch::signature::Proofs;
use libfuzzer_sys::fuzz_target;

/// The fuzzer does not find these words by changing bytes.
const NAMES: [&str; 7] = [
    "x-hub-signature-256",
    "x-forgejo-signature",
    "x-gitea-signature",
    "x-gitlab-token",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

fuzz_target!(|input: (Vec<Option<Vec<u8>>>, u64, Vec<u8>)| {
    let (values, now, body) = input;
    let header = |name: &str| {
        let place = NAMES.iter().position(|known| *known == name)?;
        values.get(place)?.as_deref()
    };
    let Some(proofs) = Proofs::of(header, now) else { return };
    let secret = "the secret that no input has";
    if values.iter().flatten().any(|value| value == secret.as_bytes()) {
        return;
    }
    let mut check = proofs.check(&[secret.to_owned(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()]);
    check.update(&body);
    // The second secret is 38 bytes that only a fuzzer with this file could send as a token.
    if !values.iter().flatten().any(|value| value.starts_with(b"whsec_")) {
        assert!(!check.is_valid());
    }
});
