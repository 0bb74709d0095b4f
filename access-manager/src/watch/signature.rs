//! How a forge proves that it knows the secret of a webhook.
//!
//! | forge | header | proof |
//! |---|---|---|
//! | GitHub | `X-Hub-Signature-256` | `sha256=` and the HMAC-SHA256 of the body, in hexadecimal digits |
//! | Forgejo, Gitea | `X-Forgejo-Signature`, `X-Gitea-Signature` | the same, without `sha256=` |
//! | GitLab | `webhook-signature` | `v1,` and the HMAC-SHA256 of id, time and body, in base64 (Standard Webhooks) |
//! | GitLab | `X-Gitlab-Token` | the secret itself |
//!
//! Headers are bytes of strangers. Comparisons take the same time wherever the difference is. One valid proof is enough:
//! Forgejo sends several.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use ssh_key::sha2::Sha256;

type HmacSha256 = Hmac<Sha256>;

/// Bytes of a SHA-256.
const LENGTH: usize = 32;
/// In front of a secret that is the base64 of a key.
const KEY_PREFIX: &str = "whsec_";
/// How far the time of a request may be from ours, as Standard Webhooks recommends.
const TOLERANCE: u64 = 300;
/// Signatures that are compared; a sender that changes its secret sends two.
const MOST: usize = 8;
/// Longest id or time of a request.
const LONGEST: usize = 256;

/// The proofs in the headers of one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Proofs {
    /// HMACs of the body.
    body: Vec<[u8; LENGTH]>,
    token: Option<Vec<u8>>,
    standard: Option<Standard>,
}

#[derive(Debug, PartialEq, Eq)]
struct Standard {
    /// `ID.TIME.`, which is signed before the body.
    prefix: String,
    signatures: Vec<[u8; LENGTH]>,
}

impl Proofs {
    /// Reads the headers that `header` looks up by name; `None` if there is no proof that could be valid at `now`.
    pub fn of<'a>(header: impl Fn(&str) -> Option<&'a [u8]>, now: u64) -> Option<Proofs> {
        let github = header("x-hub-signature-256").and_then(|value| value.strip_prefix(b"sha256="));
        let others = [github, header("x-forgejo-signature"), header("x-gitea-signature")];
        let proofs = Proofs {
            body: others.into_iter().flatten().filter_map(digits).collect(),
            token: header("x-gitlab-token").map(<[u8]>::to_vec),
            standard: Standard::of(&header, now),
        };
        (proofs != Proofs::default()).then_some(proofs)
    }

    /// A check of a body that arrives in pieces.
    pub fn check(self, secrets: &[String]) -> Check {
        let body = secrets.iter().map(|secret| mac(secret.as_bytes())).collect();
        let prefix = self.standard.as_ref().map(|standard| standard.prefix.clone());
        let signed = prefix.map(|prefix| {
            let keys = secrets.iter().filter_map(|secret| match secret.strip_prefix(KEY_PREFIX) {
                Some(key) => BASE64_STANDARD.decode(key).ok(),
                None => Some(secret.as_bytes().to_vec()),
            });
            keys.map(|key| mac(&key).chain_update(&prefix)).collect()
        });
        let token = self.token.as_ref().is_some_and(|token| {
            // Equal exactly if their HMACs are; comparing those takes the same time for all.
            let same = |secret: &String| {
                let wanted = mac(secret.as_bytes()).chain_update(secret).finalize().into_bytes();
                mac(secret.as_bytes()).chain_update(token).verify_slice(&wanted).is_ok()
            };
            secrets.iter().any(same)
        });
        Check { proofs: self, token, body, signed: signed.unwrap_or_default() }
    }
}

