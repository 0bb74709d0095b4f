//! What a member says about a path that is not theirs: which derivation they had it from, and signatures.
//!
//! Kept beside the path, in the member's own layer, and told to nobody else: not to those who share with them, nor to
//! the signer. An annotation is about contents, not about a name, so it never describes another object than the one it was made
//! for. It keeps nothing alive. Not here: the deriver and the signatures that a claim came with; those are part of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nix_derivation::StorePath;

use crate::index::change::Change;
use crate::index::memory::Seen;
use crate::types::{Member, PathInfo};
use crate::views::register::MAX_SIGNATURES;

/// Memory for one member's annotations; beyond it the oldest go. Room for a closure of 80,000 paths with a deriver and a
/// signature each, several times what a large system has.
const MAX_BYTES: usize = 32 << 20;
/// What one takes beside its texts: three copies of a path, and the maps.
const OVERHEAD: usize = 320;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Annotation {
    /// The contents it is about.
    pub(crate) nar_hash: [u8; 32],
    pub(crate) deriver: Option<StorePath>,
    pub(crate) signatures: Vec<String>,
}

impl Annotation {
    /// All that `info` says and nobody has proven.
    pub(crate) fn of(info: &PathInfo) -> Self {
        let (deriver, signatures) = (info.deriver.clone(), info.signatures.clone());
        Self { nar_hash: info.nar_hash, deriver, signatures }
    }

    /// Only where contents came from.
    pub(crate) fn deriver(nar_hash: [u8; 32], deriver: Option<&StorePath>) -> Self {
        Self { nar_hash, deriver: deriver.cloned(), signatures: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deriver.is_none() && self.signatures.is_empty()
    }

    fn weight(&self) -> usize {
        OVERHEAD + self.signatures.iter().map(|s| s.len() + size_of::<String>()).sum::<usize>()
    }

    /// What this adds to `info`, on top of what `before` does. The latest deriver counts.
    fn beside(self, info: &PathInfo, before: Option<&Self>) -> Self {
        let said = self.deriver.filter(|drv| drv.is_derivation());
        let deriver = said.or_else(|| before.and_then(|before| before.deriver.clone()));
        let mut signatures = before.map_or_else(Vec::new, |before| before.signatures.clone());
        for signature in self.signatures {
            if !info.signatures.contains(&signature)
                && !signatures.contains(&signature)
                && signatures.len() < MAX_SIGNATURES
            {
                signatures.push(signature);
            }
        }
        Self {
            nar_hash: info.nar_hash,
            deriver: deriver.filter(|d| info.deriver.as_ref() != Some(d)),
            signatures,
        }
    }

    /// `info` as the member knows it who said this.
    pub(crate) fn describe(&self, info: &mut PathInfo) {
        if let Some(deriver) = &self.deriver {
            info.deriver = Some(deriver.clone());
        }
        let new =
            self.signatures.iter().filter(|s| !info.signatures.contains(s)).cloned().collect::<Vec<_>>();
        info.signatures.extend(new);
    }
}

/// Those of one member, and how old each is.
#[derive(Default)]
pub(crate) struct Annotations {
    by_path: HashMap<StorePath, (u64, Arc<Annotation>)>,
    by_age: BTreeMap<u64, StorePath>,
    bytes: usize,
}

impl Annotations {
    pub(crate) fn of(&self, path: &StorePath) -> Option<&Arc<Annotation>> {
        self.by_path.get(path).map(|(_, annotation)| annotation)
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.by_age.values()
    }

    /// In place of what was there; the newest now.
    pub(crate) fn put(&mut self, path: StorePath, annotation: Arc<Annotation>) {
        self.remove(&path);
        let age = self.by_age.last_key_value().map_or(0, |(last, _)| last + 1);
        self.bytes += annotation.weight();
        self.by_age.insert(age, path.clone());
        self.by_path.insert(path, (age, annotation));
    }

    pub(crate) fn remove(&mut self, path: &StorePath) {
        if let Some((age, annotation)) = self.by_path.remove(path) {
            self.by_age.remove(&age);
            self.bytes -= annotation.weight();
        }
    }

    /// The oldest ones that have to go for `more` bytes.
    fn too_many(&self, more: usize) -> impl Iterator<Item = &StorePath> {
        let mut left = self.bytes + more;
        self.by_age.values().take_while(move |path| {
            let over = left > MAX_BYTES;
            left -= self.by_path.get(*path).map_or(0, |(_, annotation)| annotation.weight());
            over
        })
    }
}

/// What one change of the store brings, for each path once.
#[derive(Default)]
pub(crate) struct Notes(BTreeMap<StorePath, (Arc<PathInfo>, Annotation)>);

impl Notes {
    /// `said` about the path that the view shows as `info`, or will. Of two derivers the first counts. It counts for
    /// nothing if it is about other contents.
    pub(crate) fn add(&mut self, info: &Arc<PathInfo>, said: Annotation) {
        if said.is_empty() || said.nar_hash != info.nar_hash {
            return;
        }
        match self.0.get_mut(&info.path) {
            Some((_, known)) => {
                known.deriver = known.deriver.take().or(said.deriver);
                known.signatures.extend(said.signatures);
            }
            None => drop(self.0.insert(info.path.clone(), (Arc::clone(info), said))),
        }
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.0.keys()
    }

    /// What changes in the layer of `member`; nothing if all of it is known.
    pub(crate) fn changes(self, seen: &Seen<'_>, member: &Member) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut more = 0;
        for (path, (info, said)) in self.0 {
            let before = seen.annotation(&path).filter(|known| known.nar_hash == info.nar_hash);
            let after = said.beside(&info, before.map(|known| &**known));
            let member = member.clone();
            match before {
                Some(before) if **before == after => {}
                None if after.is_empty() => {}
                Some(_) if after.is_empty() => changes.push(Change::DropAnnotation { member, path }),
                _ => {
                    more += after.weight();
                    changes.push(Change::Annotate { member, path, annotation: Arc::new(after) });
                }
            }
        }
        // Before the new ones, some of which may take the place of old ones.
        let old = seen.annotations().into_iter().flat_map(|all| all.too_many(more));
        let drops = old.map(|path| Change::DropAnnotation { member: member.clone(), path: path.clone() });
        drops.chain(changes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(n: usize) -> StorePath {
        let mut digest = [0; 20];
        digest[..8].copy_from_slice(&n.to_be_bytes());
        StorePath::from_parts(digest, "p.drv").unwrap()
    }

    fn signed(bytes: usize) -> Arc<Annotation> {
        Arc::new(Annotation { nar_hash: [1; 32], deriver: None, signatures: vec!["s".repeat(bytes)] })
    }

    #[test]
    fn the_oldest_make_room_and_one_that_is_made_anew_is_the_newest() {
        let mut all = Annotations::default();
        let quarter = MAX_BYTES / 4;
        for n in 0..3 {
            all.put(path(n), signed(quarter));
        }
        all.put(path(0), signed(quarter));
        assert!(all.too_many(0).next().is_none());
        assert_eq!(all.too_many(quarter * 2).collect::<Vec<_>>(), [&path(1), &path(2)]);
        for n in 0..3 {
            all.remove(&path(n));
        }
        assert_eq!((all.bytes, all.by_age.len()), (0, 0));
    }
}
