//! A source's offer of a path, and whether this box may accept it.

use std::collections::BTreeSet;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, NixHash, StorePath, store_path::build_ca_path};
use store::signing::{TrustedKeys, fingerprint};
use url::Url;

use super::narinfo::Compression;

/// Memory of an offer without its references and signatures, with addresses of usual length.
const OFFER_BYTES: u64 = 1024;
/// Memory of each of its references: a path of usual length in a tree.
const REFERENCE_BYTES: u64 = 160;

/// One path as one source describes it. All fields are claims until the NAR has been received and hashed.
#[derive(Debug)]
pub struct Offer {
    pub info: PathInfo,
    /// Index of the source.
    pub source: usize,
    pub place: Place,
}

/// The place of its NAR.
#[derive(Debug)]
pub enum Place {
    Http { url: Url, compression: Compression, hash: Option<NixHash>, size: Option<u64> },
    Ssh,
}

impl Offer {
    /// Bytes to transfer, 0 if the source does not say.
    #[must_use]
    pub fn download_size(&self) -> u64 {
        match &self.place {
            Place::Http { size, .. } => size.unwrap_or(0),
            Place::Ssh => self.info.nar_size,
        }
    }

    /// Estimate of the memory of the offer, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let signatures: usize = self.info.signatures.iter().map(|signature| signature.len() + 64).sum();
        OFFER_BYTES + signatures as u64 + self.info.references.len() as u64 * REFERENCE_BYTES
    }

    /// The references of the path, without itself.
    pub fn references(&self) -> impl Iterator<Item = &StorePath> {
        self.info.references.iter().filter(|path| **path != self.info.path)
    }

    /// `None` if the path becomes Verified when its contents are as described, or if a key of `own` has signed it: then it
    /// becomes a claim. Otherwise the reason, in one line that says what would help. `name`: the source's name.
    #[must_use]
    pub fn objection(
        &self,
        name: &str,
        trusted: &TrustedKeys,
        own: Option<&TrustedKeys>,
        max_nar_bytes: u64,
    ) -> Option<String> {
        let info = &self.info;
        let path = info.path.to_absolute_path();
        if info.nar_size > max_nar_bytes {
            return Some(format!(
                "path '{path}' in {name} has {} bytes, more than the {max_nar_bytes} this box takes; raise `limits.max-nar-mib` on the box",
                info.nar_size
            ));
        }
        let signed =
            |keys: &TrustedKeys| !keys.good(fingerprint(info).as_bytes(), &info.signatures).is_empty();
        if signed(trusted) || is_content_addressed(info) || own.is_some_and(signed) {
            return None;
        }
        let whose = if own.is_some() { "of the box, or to your own" } else { "of the box" };
        // The names of keys are a stranger's text: they are limited in number and length, and made printable.
        let by: BTreeSet<String> = info
            .signatures
            .iter()
            .filter_map(|signature| signature.split_once(':'))
            .map(|(key, _)| key.chars().take(80).filter(|c| c.is_ascii_graphic()).collect())
            .take(4)
            .collect();
        let by: Vec<String> = by.into_iter().collect();
        Some(match by.is_empty() {
            true => format!(
                "path '{path}' in {name} has no signature; sign it there with a key in `trusted-public-keys` {whose}"
            ),
            false => format!(
                "path '{path}' in {name} has no right signature by a key this box trusts (signed by {}); add the key to `trusted-public-keys` {whose}",
                by.join(", ")
            ),
        })
    }
}

/// Whether the path has the name that its content address gives. The store checks that the contents have that address
/// when it has received them.
fn is_content_addressed(info: &PathInfo) -> bool {
    let Some(ca) = &info.ca else { return false };
    if ca.method() == ContentAddressMethod::Git {
        return false;
    }
    let mut references = info.references.clone();
    let own = references.remove(&info.path);
    build_ca_path(info.path.name(), ca, &references, own).is_ok_and(|path| path == info.path)
}
