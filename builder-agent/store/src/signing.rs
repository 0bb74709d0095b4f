//! Signatures in the format of Nix: Ed25519 over a line of text with all fields that define a path.
//!
//! Text forms (Nix: `src/libutil/signature/local-keys.cc`): a key is `name:base64`, with 64 bytes for the secret half
//! (seed, then public key) and 32 for the public half; a signature is `name:base64` of 64 bytes. The name only says
//! which key to try.
//!
//! Signatures are not trusted until they are checked. A signature that does not parse, has an unknown key
//! name or does not verify counts as no signature.
//! Not here: where keys are kept, and which paths get a signature (`register`).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use nix::PathInfo;
use nix_derivation::{StorePath, nixbase32};
use thiserror::Error;

use crate::types::realisation::RealisationId;

/// Longest name of a key. Names are host names with a number, like `cache.example.org-1`.
pub const MAX_KEY_NAME: usize = 255;

/// Makes signatures. The store calls it for Verified paths only.
pub trait Signer: Send + Sync {
    /// Signs `fingerprint`; `name:base64` as Nix writes it.
    fn sign(&self, fingerprint: &[u8]) -> String;
}

/// A text is not a key.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum KeyError {
    /// Not `name:base64`.
    #[error("a key looks like `name:base64`; there is no colon in this text, or no name before it")]
    NoName,
    /// Names are part of every signature, in lists that are separated by white space and colons.
    #[error("the key name {0:?} is too long or has white space in it; use one like `box.example.org-1`")]
    BadName(String),
    /// Not base64, or of another length.
    #[error("the key {name} is not {want} bytes in base64; copy the whole line that `nix key` printed")]
    BadBytes {
        /// Name of the key.
        name: String,
        /// Required length of such a key.
        want: usize,
    },
    /// The public half inside the secret key does not match the secret half.
    #[error("the two halves of the secret key {0} do not belong together; generate it again")]
    Mismatch(String),
    /// The kernel gave no random bytes.
    #[error("cannot get random bytes for a new key: {0}")]
    Random(String),
}

/// Name and bytes of `name:base64`.
fn split(text: &str, want: usize) -> Result<(&str, Vec<u8>), KeyError> {
    let (name, encoded) = text.trim().split_once(':').ok_or(KeyError::NoName)?;
    check_name(name)?;
    let bad = || KeyError::BadBytes { name: name.to_owned(), want };
    // Longer text is not decoded: 64 bytes are 88 characters.
    if encoded.len() > 2 * want + 4 {
        return Err(bad());
    }
    let bytes = BASE64.decode(encoded).map_err(|_| bad())?;
    if bytes.len() != want {
        return Err(bad());
    }
    Ok((name, bytes))
}

fn check_name(name: &str) -> Result<(), KeyError> {
    if name.is_empty() {
        return Err(KeyError::NoName);
    }
    if name.len() > MAX_KEY_NAME || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':') {
        return Err(KeyError::BadName(name.chars().take(MAX_KEY_NAME).collect()));
    }
    Ok(())
}

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// The part before the colon.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` is this key's signature of `fingerprint`.
    #[must_use]
    pub fn verify(&self, fingerprint: &[u8], signature: &str) -> bool {
        split(signature, 64).is_ok_and(|(name, bytes)| name == self.name && self.fits(fingerprint, &bytes))
    }

    fn fits(&self, fingerprint: &[u8], signature: &[u8]) -> bool {
        // Strict: what Nix's libsodium refuses, such as keys of small order, is refused here too.
        Signature::from_slice(signature).is_ok_and(|s| self.key.verify_strict(fingerprint, &s).is_ok())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split(text, 32)?;
        let bad = || KeyError::BadBytes { name: name.to_owned(), want: 32 };
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| bad())?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| bad())?;
        Ok(Self { name: name.to_owned(), key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64.encode(self.key.as_bytes()))
    }
}

/// The secret half of a key. `Debug` never shows it; it is wiped from memory when dropped.
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

impl SecretKey {
    /// A new key.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        check_name(name)?;
        let mut seed = [0; 32];
        let mut got = 0;
        while got < seed.len() {
            got += rustix::rand::getrandom(&mut seed[got..], rustix::rand::GetRandomFlags::empty())
                .map_err(|e| KeyError::Random(e.to_string()))?;
        }
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(&seed) })
    }

    /// The part before the colon.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey { name: self.name.clone(), key: self.key.verifying_key() }
    }

    /// The text form, as `nix key generate-secret` prints it, for the key file.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        format!("{}:{}", self.name, BASE64.encode(self.key.to_keypair_bytes()))
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = split(text, 64)?;
        let bad = || KeyError::BadBytes { name: name.to_owned(), want: 64 };
        let bytes: [u8; 64] = bytes.try_into().map_err(|_| bad())?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| KeyError::Mismatch(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), key })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

impl Signer for SecretKey {
    fn sign(&self, fingerprint: &[u8]) -> String {
        format!("{}:{}", self.name, BASE64.encode(self.key.sign(fingerprint).to_bytes()))
    }
}

/// Keys whose signature makes a path Verified.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys {
    by_name: HashMap<String, PublicKey>,
}

impl TrustedKeys {
    /// A set of these keys. Of two keys with the same name the later counts, as in Nix.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self { by_name: keys.into_iter().map(|key| (key.name.clone(), key)).collect() }
    }

    /// Reads keys in text form.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, KeyError> {
        Ok(Self::new(texts.into_iter().map(str::parse).collect::<Result<Vec<_>, _>>()?))
    }

    /// Whether no key is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Whether `signature` is a valid signature of `fingerprint` by one of these keys.
    #[must_use]
    pub fn verify(&self, fingerprint: &[u8], signature: &str) -> bool {
        let Some((name, _)) = signature.split_once(':') else { return false };
        self.by_name.get(name).is_some_and(|key| key.verify(fingerprint, signature))
    }

    /// The `signatures` that are valid and by one of these keys.
    #[must_use]
    pub fn good<'a>(&self, fingerprint: &[u8], signatures: &'a [String]) -> Vec<&'a String> {
        signatures.iter().filter(|s| self.verify(fingerprint, s)).collect()
    }
}

/// Whether `text` has the form of a signature. It says nothing about the key.
#[must_use]
pub fn is_signature(text: &str) -> bool {
    split(text, 64).is_ok()
}

/// The text that the signature of a path covers (Nix: `ValidPathInfo::fingerprint` in
/// `src/libstore/path-info.cc`).
#[must_use]
pub fn fingerprint(info: &PathInfo) -> String {
    // References sort by base name, which is the order of Nix's set of strings.
    let references: Vec<String> = info.references.iter().map(StorePath::to_absolute_path).collect();
    format!(
        "1;{};sha256:{};{};{}",
        info.path.to_absolute_path(),
        nixbase32::encode(&info.nar_hash),
        info.nar_size,
        references.join(",")
    )
}

/// The text that the signature of a realisation covers: JSON with sorted keys and without the signatures (Nix
/// 2.8 to 2.34: `fingerprint` in `src/libstore/realisation.cc`; newer clients name realisations in another
/// way).
#[must_use]
pub fn realisation_fingerprint(id: &RealisationId, path: &StorePath) -> String {
    // Neither output names (`RealisationId::is_sound`) nor store paths have characters that JSON would escape.
    format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{}"}}"#, path.to_basename())
}
