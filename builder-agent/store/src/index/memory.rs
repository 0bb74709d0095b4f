//! The index in memory: every answer about validity comes from here.
//!
//! One layer for Verified paths and one per member, so that nothing looked up for one member depends on what
//! another has, unless the two share. Held in a `RwLock` by the store; no one keeps the lock during input or output.
//! Changes come as [`Change`]s, the same that were written to the index on disk before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use nix_derivation::StorePath;

use crate::error::MissingPath;
use crate::index::change::Change;
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::{BuildRecord, RecordEnd};
use crate::types::{Member, PathInfo, Provenance};
use crate::views::annotation::{Annotation, Annotations};
use crate::views::origins::Origins;

/// One path in one layer.
pub(crate) struct Entry {
    pub(crate) info: Arc<PathInfo>,
    /// Its contents are proven by a content address or by a signature; it is Claimed only because of its references.
    pub(crate) proven: bool,
    /// Whose it is, and what it refers to: who else may see it.
    pub(crate) origins: Origins,
}

#[derive(Default)]
struct Layer {
    entries: HashMap<StorePath, Entry>,
    by_digest: HashMap<[u8; 20], BTreeSet<StorePath>>,
    referrers: HashMap<StorePath, BTreeSet<StorePath>>,
    realisations: HashMap<RealisationId, Arc<Realisation>>,
    roots: BTreeMap<String, StorePath>,
    /// Of all entries together.
    references: usize,
    annotations: Annotations,
    /// How many entries have something of others.
    foreign: usize,
}

impl Layer {
    fn insert(&mut self, info: Arc<PathInfo>, proven: bool, origins: Origins) {
        self.by_digest.entry(*info.path.digest()).or_default().insert(info.path.clone());
        for reference in &info.references {
            self.referrers.entry(reference.clone()).or_default().insert(info.path.clone());
        }
        self.references += info.references.len();
        self.foreign += usize::from(origins.is_foreign());
        self.entries.insert(info.path.clone(), Entry { info, proven, origins });
    }

    fn remove(&mut self, path: &StorePath) -> Option<Entry> {
        let entry = self.entries.remove(path)?;
        self.references -= entry.info.references.len();
        self.foreign -= usize::from(entry.origins.is_foreign());
        remove_from(&mut self.by_digest, path.digest(), path);
        for reference in &entry.info.references {
            remove_from(&mut self.referrers, reference, path);
        }
        Some(entry)
    }
}

fn remove_from<K: std::hash::Hash + Eq>(
    map: &mut HashMap<K, BTreeSet<StorePath>>,
    key: &K,
    path: &StorePath,
) {
    if let Some(paths) = map.get_mut(key) {
        paths.remove(path);
        if paths.is_empty() {
            map.remove(key);
        }
    }
}

/// Who needs an object.
#[derive(Default)]
struct Uses {
    /// Paths of all layers.
    paths: usize,
    /// Keys of results. They do not keep an object: they go with it.
    results: BTreeSet<[u8; 32]>,
    /// Bytes of its file.
    size: u64,
}

#[derive(Default)]
pub(crate) struct Index {
    verified: Layer,
    claimed: HashMap<Member, Layer>,
    objects: HashMap<[u8; 32], Uses>,
    results: HashMap<[u8; 32], Arc<BuildRecord>>,
    /// Those of them that are failures, by time.
    failures: BTreeSet<(i64, [u8; 32])>,
}

impl Index {
    fn layer(&mut self, provenance: &Provenance) -> &mut Layer {
        match provenance {
            Provenance::Verified => &mut self.verified,
            Provenance::Claimed(member) => self.claimed.entry(member.clone()).or_default(),
        }
    }

