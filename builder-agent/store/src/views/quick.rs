//! Whether registering a path is so little work that handing it to another thread would be most of it.
//!
//! A thread that answers many clients may do such work itself. So nothing of it may wait for a disk or for another commit,
//! and nothing of it may grow with what the member has: a small path is a few system calls on files in memory and one row
//! of the index, about 100 microseconds. To wake a thread and to be woken by it takes as long.
//!
//! The answer depends on the store's place, on whether somebody commits just now, and on the member's own claims; never on
//! what others have.

use super::seen::Viewer;
use crate::types::PathInfo;
use crate::upkeep::base::Base;

/// Bytes of a NAR that are hashed and copied within some ten microseconds.
const MAX_BYTES: u64 = 16 << 10;
/// References that are looked up within some ten microseconds.
const MAX_REFERENCES: usize = 64;
/// Signatures are checked before anything else is known: about 30 microseconds each.
const MAX_SIGNATURES: usize = 2;

/// See [`crate::View::is_quick`].
pub(crate) fn is_quick(base: &Base, viewer: &Viewer, info: &PathInfo, bytes: u64) -> bool {
    let small = bytes <= MAX_BYTES
        && info.references.len() <= MAX_REFERENCES
        && info.signatures.len() <= MAX_SIGNATURES;
    // What others share may have to be made the member's own, with its whole closure.
    small
        && base.in_memory
        && viewer.others.is_empty()
        && nothing_follows(base, viewer, info)
        && base.index.is_free()
}

/// Whether no claim of the member waits for this path: with the last thing that a claim waits for, it becomes Verified, and
/// then perhaps others that wait for it.
fn nothing_follows(base: &Base, viewer: &Viewer, info: &PathInfo) -> bool {
    // A commit has the index for a moment while it makes visible what it wrote; whoever asks here does not wait for that.
    let Some(index) = base.index.try_read() else { return false };
    viewer.sees(&index).own_referrers(&info.path).next().is_none()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix_derivation::StorePath;
    use tempfile::TempDir;

    use super::*;
    use crate::config::StoreConfig;
    use crate::types::{Member, Provenance};
    use crate::upkeep::base::is_in_memory;
    use crate::{Store, View};

    fn in_memory() -> (TempDir, Store, View) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
        let view = store.view(&Member::new("alice"));
        (dir, store, view)
    }

    fn info(name: &str) -> PathInfo {
        PathInfo {
            path: StorePath::from_parts([1; 20], name).unwrap(),
            nar_hash: [2; 32],
            nar_size: 100,
            references: [].into(),
            deriver: None,
            registration_time: 0,
            ultimate: false,
            signatures: Vec::new(),
            ca: None,
        }
    }

    #[test]
    fn memory_is_told_from_what_is_none() {
        assert!(is_in_memory(Path::new("/dev/shm")).unwrap());
        assert!(!is_in_memory(Path::new("/proc")).unwrap());
    }

    #[test]
    fn only_small_paths_are_quick() {
        let (_dir, _store, view) = in_memory();
        assert!(view.is_quick(&info("x"), 100));
        assert!(!view.is_quick(&info("x"), MAX_BYTES + 1));
        let path = |n| StorePath::from_parts([n; 20], "y").unwrap();
        let many = PathInfo { references: (0..=MAX_REFERENCES as u8).map(path).collect(), ..info("x") };
        assert!(!view.is_quick(&many, 100));
    }

    #[test]
    fn nothing_is_quick_while_somebody_commits() {
        let (_dir, store, view) = in_memory();
        let committing = store.base.index.lock();
        assert!(!view.is_quick(&info("x"), 100));
        let showing = committing.memory_mut();
        assert!(!view.is_quick(&info("x"), 100));
        drop(showing);
        drop(committing);
        assert!(view.is_quick(&info("x"), 100));
    }

    #[test]
    fn a_path_that_claims_wait_for_is_not_quick() {
        let (_dir, _store, view) = in_memory();
        let (method, algorithm) =
            (nix_derivation::ContentAddressMethod::Flat, nix_derivation::HashAlgorithm::Sha256);
        let made = view.add_ca("z", method, algorithm, &[].into(), &mut &b"z"[..]).unwrap();
        let object = PathInfo::clone(&made);
        let claims = Provenance::Claimed(Member::new("alice"));
        let below = info("below");
        let above = PathInfo {
            path: StorePath::from_parts([3; 20], "above").unwrap(),
            references: [below.path.clone()].into(),
            ..below.clone()
        };
        let with_object =
            |i: &PathInfo| PathInfo { nar_hash: object.nar_hash, nar_size: object.nar_size, ..i.clone() };
        let batch = [&below, &above].map(|i| (with_object(i), claims.clone()));
        view.adopt(batch.into(), None).unwrap();
        assert!(!view.is_quick(&below, 100));
        assert!(view.is_quick(&above, 100));
    }

    #[test]
    fn who_is_shared_with_has_nothing_quick() {
        let (_dir, store, _) = in_memory();
        let view = store.view_sharing(&Member::new("alice"), &[Member::new("bob")]);
        assert!(!view.is_quick(&info("x"), 100));
    }
}
