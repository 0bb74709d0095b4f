//! The rows of the index that one member may see: Verified rows, the member's own, and those that others
//! share.
//!
//! Every answer of a view comes from here, and does not depend on anything that other members have and do not
//! share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use nix::PathInfo;
use nix_derivation::StorePath;

use super::quota::Payer;
use crate::error::MissingPath;
use crate::index::memory::{Entry, Layer, Memory};
use crate::index::rows::{Annotation, Annotations};
use crate::types::charged::Charged;
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::{Member, Provenance};

/// The member of a view, and the members who share with that member.
#[derive(Clone)]
pub(crate) struct Viewer {
    pub(crate) member: Member,
    pub(crate) others: Arc<[Member]>,
    /// Who is charged for what the view registers.
    pub(crate) payer: Payer,
}

impl Viewer {
    pub(crate) fn sees<'a>(&'a self, index: &'a Memory) -> Seen<'a> {
        Seen::new(index, &self.member, &self.others)
    }
}

/// The layer from which an answer came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose<'a> {
    Everybodys,
    Own(&'a Member),
    Shared(&'a Member),
}

impl Whose<'_> {
    pub(crate) fn provenance(self) -> Provenance {
        match self {
            Self::Everybodys => Provenance::Verified,
            Self::Own(member) | Self::Shared(member) => Provenance::Claimed(member.clone()),
        }
    }
}

/// The layers that one member sees: Verified, own, shared. If several of them have a path, the first one
/// counts.
pub(crate) struct Seen<'a> {
    verified: &'a Layer,
    own: Option<&'a Layer>,
    others: Vec<(&'a Member, &'a Layer)>,
    member: &'a Member,
    /// The members who share with the member, even those without claims.
    sharing: &'a [Member],
}

impl<'a> Seen<'a> {
    fn new(index: &'a Memory, member: &'a Member, others: &'a [Member]) -> Self {
        Seen {
            verified: index.verified(),
            own: index.claims_of(member),
            others: others.iter().filter_map(|m| Some((m, index.claims_of(m)?))).collect(),
            member,
            sharing: others,
        }
    }

    /// The member's claims together.
    pub(crate) fn own_charged(&self) -> Charged {
        self.own.map(Layer::charged).unwrap_or_default()
    }

    fn layers(&self) -> impl Iterator<Item = (Whose<'a>, &'a Layer)> {
        let own = self.own.map(|layer| (Whose::Own(self.member), layer));
        let others = self.others.iter().map(|(member, layer)| (Whose::Shared(member), *layer));
        std::iter::once((Whose::Everybodys, self.verified)).chain(own).chain(others)
    }

    pub(crate) fn entry(&self, path: &StorePath) -> Option<(&'a Entry, Whose<'a>)> {
        self.layers().find_map(|(whose, layer)| Some((self.open(whose, layer.entry(path)?)?, whose)))
    }