    /// Does in memory what [`crate::index::database::Db::write`] did on disk.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::AddPath { info, provenance, proven, object_size, origins } => {
                let layer = self.layer(&provenance);
                if layer.entries.contains_key(&info.path) {
                    return;
                }
                layer.insert(Arc::clone(&info), proven, origins);
                let uses = self.objects.entry(info.nar_hash).or_default();
                uses.paths += 1;
                uses.size = object_size;
            }
            Change::DropClaim { member, path } => {
                let entry = self.claimed.get_mut(&member).and_then(|layer| layer.remove(&path));
                if let Some(uses) = entry.and_then(|entry| self.objects.get_mut(&entry.info.nar_hash)) {
                    uses.paths -= 1;
                }
            }
            Change::SetSignatures { info, provenance, proven } => {
                if let Some(entry) = self.layer(&provenance).entries.get_mut(&info.path) {
                    (entry.info, entry.proven) = (info, proven);
                }
            }
            Change::AddRealisation { id, provenance, realisation } => {
                self.layer(&provenance).realisations.entry(id).or_insert(realisation);
            }
            Change::DropRealisation { id, member } => {
                let layer = match &member {
                    None => Some(&mut self.verified),
                    Some(member) => self.claimed.get_mut(member),
                };
                layer.map(|layer| layer.realisations.remove(&id));
            }
            Change::PutResult { key, record } => {
                self.drop_result(&key);
                for object in record.objects() {
                    self.objects.entry(*object).or_default().results.insert(key);
                }
                if matches!(record.end, RecordEnd::Failed { .. }) {
                    self.failures.insert((record.time, key));
                }
                self.results.insert(key, record);
            }
            Change::DropResult { key } => self.drop_result(&key),
            Change::PutRoot { member, name, path } => {
                self.claimed.entry(member).or_default().roots.insert(name, path);
            }
            Change::DropRoot { member, name } => {
                if let Some(layer) = self.claimed.get_mut(&member) {
                    layer.roots.remove(&name);
                }
            }
            Change::Annotate { member, path, annotation } => {
                self.claimed.entry(member).or_default().annotations.put(path, annotation);
            }
            Change::DropAnnotation { member, path } => {
                if let Some(layer) = self.claimed.get_mut(&member) {
                    layer.annotations.remove(&path);
                }
            }
        }
    }

    /// What takes back a change that drops something which is there; of others `None`.
    pub(crate) fn inverse(&self, change: &Change) -> Option<Change> {
        match change {
            Change::DropClaim { member, path } => {
                let Entry { info, proven, origins } = self.claimed.get(member)?.entries.get(path)?;
                Some(Change::AddPath {
                    info: Arc::clone(info),
                    provenance: Provenance::Claimed(member.clone()),
                    proven: *proven,
                    object_size: self.object_size(&info.nar_hash)?,
                    origins: origins.clone(),
                })
            }
            Change::DropRealisation { id, member: Some(member) } => Some(Change::AddRealisation {
                id: id.clone(),
                provenance: Provenance::Claimed(member.clone()),
                realisation: Arc::clone(self.claimed.get(member)?.realisations.get(id)?),
            }),
            Change::DropResult { key } => {
                Some(Change::PutResult { key: *key, record: Arc::clone(self.results.get(key)?) })
            }
            // What goes with its path: the claim that gave way to a Verified one is remembered by what it said.
            Change::Annotate { member, path, .. } | Change::DropAnnotation { member, path } => {
                let (member, path) = (member.clone(), path.clone());
                let before = self.claimed.get(&member).and_then(|layer| layer.annotations.of(&path).cloned());
                Some(match before {
                    Some(annotation) => Change::Annotate { member, path, annotation },
                    None => Change::DropAnnotation { member, path },
                })
            }
            _ => None,
        }
    }

    fn drop_result(&mut self, key: &[u8; 32]) {
        let Some(record) = self.results.remove(key) else { return };
        self.failures.remove(&(record.time, *key));
        for object in record.objects() {
            if let Some(uses) = self.objects.get_mut(object) {
                uses.results.remove(key);
            }
        }
    }

    pub(crate) fn result(&self, key: &[u8; 32]) -> Option<&Arc<BuildRecord>> {
        self.results.get(key)
    }

    /// How many failures are recorded.
    pub(crate) fn failures(&self) -> usize {
        self.failures.len()
    }

    pub(crate) fn oldest_failure(&self) -> Option<[u8; 32]> {
        self.failures.first().map(|(_, key)| *key)
    }

    /// Bytes of the file of an object that some path has.
    pub(crate) fn object_size(&self, nar_hash: &[u8; 32]) -> Option<u64> {
        self.objects.get(nar_hash).filter(|uses| uses.paths > 0).map(|uses| uses.size)
    }

    /// In how many layers and under how many names an object is somebody's path.
    pub(crate) fn paths_with(&self, nar_hash: &[u8; 32]) -> usize {
        self.objects.get(nar_hash).map_or(0, |uses| uses.paths)
    }

    /// Results that name an object.
    pub(crate) fn results_with(&self, nar_hash: &[u8; 32]) -> impl Iterator<Item = &[u8; 32]> {
        self.objects.get(nar_hash).into_iter().flat_map(|uses| &uses.results)
    }

    /// Forgets an object that nothing names.
    pub(crate) fn forget_object(&mut self, nar_hash: &[u8; 32]) {
        if self.objects.get(nar_hash).is_some_and(|uses| uses.paths == 0 && uses.results.is_empty()) {
            self.objects.remove(nar_hash);
        }
    }

    pub(crate) fn is_verified(&self, path: &StorePath) -> bool {
        self.verified.entries.contains_key(path)
    }

    /// What `member` may see, if `others` share with them: Verified, own, and of the others' layers what they share.
    pub(crate) fn seen_by<'a>(&'a self, member: &'a Member, others: &'a [Member]) -> Seen<'a> {
        Seen {
            verified: &self.verified,
            own: self.claimed.get(member),
            others: others.iter().filter_map(|m| Some((m, self.claimed.get(m)?))).collect(),
            member,
            sharing: others,
        }
    }
}

