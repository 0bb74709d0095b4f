//! The index in memory: every answer about validity comes from here.
//!
//! One layer for Verified paths and one per member, so that no lookup for one member depends on another
//! member's paths, unless the two share. Held in a `RwLock` by the [`super::Index`]; no thread keeps the lock
//! during input or output. Changes come as [`Change`]s, the same that were written to the database before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use crate::index::change::Change;
use crate::index::rows::{Annotations, Origins};
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::{BuildRecord, RecordEnd};
use crate::types::{Member, Provenance};

/// One path in one layer.
pub(crate) struct Entry {
    pub(crate) info: Arc<PathInfo>,
    /// Its contents are proven by a content address or by a signature; it is Claimed only because of its references.
    pub(crate) proven: bool,
    /// The owners of this claim and of all claims below it; they decide which other members may see it.
    pub(crate) origins: Origins,
}

/// All Verified rows, or all rows of one member.
#[derive(Default)]
pub(crate) struct Layer {
    entries: HashMap<StorePath, Entry>,
    by_digest: HashMap<[u8; 20], BTreeSet<StorePath>>,
    referrers: HashMap<StorePath, BTreeSet<StorePath>>,
    realisations: HashMap<RealisationId, Arc<Realisation>>,
    roots: BTreeMap<String, StorePath>,
    /// Number of references of all entries together.
    references: usize,
    annotations: Annotations,
    /// Number of entries that contain claims of other members.
    foreign: usize,
}

impl Layer {
    pub(crate) fn entry(&self, path: &StorePath) -> Option<&Entry> {
        self.entries.get(path)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&StorePath, &Entry)> {
        self.entries.iter()
    }

    /// How many entries there are, and how many references all of them have.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.references)
    }

    /// Whether some of its claims depend on other members' claims.
    pub(crate) fn has_foreign(&self) -> bool {
        self.foreign > 0
    }

    /// Paths with this digest, in order.
    pub(crate) fn with_digest(&self, digest: &[u8; 20]) -> impl Iterator<Item = &StorePath> {
        self.by_digest.get(digest).into_iter().flatten()
    }

    /// Paths that refer to `path`, in order.
    pub(crate) fn referrers(&self, path: &StorePath) -> impl Iterator<Item = &StorePath> {
        self.referrers.get(path).into_iter().flatten()
    }

    pub(crate) fn realisations(&self) -> &HashMap<RealisationId, Arc<Realisation>> {
        &self.realisations
    }

    pub(crate) fn roots(&self) -> &BTreeMap<String, StorePath> {
        &self.roots
    }

    pub(crate) fn annotations(&self) -> &Annotations {
        &self.annotations
    }

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

/// The paths and results that need an object.
#[derive(Default)]
struct Uses {
    /// Number of paths in all layers.
    paths: usize,
    /// Keys of results. They do not keep an object: they are removed with it.
    results: BTreeSet<[u8; 32]>,
    /// Size of the object's file in bytes.
    size: u64,
}

#[derive(Default)]
pub(crate) struct Memory {
    verified: Layer,
    claimed: HashMap<Member, Layer>,
    objects: HashMap<[u8; 32], Uses>,
    results: HashMap<[u8; 32], Arc<BuildRecord>>,
    /// The results that are failures, by time.
    failures: BTreeSet<(i64, [u8; 32])>,
}

impl Memory {
    fn layer(&mut self, provenance: &Provenance) -> &mut Layer {
        match provenance {
            Provenance::Verified => &mut self.verified,
            Provenance::Claimed(member) => self.claimed.entry(member.clone()).or_default(),
        }
    }

    /// Makes in memory the change that [`super::database::Database::write`] made on disk.
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

    /// The change that takes back `change`, if that drops something that exists; else `None`.
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
            // These go with their path: when a claim gave way to a Verified path, its annotation remembers
            // what it said.
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

    /// Number of rows of paths, in all layers and under all names, that have this object.
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

    /// The layer that all members see.
    pub(crate) fn verified(&self) -> &Layer {
        &self.verified
    }

    /// The layer of `member`'s claims, if there is one.
    pub(crate) fn claims_of(&self, member: &Member) -> Option<&Layer> {
        self.claimed.get(member)
    }

    /// Whether `path` is Verified or claimed by `member`.
    pub(crate) fn has(&self, member: &Member, path: &StorePath) -> bool {
        self.is_verified(path) || self.claims_of(member).is_some_and(|layer| layer.entry(path).is_some())
    }
}
