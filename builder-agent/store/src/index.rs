//! The index in memory: every answer about validity comes from here.
//!
//! One layer for Verified paths and one per member, so that nothing looked up for one member depends on what
//! another has. Held in a `RwLock` by the store; no one keeps the lock during input or output.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use nix_derivation::StorePath;

use crate::error::MissingPath;
use crate::types::{Member, PathInfo, Provenance};

#[derive(Default)]
struct Layer {
    infos: HashMap<StorePath, Arc<PathInfo>>,
    by_digest: HashMap<[u8; 20], BTreeSet<StorePath>>,
    referrers: HashMap<StorePath, BTreeSet<StorePath>>,
}

impl Layer {
    fn insert(&mut self, info: Arc<PathInfo>) {
        self.by_digest.entry(*info.path.digest()).or_default().insert(info.path.clone());
        for reference in &info.references {
            self.referrers.entry(reference.clone()).or_default().insert(info.path.clone());
        }
        self.infos.insert(info.path.clone(), info);
    }
}

#[derive(Default)]
pub(crate) struct Index {
    verified: Layer,
    claimed: HashMap<Member, Layer>,
}

impl Index {
    /// Adds a path, or replaces what was known about it under the same provenance.
    pub(crate) fn insert(&mut self, info: Arc<PathInfo>, provenance: &Provenance) {
        match provenance {
            Provenance::Verified => self.verified.insert(info),
            Provenance::Claimed(member) => self.claimed.entry(member.clone()).or_default().insert(info),
        }
    }

    pub(crate) fn is_verified(&self, path: &StorePath) -> bool {
        self.verified.infos.contains_key(path)
    }

    /// What `member` may see.
    pub(crate) fn seen_by<'a>(&'a self, member: &Member) -> Seen<'a> {
        Seen { verified: &self.verified, own: self.claimed.get(member) }
    }
}

/// The two layers that one member sees. Where both know a path, the Verified one counts.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    verified: &'a Layer,
    own: Option<&'a Layer>,
}

impl<'a> Seen<'a> {
    pub(crate) fn info(self, path: &StorePath) -> Option<&'a Arc<PathInfo>> {
        self.verified.infos.get(path).or_else(|| self.own?.infos.get(path))
    }

    /// The member's own Claimed info of `path`, even where a Verified one hides it.
    pub(crate) fn own_claim(self, path: &StorePath) -> Option<&'a Arc<PathInfo>> {
        self.own?.infos.get(path)
    }

    pub(crate) fn is_verified(self, path: &StorePath) -> bool {
        self.verified.infos.contains_key(path)
    }

    pub(crate) fn by_digest(self, digest: &[u8; 20]) -> Option<StorePath> {
        let first = |layer: &Layer| layer.by_digest.get(digest)?.first().cloned();
        first(self.verified).or_else(|| first(self.own?))
    }

    pub(crate) fn referrers(self, path: &StorePath) -> BTreeSet<StorePath> {
        let mut out = self.verified.referrers.get(path).cloned().unwrap_or_default();
        if let Some(own) = self.own.and_then(|l| l.referrers.get(path)) {
            // A hidden claim's references are not those of the path that is seen.
            out.extend(own.iter().filter(|p| !self.is_verified(p)).cloned());
        }
        out
    }

    pub(crate) fn all(self) -> BTreeSet<StorePath> {
        let own = self.own.into_iter().flat_map(|l| l.infos.keys());
        self.verified.infos.keys().chain(own).cloned().collect()
    }

    pub(crate) fn closure(self, of: &[StorePath]) -> Result<BTreeSet<StorePath>, MissingPath> {
        let mut out = BTreeSet::new();
        let mut todo: Vec<&StorePath> = of.iter().collect();
        while let Some(path) = todo.pop() {
            if out.contains(path) {
                continue;
            }
            let info = self.info(path).ok_or_else(|| MissingPath(path.clone()))?;
            out.insert(path.clone());
            todo.extend(info.references.iter());
        }
        Ok(out)
    }
}