/// Which layer an answer came from.
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

/// The layers that one member sees: Verified, own, shared. Where several know a path, the first one counts.
pub(crate) struct Seen<'a> {
    verified: &'a Layer,
    own: Option<&'a Layer>,
    others: Vec<(&'a Member, &'a Layer)>,
    member: &'a Member,
    /// Who shares with the member, whether or not they have anything.
    sharing: &'a [Member],
}

impl<'a> Seen<'a> {
    /// How many claims the member has, and how many references all of them have.
    pub(crate) fn own_size(&self) -> (usize, usize) {
        self.own.map_or((0, 0), |layer| (layer.entries.len(), layer.references))
    }

    fn layers(&self) -> impl Iterator<Item = (Whose<'a>, &'a Layer)> {
        let own = self.own.map(|layer| (Whose::Own(self.member), layer));
        let others = self.others.iter().map(|(member, layer)| (Whose::Shared(member), *layer));
        std::iter::once((Whose::Everybodys, self.verified)).chain(own).chain(others)
    }

    pub(crate) fn entry(&self, path: &StorePath) -> Option<(&'a Entry, Whose<'a>)> {
        self.layers().find_map(|(whose, layer)| Some((self.open(whose, layer.entries.get(path)?)?, whose)))
    }

    /// `entry`, unless it is in another's layer and not theirs alone to show.
    fn open(&self, whose: Whose<'a>, entry: &'a Entry) -> Option<&'a Entry> {
        let shown = match whose {
            Whose::Everybodys | Whose::Own(_) => true,
            Whose::Shared(_) => entry.origins.are_open_to(self.member, self.sharing),
        };
        shown.then_some(entry)
    }

    /// What this member knows of a path: its info, with what they said about it themselves.
    pub(crate) fn described(&self, path: &StorePath) -> Option<(Arc<PathInfo>, Whose<'a>)> {
        let (entry, whose) = self.entry(path)?;
        // A claim that a Verified path hides still says where it came from.
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

    /// What the member said about a path, perhaps about other contents than it has now.
    pub(crate) fn annotation(&self, path: &StorePath) -> Option<&'a Arc<Annotation>> {
        self.own?.annotations.of(path)
    }

    pub(crate) fn annotations(&self) -> Option<&'a Annotations> {
        self.own.map(|layer| &layer.annotations)
    }

    /// Whether some of the member's claims are made of others'.
    pub(crate) fn has_foreign(&self) -> bool {
        self.own.is_some_and(|layer| layer.foreign > 0)
    }

    pub(crate) fn info(&self, path: &StorePath) -> Option<&'a Arc<PathInfo>> {
        self.entry(path).map(|(entry, _)| &entry.info)
    }

    /// The member's own claim of `path`, even where a Verified one hides it.
    pub(crate) fn own_claim(&self, path: &StorePath) -> Option<&'a Entry> {
        self.own?.entries.get(path)
    }

    /// All of them, also hidden ones.
    pub(crate) fn own_claims(&self) -> impl Iterator<Item = &'a Arc<PathInfo>> {
        self.own.into_iter().flat_map(|layer| layer.entries.values().map(|entry| &entry.info))
    }

    /// The member's own claims that refer to `path`, also hidden ones.
    pub(crate) fn own_referrers(&self, path: &StorePath) -> impl Iterator<Item = &'a StorePath> {
        self.own.and_then(|layer| layer.referrers.get(path)).into_iter().flatten()
    }

    pub(crate) fn is_verified(&self, path: &StorePath) -> bool {
        self.verified.entries.contains_key(path)
    }

    pub(crate) fn by_digest(&self, digest: &[u8; 20]) -> Option<StorePath> {
        self.layers().find_map(|(whose, layer)| {
            let shown =
                |path: &&StorePath| layer.entries.get(*path).is_some_and(|e| self.open(whose, e).is_some());
            layer.by_digest.get(digest)?.iter().find(shown).cloned()
        })
    }

    pub(crate) fn referrers(&self, path: &StorePath) -> BTreeSet<StorePath> {
        let mut out = BTreeSet::new();
        for (whose, layer) in self.layers() {
            // What a hidden claim refers to is not what the path that is seen refers to.
            let seen = |p: &&StorePath| self.entry(p).is_some_and(|(_, w)| w == whose);
            out.extend(layer.referrers.get(path).into_iter().flatten().filter(seen).cloned());
        }
        out
    }

    pub(crate) fn all(&self) -> BTreeSet<StorePath> {
        let shown = |(whose, layer): (Whose<'a>, &'a Layer)| {
            layer.entries.iter().filter(move |(_, entry)| self.open(whose, entry).is_some())
        };
        self.layers().flat_map(shown).map(|(path, _)| path.clone()).collect()
    }

    pub(crate) fn realisation(&self, id: &RealisationId) -> Option<(&'a Arc<Realisation>, Whose<'a>)> {
        self.layers().find_map(|(whose, layer)| {
            let realisation = layer.realisations.get(id)?;
            // Another's is as visible as the path it leads to.
            let shown = match whose {
                Whose::Everybodys | Whose::Own(_) => true,
                Whose::Shared(_) if self.is_verified(&realisation.path) => true,
                Whose::Shared(_) => self.open(whose, layer.entries.get(&realisation.path)?).is_some(),
            };
            shown.then_some((realisation, whose))
        })
    }

    /// The member's own claim of what an output is, even where a Verified one hides it.
    pub(crate) fn own_realisation(&self, id: &RealisationId) -> Option<&'a Arc<Realisation>> {
        self.own?.realisations.get(id)
    }

    /// All of them, also hidden ones.
    pub(crate) fn own_realisations(&self) -> &'a HashMap<RealisationId, Arc<Realisation>> {
        static NONE: LazyLock<HashMap<RealisationId, Arc<Realisation>>> = LazyLock::new(HashMap::new);
        self.own.map_or(&NONE, |layer| &layer.realisations)
    }

    pub(crate) fn root(&self, name: &str) -> Option<&'a StorePath> {
        self.own?.roots.get(name)
    }

    pub(crate) fn roots(&self) -> &'a BTreeMap<String, StorePath> {
        static NONE: BTreeMap<String, StorePath> = BTreeMap::new();
        self.own.map_or(&NONE, |layer| &layer.roots)
    }

    /// `of` and all they refer to, as the view has them at this moment.
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
