//! Limits for registration: those of one path, and those of all claims of one member.

use nix::PathInfo;
use nix_derivation::{StorePath, nixbase32};

use super::seen::{Seen, Viewer};
use crate::error::RegisterError;
use crate::index::change::Change;
use crate::objects::ingest::Ingested;
use crate::types::{Member, Provenance};

/// Most references of one path. The largest packages in nixpkgs have a few thousand; the list of a closure (`closureInfo`)
/// refers to all of it, and large closures have some ten thousand paths.
const MAX_REFERENCES: usize = 30_000;
/// Most claims of one member, and references of all of them together. They are in memory and read at every start: about
/// 500 bytes for each claim and 250 for each reference. Room for several large closures, with ten references
/// for each path.
const MAX_CLAIMS: usize = 200_000;
const MAX_CLAIMED_REFERENCES: usize = 1_000_000;
/// Most signatures of one path, and bytes of one signature; an Ed25519 signature with its key name is about 120.
pub(crate) const MAX_SIGNATURES: usize = 64;
const MAX_SIGNATURE_BYTES: usize = 1024;

/// Checks whether `info` may be registered for `ingested`.
pub(crate) fn check(
    member: &Member,
    ingested: &Ingested,
    info: &PathInfo,
    provenance: &Provenance,
) -> Result<(), RegisterError> {
    if info.nar_hash != ingested.nar_hash || info.nar_size != ingested.nar_size {
        return Err(RegisterError::HashMismatch {
            path: info.path.clone(),
            announced: nixbase32::encode(&info.nar_hash),
            announced_size: info.nar_size,
            got: nixbase32::encode(&ingested.nar_hash),
            got_size: ingested.nar_size,
        });
    }
    check_info(member, info, provenance)
}

pub(super) fn check_info(
    member: &Member,
    info: &PathInfo,
    provenance: &Provenance,
) -> Result<(), RegisterError> {
    if let Provenance::Claimed(claimed) = provenance
        && claimed != member
    {
        return Err(RegisterError::ForeignMember { claimed: claimed.clone(), view: member.clone() });
    }
    let count = info.references.len();
    if count > MAX_REFERENCES {
        let (path, what, limit) = (info.path.clone(), "references", MAX_REFERENCES);
        return Err(RegisterError::TooMany { path, what, count, limit });
    }
    check_signatures(&info.path, &info.signatures)
}

pub(crate) fn check_signatures(path: &StorePath, signatures: &[String]) -> Result<(), RegisterError> {
    check_signature_count(path, signatures.len())?;
    let longest = signatures.iter().map(String::len).max().unwrap_or(0);
    if longest > MAX_SIGNATURE_BYTES {
        let (path, what, limit) = (path.clone(), "bytes in a signature", MAX_SIGNATURE_BYTES);
        return Err(RegisterError::TooMany { path, what, count: longest, limit });
    }
    if let Some(bad) = signatures.iter().find(|s| !s.contains(':') || s.contains(char::is_whitespace)) {
        return Err(RegisterError::BadSignature { path: path.clone(), signature: bad.clone() });
    }
    Ok(())
}

pub(crate) fn check_signature_count(path: &StorePath, count: usize) -> Result<(), RegisterError> {
    match count > MAX_SIGNATURES {
        true => Err(RegisterError::TooMany {
            path: path.clone(),
            what: "signatures",
            count,
            limit: MAX_SIGNATURES,
        }),
        false => Ok(()),
    }
}

/// Refuses a registration that gives a member too many claims: all claims are loaded before the agent serves
/// anybody.
pub(super) fn within_limits(
    seen: &Seen<'_>,
    viewer: &Viewer,
    changes: &[Change],
) -> Result<(), RegisterError> {
    let claims = changes.iter().filter_map(|change| match change {
        Change::AddPath { info, provenance: Provenance::Claimed(member), .. } if *member == viewer.member => {
            Some(info)
        }
        _ => None,
    });
    let (mut paths, mut references) = (0, 0);
    for info in claims {
        paths += 1;
        references += info.references.len();
    }
    if paths == 0 {
        return Ok(());
    }
    let has = seen.own_charged();
    for (what, count, limit) in [
        ("paths", has.paths as usize + paths, MAX_CLAIMS),
        ("references of paths", has.references as usize + references, MAX_CLAIMED_REFERENCES),
    ] {
        if count > limit {
            return Err(RegisterError::ClaimLimit { member: viewer.member.clone(), what, count, limit });
        }
    }
    Ok(())
}
