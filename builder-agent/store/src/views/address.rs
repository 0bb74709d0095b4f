//! Content addresses: they derive a path from its contents. Therefore an upload can be Verified although its
//! sender is not trusted.

use std::collections::BTreeSet;

use nix::PathInfo;
use nix_derivation::{
    CAHash, ContentAddressMethod, HashAlgorithm, NixHash, StorePath, nixbase32, store_path::build_ca_path,
};

use super::staged::Staged;
use super::{limits, provenance};
use crate::config::StoreConfig;
use crate::error::ImportError;
use crate::index::rows::Annotation;
use crate::objects::ingest::Ingested;
use crate::types::{Member, Provenance};

/// Checks a client's path info against `ingested`.
pub(crate) fn stage(
    config: &StoreConfig,
    member: &Member,
    ingested: Ingested,
    mut info: PathInfo,
) -> Result<Staged, ImportError> {
    let path = &info.path;
    if info.nar_hash != ingested.nar_hash {
        return Err(ImportError::HashMismatch {
            path: path.clone(),
            announced: nixbase32::encode(&info.nar_hash),
            got: nixbase32::encode(&ingested.nar_hash),
        });
    }
    if info.nar_size != 0 && info.nar_size != ingested.nar_size {
        let (announced, got) = (info.nar_size, ingested.nar_size);
        return Err(ImportError::SizeMismatch { path: path.clone(), announced, got });
    }
    info.nar_size = ingested.nar_size;
    info.registration_time = 0;
    // Only the box may say "built here".
    info.ultimate = false;
    limits::check_signatures(&info.path, &info.signatures)?;
    let sure = match &info.ca {
        Some(announced) => check_address(&ingested, &info, announced)?,
        None => false,
    };
    let good = provenance::trusted_signatures(config, &info);
    let proven = sure || !good.is_empty();
    let said = Annotation::of(&info);
    let provenance = if proven {
        // All members will see this info; only checked fields may stay in it.
        provenance::only_checked(&mut info, good);
        Provenance::Verified
    } else {
        Provenance::Claimed(member.clone())
    };
    limits::check(member, &ingested, &info, &provenance)?;
    Ok(Staged { ingested, info, provenance, proven, said })
}

/// Fails unless the contents have the content address and it gives the path. Returns whether it excludes
/// other contents.
fn check_address(ingested: &Ingested, info: &PathInfo, announced: &CAHash) -> Result<bool, ImportError> {
    let path = &info.path;
    let bad = |why: String| ImportError::BadContentAddress {
        path: path.clone(),
        ca: announced.to_nix_string(),
        why,
    };
    let mut references = info.references.clone();
    let own = references.remove(path);
    let (method, algorithm) = (announced.method(), announced.hash().algorithm());
    let address = |hash: NixHash| {
        CAHash::from_parts(method, algorithm, hash.digest_as_bytes()).map_err(|e| bad(e.to_string()))
    };
    let (computed, sure) = match own {
        false => (address(ingested.ca_hash(method, algorithm, None)?)?, true),
        true => {
            let contents = ingested.contents()?;
            let counted = contents.counted_hash(method, algorithm, path)?.map(address).transpose()?;
            match counted.filter(|counted| counted == announced) {
                Some(counted) => (counted, true),
                None => (address(contents.hash(method, algorithm, Some(path))?)?, false),
            }
        }
    };
    if computed != *announced {
        return Err(ImportError::ContentMismatch {
            path: path.clone(),
            announced: announced.to_nix_string(),
            computed: computed.to_nix_string(),
        });
    }
    let at = build_ca_path(path.name(), &computed, &references, own).map_err(|e| bad(e.to_string()))?;
    if at != *path {
        return Err(ImportError::PathMismatch { announced: path.clone(), computed: at });
    }
    Ok(sure)
}

/// Computes the path of contents that were uploaded without one.
pub(crate) fn stage_new(
    ingested: Ingested,
    name: &str,
    method: ContentAddressMethod,
    algorithm: HashAlgorithm,
    references: &BTreeSet<StorePath>,
) -> Result<Staged, ImportError> {
    let bad = |why: String| ImportError::BadName { name: name.to_owned(), why };
    let hash = ingested.ca_hash(method, algorithm, None)?;
    let ca = CAHash::from_parts(method, algorithm, hash.digest_as_bytes()).map_err(|e| bad(e.to_string()))?;
    let path = build_ca_path(name, &ca, references, false).map_err(|e| bad(e.to_string()))?;
    let info = PathInfo {
        path,
        nar_hash: ingested.nar_hash,
        nar_size: ingested.nar_size,
        references: references.clone(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: Some(ca),
    };
    let said = Annotation::of(&info);
    Ok(Staged { ingested, info, provenance: Provenance::Verified, proven: true, said })
}
