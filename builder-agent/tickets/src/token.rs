//! The secret of a ticket: 32 random bytes, and the text in which people pass it on.
//!
//! The text has a prefix, so that scanners for secrets can recognise it, and no checksum: whatever is not the text of a
//! ticket is wrong. The box keeps a SHA-256 of the bytes. A slow hash would protect passwords, which people choose; 32
//! random bytes cannot be found from their hash at any speed. A look-up by the hash needs no comparison in constant
//! time, since nobody can choose a token by its hash.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};

/// The text of a token begins with it.
const PREFIX: &str = "barnraiser-ticket-";
const BYTES: usize = 32;
/// Characters behind the prefix.
const ENCODED: usize = 43;

/// The hash of a token.
pub(crate) type Hash = [u8; 32];

/// A new token: its text, and its hash.
pub(crate) fn make() -> std::io::Result<(String, Hash)> {
    let bytes = random::<BYTES>()?;
    Ok((format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)), Sha256::digest(bytes).into()))
}

/// The hash of the token with this text, of which spaces and line ends around it are no part. `None`: it is no token's.
pub(crate) fn hash(text: &str) -> Option<Hash> {
    let encoded = text.trim().strip_prefix(PREFIX).filter(|encoded| encoded.len() == ENCODED)?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).ok().filter(|bytes| bytes.len() == BYTES)?;
    Some(Sha256::digest(bytes).into())
}

pub(crate) fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // The kernel fills up to 256 bytes in one call, once it has been seeded.
    match getrandom(&mut bytes, GetRandomFlags::empty())? {
        filled if filled == N => Ok(bytes),
        filled => Err(std::io::Error::other(format!("{filled} of {N} random bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_of_a_token_has_its_hash() {
        let (text, known) = make().expect("random bytes");
        assert_eq!((hash(&text), hash(&format!(" {text}\r\n"))), (Some(known), Some(known)));
        assert_ne!(make().expect("random bytes").1, known);
        let (shorter, other) = (&text[..text.len() - 1], text.to_uppercase());
        for wrong in
            ["", PREFIX, shorter, &other, &text[1..], &format!("{text}A"), &format!("{PREFIX}{text}")]
        {
            assert_eq!(hash(wrong), None, "{wrong}");
        }
    }
}
