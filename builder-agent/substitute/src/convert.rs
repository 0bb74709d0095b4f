//! Path infos between `wire`, `store` and binary caches: the same facts where one does not know the other.

use crate::narinfo::NarInfo;

/// As the store knows it, for a client.
pub fn to_wire(info: &store::PathInfo) -> nix::PathInfo {
    nix::PathInfo {
        path: info.path.clone(),
        deriver: info.deriver.clone(),
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.clone(),
        registration_time: info.registration_time,
        ultimate: info.ultimate,
        signatures: info.signatures.clone(),
        // What the store holds was parsed when it came in.
        ca: info.ca.as_deref().and_then(|ca| ca.parse().ok()),
    }
}

/// As the other side claims it. When it was registered, and that it was built here, is not for others to say.
pub fn from_wire(info: nix::PathInfo) -> store::PathInfo {
    store::PathInfo {
        path: info.path,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references,
        deriver: info.deriver,
        registration_time: 0,
        ultimate: false,
        signatures: info.signatures,
        ca: info.ca.map(|ca| ca.to_nix_string()),
    }
}

/// As a cache claims it.
pub fn from_narinfo(info: NarInfo) -> store::PathInfo {
    let NarInfo { path, nar_hash, nar_size, references, deriver, signatures, ca, .. } = info;
    from_wire(nix::PathInfo {
        path,
        deriver,
        nar_hash,
        nar_size,
        references,
        registration_time: 0,
        ultimate: false,
        signatures,
        ca,
    })
}