    /// Returns `entry`, unless it is in another member's layer and depends on claims of members who do not
    /// share.
    fn open(&self, whose: Whose<'a>, entry: &'a Entry) -> Option<&'a Entry> {
        let shown = match whose {
            Whose::Everybodys | Whose::Own(_) => true,
            Whose::Shared(_) => entry.origins.are_open_to(self.member, self.sharing),
        };
        shown.then_some(entry)
    }

    /// The member's knowledge of a path: its info, completed with the member's own annotation.
    pub(crate) fn described(&self, path: &StorePath) -> Option<(Arc<PathInfo>, Whose<'a>)> {
        let (entry, whose) = self.entry(path)?;
        // A claim that a Verified path hides still knows the deriver.
        let hidden = self.own_claim(path).filter(|_| whose == Whose::Everybodys);
        let hidden = hidden.filter(|claim| claim.info.nar_hash == entry.info.nar_hash);
        let added = self.annotation(path).filter(|added| added.nar_hash == entry.info.nar_hash);
        if hidden.is_none() && added.is_none() {
            return Some((Arc::clone(&entry.info), whose));
        }
        let mut info = PathInfo::clone(&entry.info);
        if let Some(claim) = hidden {
            Annotation::of(&claim.info).describe(&mut info);
        }
        if let Some(added) = added {
            added.describe(&mut info);
        }
        Some((Arc::new(info), whose))
    }

    /// The member's annotation of a path, which may be about other contents than the path has now.
    pub(crate) fn annotation(&self, path: &StorePath) -> Option<&'a Arc<Annotation>> {
        self.own?.annotations().of(path)
    }

    pub(crate) fn annotations(&self) -> Option<&'a Annotations> {
        self.own.map(Layer::annotations)
    }

    pub(crate) fn info(&self, path: &StorePath) -> Option<&'a Arc<PathInfo>> {
        self.entry(path).map(|(entry, _)| &entry.info)
    }

    /// The member's own claim of `path`, even where a Verified one hides it.
    pub(crate) fn own_claim(&self, path: &StorePath) -> Option<&'a Entry> {
        self.own?.entry(path)
    }

    /// All claims of the member, including hidden ones.
    pub(crate) fn own_claims(&self) -> impl Iterator<Item = &'a Arc<PathInfo>> {
        self.own.into_iter().flat_map(|layer| layer.entries().map(|(_, entry)| &entry.info))
    }

    /// The member's own claims that refer to `path`, including hidden ones.
    pub(crate) fn own_referrers(&self, path: &StorePath) -> impl Iterator<Item = &'a StorePath> {
        self.own.into_iter().flat_map(|layer| layer.referrers(path))
    }

    pub(crate) fn is_verified(&self, path: &StorePath) -> bool {
        self.verified.entry(path).is_some()
    }

    pub(crate) fn by_digest(&self, digest: &[u8; 20]) -> Option<StorePath> {
        self.layers().find_map(|(whose, layer)| {
            let shown = |path: &&StorePath| layer.entry(path).is_some_and(|e| self.open(whose, e).is_some());
            layer.with_digest(digest).find(shown).cloned()
        })
    }

    pub(crate) fn referrers(&self, path: &StorePath) -> BTreeSet<StorePath> {
        let mut out = BTreeSet::new();
        for (whose, layer) in self.layers() {
            // A hidden claim may have other references than the visible path.
            let seen = |p: &&StorePath| self.entry(p).is_some_and(|(_, w)| w == whose);
            out.extend(layer.referrers(path).filter(seen).cloned());
        }
        out
    }

    pub(crate) fn all(&self) -> BTreeSet<StorePath> {
        let shown = |(whose, layer): (Whose<'a>, &'a Layer)| {
            layer.entries().filter(move |(_, entry)| self.open(whose, entry).is_some())
        };
        self.layers().flat_map(shown).map(|(path, _)| path.clone()).collect()
    }

    pub(crate) fn realisation(&self, id: &RealisationId) -> Option<(&'a Arc<Realisation>, Whose<'a>)> {
        self.layers().find_map(|(whose, layer)| {
            let realisation = layer.realisations().get(id)?;
            // Another member's realisation is as visible as its path.
            let shown = match whose {
                Whose::Everybodys | Whose::Own(_) => true,
                Whose::Shared(_) if self.is_verified(&realisation.path) => true,
                Whose::Shared(_) => self.open(whose, layer.entry(&realisation.path)?).is_some(),
            };
            shown.then_some((realisation, whose))
        })
    }

    /// The member's own claim of a realisation, even if a Verified one hides it.
    pub(crate) fn own_realisation(&self, id: &RealisationId) -> Option<&'a Arc<Realisation>> {
        self.own?.realisations().get(id)
    }

    /// All claimed realisations of the member, including hidden ones.
    pub(crate) fn own_realisations(&self) -> &'a HashMap<RealisationId, Arc<Realisation>> {
        static NONE: LazyLock<HashMap<RealisationId, Arc<Realisation>>> = LazyLock::new(HashMap::new);
        self.own.map_or(&NONE, Layer::realisations)
    }

    pub(crate) fn root(&self, name: &str) -> Option<&'a StorePath> {
        self.own?.roots().get(name)
    }

    pub(crate) fn roots(&self) -> &'a BTreeMap<String, StorePath> {
        static NONE: BTreeMap<String, StorePath> = BTreeMap::new();
        self.own.map_or(&NONE, Layer::roots)
    }

    /// The closure of `of`, as the view has it at this moment.
    pub(crate) fn closure<'p>(
        &self,
        of: impl IntoIterator<Item = &'p StorePath>,
    ) -> Result<BTreeMap<StorePath, (Arc<PathInfo>, Whose<'a>)>, MissingPath>
    where
        'a: 'p,
    {
        let mut out = BTreeMap::new();
        let mut todo: Vec<&'p StorePath> = of.into_iter().collect();
        while let Some(path) = todo.pop() {
            if out.contains_key(path) {
                continue;
            }
            let (entry, whose) = self.entry(path).ok_or_else(|| MissingPath(path.clone()))?;
            out.insert(path.clone(), (Arc::clone(&entry.info), whose));
            todo.extend(entry.info.references.iter());
        }
        Ok(out)
    }
}