impl Standard {
    fn of<'a>(header: impl Fn(&str) -> Option<&'a [u8]>, now: u64) -> Option<Standard> {
        let text = |name| header(name).and_then(|value| std::str::from_utf8(value).ok());
        let (id, time, list) = (text("webhook-id")?, text("webhook-timestamp")?, text("webhook-signature")?);
        if id.len() > LONGEST || time.len() > LONGEST || time.parse::<u64>().ok()?.abs_diff(now) > TOLERANCE {
            return None;
        }
        let signatures = list.split(' ').filter_map(|signature| signature.strip_prefix("v1,"));
        let signatures: Vec<[u8; LENGTH]> = signatures
            .take(MOST)
            .filter_map(|signature| BASE64_STANDARD.decode(signature).ok()?.try_into().ok())
            .collect();
        (!signatures.is_empty()).then(|| Standard { prefix: format!("{id}.{time}."), signatures })
    }
}

/// The check of one request, for each secret.
pub struct Check {
    proofs: Proofs,
    /// Whether the token is one of the secrets.
    token: bool,
    body: Vec<HmacSha256>,
    signed: Vec<HmacSha256>,
}

impl Check {
    pub fn update(&mut self, piece: &[u8]) {
        for mac in self.body.iter_mut().chain(&mut self.signed) {
            mac.update(piece);
        }
    }

    /// Whether the sender knows one of the secrets.
    pub fn is_valid(self) -> bool {
        let valid = |macs: &[HmacSha256], given: &[[u8; LENGTH]]| {
            macs.iter().any(|mac| given.iter().any(|given| mac.clone().verify_slice(given).is_ok()))
        };
        let standard = self.proofs.standard.as_ref().map_or(&[][..], |standard| &standard.signatures);
        self.token || valid(&self.body, &self.proofs.body) || valid(&self.signed, standard)
    }
}

fn mac(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn digits(value: &[u8]) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    hex::decode_to_slice(value, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GitHub's own example of a signature, in its documentation.
    const SECRET: &str = "It's a Secret to Everybody";
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn valid(headers: &[(&str, &str)], body: &[u8], secret: &str, now: u64) -> bool {
        let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes());
        let Some(proofs) = Proofs::of(find, now) else { return false };
        let mut check = proofs.check(&["another secret of ours".into(), secret.into()]);
        for piece in body.chunks(3) {
            check.update(piece);
        }
        check.is_valid()
    }

    #[test]
    fn the_header_of_each_forge_proves_the_secret() {
        let body = b"Hello, World!";
        let with = format!("sha256={SIGNATURE}");
        for header in [
            ("x-hub-signature-256", with.as_str()),
            ("x-forgejo-signature", SIGNATURE),
            ("x-gitea-signature", SIGNATURE),
            ("x-gitlab-token", SECRET),
        ] {
            assert!(valid(&[header], body, SECRET, 0), "{header:?}");
            assert!(!valid(&[header], body, "It's a secret to everybody", 0), "{header:?}");
        }
        assert!(!valid(&[("x-hub-signature-256", &with)], b"Hello, World?", SECRET, 0));
        // Not as this header has it, or of another length.
        for header in [
            ("x-hub-signature-256", SIGNATURE),
            ("x-forgejo-signature", with.as_str()),
            ("x-gitea-signature", &SIGNATURE[2..]),
            ("x-gitlab-token", ""),
            ("x-hub-signature", with.as_str()),
        ] {
            assert!(!valid(&[header], body, SECRET, 0), "{header:?}");
        }
    }

    #[test]
    fn a_standard_webhook_counts_within_its_time() {
        let (secret, id, time) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_1", "1614265330");
        let key = BASE64_STANDARD.decode(&secret[6..]).expect("base64");
        let mut signer = mac(&key);
        signer.update(b"msg_1.1614265330.{}");
        let signature = BASE64_STANDARD.encode(signer.finalize().into_bytes());
        let list = format!("v1a,xx v1,AAAA v1,{signature}");
        let headers = [("webhook-id", id), ("webhook-timestamp", time), ("webhook-signature", list.as_str())];
        assert!(valid(&headers, b"{}", secret, 1_614_265_330 + TOLERANCE));
        assert!(!valid(&headers, b"{}", secret, 1_614_265_331 + TOLERANCE));
        assert!(!valid(&headers, b"[]", secret, 1_614_265_330));
        assert!(!valid(&headers[1..], b"{}", secret, 1_614_265_330));
    }
}
