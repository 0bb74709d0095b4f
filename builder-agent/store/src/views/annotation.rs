//! Annotations: a member's deriver and signatures for a path that is not that member's claim.
//!
//! Kept in the member's own layer, and shown to no other member, not even to members who share, nor to the
//! signer. An annotation is about contents, not about a name, so it never describes another object than the
//! one it was made for. It keeps no path alive. Not here: the deriver and the signatures of a claim; those
//! are part of the claim.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use super::limits::MAX_SIGNATURES;
use super::seen::Seen;
use crate::index::change::Change;
use crate::index::rows::{Annotation, Annotations};
use crate::types::Member;

/// Memory for one member's annotations; when it is full the oldest are removed. Room for a closure of 80,000
/// paths with a deriver and a signature each, several times as many as a large system has.
const MAX_BYTES: usize = 32 << 20;

impl Annotation {
    /// The fields of `info` that are not proven.
    pub(crate) fn of(info: &PathInfo) -> Self {
        let (deriver, signatures) = (info.deriver.clone(), info.signatures.clone());
        Self { nar_hash: info.nar_hash, deriver, signatures }
    }

    /// An annotation with a deriver only.
    pub(crate) fn deriver(nar_hash: [u8; 32], deriver: Option<&StorePath>) -> Self {
        Self { nar_hash, deriver: deriver.cloned(), signatures: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.deriver.is_none() && self.signatures.is_empty()
    }

    /// The annotation to store: this one without what `info` says, on top of `before`. The latest deriver
    /// counts.
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

    /// Completes `info` with the member's annotation.
    pub(crate) fn describe(&self, info: &mut PathInfo) {
        if let Some(deriver) = &self.deriver {
            info.deriver = Some(deriver.clone());
        }
        let new =
            self.signatures.iter().filter(|s| !info.signatures.contains(s)).cloned().collect::<Vec<_>>();
        info.signatures.extend(new);
    }
}

/// The oldest of `all`, which must be removed to make room for `more` bytes.
fn too_many(all: &Annotations, more: usize) -> impl Iterator<Item = &StorePath> {
    let mut left = all.bytes() + more;
    all.paths().take_while(move |path| {
        let over = left > MAX_BYTES;
        left -= all.of(path).map_or(0, |annotation| annotation.weight());
        over
    })
}

/// The annotations of one change of the store, at most one for each path.
#[derive(Default)]
pub(crate) struct Notes(BTreeMap<StorePath, (Arc<PathInfo>, Annotation)>);

impl Notes {
    /// Adds `said` about the path that the view shows, or will show, as `info`. Of two derivers the first
    /// counts. Ignored if `said` is about other contents.
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

    /// The changes in the layer of `member`; none if all annotations are known.
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
        // Before the new annotations, some of which may replace old ones.
        let old = seen.annotations().into_iter().flat_map(|all| too_many(all, more));
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
        assert!(too_many(&all, 0).next().is_none());
        assert_eq!(too_many(&all, quarter * 2).collect::<Vec<_>>(), [&path(1), &path(2)]);
        for n in 0..3 {
            all.remove(&path(n));
        }
        assert_eq!((all.bytes(), all.paths().count()), (0, 0));
    }
}
