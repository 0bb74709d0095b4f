//! Parts of a row besides the path info: the origins of a claim, and a member's annotation of a path.
//!
//! Not here: the rules that compute them, and the rules for who sees what because of them (`views`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use nix_derivation::StorePath;

use crate::types::Member;

/// The owners of a claim and of all claims below it. Nothing is stored for the usual case: the layer's member alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origins(Option<Arc<BTreeSet<Member>>>);

impl Origins {
    /// These owners, for a row in the layer of `layer`.
    pub(crate) fn new(members: BTreeSet<Member>, layer: &Member) -> Self {
        let own_only = members.len() == 1 && members.contains(layer);
        Self((!own_only).then(|| Arc::new(members)))
    }

    /// These owners, for a row in any layer.
    pub(crate) fn spelled_out(members: Arc<BTreeSet<Member>>) -> Self {
        Self(Some(members))
    }

    /// The owners; `None` if that is the layer's member alone.
    pub(crate) fn stored(&self) -> Option<&Arc<BTreeSet<Member>>> {
        self.0.as_ref()
    }

    /// The owners of a row in the layer of `layer`.
    pub(crate) fn members(&self, layer: &Member) -> BTreeSet<Member> {
        self.0.as_ref().map_or_else(|| [layer.clone()].into(), |members| (**members).clone())
    }

    /// Whether members other than the layer's are among them.
    pub(crate) fn is_foreign(&self) -> bool {
        self.0.is_some()
    }

    /// The form in the database: one name a line.
    pub(crate) fn to_text(&self) -> Option<String> {
        let members = self.0.as_ref()?;
        Some(members.iter().map(Member::name).collect::<Vec<_>>().join("\n"))
    }

    /// An empty text is one nameless member, with whom nobody shares: the owners of claims that older
    /// versions wrote are not known.
    pub(crate) fn from_text(text: Option<&str>) -> Self {
        Self(text.map(|text| Arc::new(text.split('\n').map(Member::new).collect())))
    }
}

/// A member's statement about a path: the derivation it came from, and signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Annotation {
    /// The NAR hash of the contents that it is about.
    pub(crate) nar_hash: [u8; 32],
    pub(crate) deriver: Option<StorePath>,
    pub(crate) signatures: Vec<String>,
}

/// Memory of an annotation besides its texts: three copies of a path, and the maps.
const ANNOTATION_OVERHEAD: usize = 320;

impl Annotation {
    /// About how many bytes of memory the annotation takes.
    pub(crate) fn weight(&self) -> usize {
        ANNOTATION_OVERHEAD + self.signatures.iter().map(|s| s.len() + size_of::<String>()).sum::<usize>()
    }
}

/// The annotations of one member, with their age.
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

    /// The annotated paths, those with the oldest annotations first.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.by_age.values()
    }

    /// The sum of all weights.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Replaces the earlier annotation of `path`. The new one counts as the newest of all.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_its_own_member_alone_nothing_is_stored_and_all_else_survives_the_database() {
        let (a, b) = (Member::new("a"), Member::new("b"));
        let own = Origins::new([a.clone()].into(), &a);
        assert_eq!((own.to_text(), own.is_foreign()), (None, false));
        let both = Origins::new([a.clone(), b].into(), &a);
        assert_eq!(Origins::from_text(both.to_text().as_deref()), both);
        assert_eq!(own.members(&a), [a].into());
    }
}
