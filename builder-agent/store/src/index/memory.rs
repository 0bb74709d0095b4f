//! The index in memory: every answer about validity comes from here.
//!
//! One layer for Verified paths and one per member, so that no lookup for one member depends on another
//! member's paths, unless the two share. Held in a `RwLock` by the [`super::Index`]; no thread keeps the lock
//! during input or output. Changes come as [`Change`]s, the same that were written to the database before.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::PathInfo;
use nix_derivation::StorePath;

use crate::index::account::{self, Account, LastUse};
use crate::index::change::Change;
use crate::index::charges::Charges;
use crate::index::rows::{Annotations, Origins};
use crate::types::charged::Charged;
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::BuildRecord;
use crate::types::{Member, Provenance};

/// One path in one layer.
pub(crate) struct Entry {
    pub(crate) info: Arc<PathInfo>,
    /// Its contents are proven by a content address or by a signature; it is Claimed only because of its references.
    pub(crate) proven: bool,
    /// The owners of this claim and of all claims below it; they decide which other members may see it.
    pub(crate) origins: Origins,
    /// Bytes of the object's file.
    pub(crate) size: u64,
    /// Who is charged for a Verified path; `None`: the box. A claim is charged to its member.
    pub(crate) payer: Option<Member>,
    pub(crate) used: LastUse,
}

impl Entry {
    fn account(&self) -> Account {
        Account { payer: self.payer.clone(), used: self.used.at() }
    }
}

/// All Verified rows, or all rows of one member.
#[derive(Default)]
pub(crate) struct Layer {
    entries: HashMap<StorePath, Entry>,
    by_digest: HashMap<[u8; 20], BTreeSet<StorePath>>,
    referrers: HashMap<StorePath, BTreeSet<StorePath>>,
    realisations: HashMap<RealisationId, Arc<Realisation>>,
    /// Those that lead to each path.
    realisations_of: HashMap<StorePath, BTreeSet<RealisationId>>,
    roots: BTreeMap<String, StorePath>,
    /// How many roots were removed or replaced in this process.
    unrooted: u64,
    /// Number of references of all entries together.
    references: usize,
    annotations: Annotations,
    /// Number of entries that contain claims of other members.
    foreign: usize,
    /// Bytes of the objects of all entries. An object counts for each path that has it.
    bytes: u64,
}

impl Layer {
    pub(crate) fn entry(&self, path: &StorePath) -> Option<&Entry> {
        self.entries.get(path)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&StorePath, &Entry)> {
        self.entries.iter()
    }

    /// All entries together.
    pub(crate) fn charged(&self) -> Charged {
        let (paths, references) = (self.entries.len() as u64, self.references as u64);
        Charged { bytes: self.bytes, paths, references }
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

    /// The realisations that lead to `path`.
    pub(crate) fn realisations_of(&self, path: &StorePath) -> impl Iterator<Item = &RealisationId> {
        self.realisations_of.get(path).into_iter().flatten()
    }

    /// Paths to which a realisation leads, in no order.
    pub(crate) fn realised(&self) -> impl ExactSizeIterator<Item = &StorePath> {
        self.realisations_of.keys()
    }

    fn add_realisation(&mut self, id: RealisationId, realisation: Arc<Realisation>) {
        if let hash_map::Entry::Vacant(place) = self.realisations.entry(id.clone()) {
            self.realisations_of.entry(realisation.path.clone()).or_default().insert(id);
            place.insert(realisation);
        }
    }

    fn drop_realisation(&mut self, id: &RealisationId) {
        let Some(realisation) = self.realisations.remove(id) else { return };
        if let Some(of_path) = self.realisations_of.get_mut(&realisation.path) {
            of_path.remove(id);
            if of_path.is_empty() {
                self.realisations_of.remove(&realisation.path);
            }
        }
    }

    pub(crate) fn roots(&self) -> &BTreeMap<String, StorePath> {
        &self.roots
    }

    /// How many roots were removed or replaced.
    pub(crate) fn unrooted(&self) -> u64 {
        self.unrooted
    }

    pub(crate) fn annotations(&self) -> &Annotations {
        &self.annotations
    }

    fn insert(
        &mut self,
        info: Arc<PathInfo>,
        proven: bool,
        origins: Origins,
        (size, account): (u64, Account),
    ) {
        self.by_digest.entry(*info.path.digest()).or_default().insert(info.path.clone());
        for reference in &info.references {
            self.referrers.entry(reference.clone()).or_default().insert(info.path.clone());
        }
        self.references += info.references.len();
        self.foreign += usize::from(origins.is_foreign());
        self.bytes += size;
        let Account { payer, used } = account;
        let entry = Entry { info, proven, origins, size, payer, used: LastUse::new(used) };
        self.entries.insert(entry.info.path.clone(), entry);
    }

    fn remove(&mut self, path: &StorePath) -> Option<Entry> {
        let entry = self.entries.remove(path)?;
        self.references -= entry.info.references.len();
        self.bytes -= entry.size;
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
    /// The results without outputs, by time.
    failures: BTreeSet<(i64, [u8; 32])>,
    /// The Verified paths that each member is charged for.
    charges: Charges,
    /// Bytes of all objects that some path has.
    object_bytes: u64,
    /// Rows whose last use the database does not know yet; each at most once an hour. `None`: Verified.
    touched: Mutex<Vec<(StorePath, Option<Member>)>>,
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
            Change::AddPath { info, provenance, proven, object_size, origins, account } => {
                self.add_path(&info, &provenance, (proven, origins), (object_size, account));
            }
            Change::DropClaim { member, path } => {
                let entry = self.claimed.get_mut(&member).and_then(|layer| layer.remove(&path));
                self.lost_path(entry.as_ref());
            }
            Change::DropVerified { path } => {
                let entry = self.verified.remove(&path);
                self.lost_path(entry.as_ref());
                entry.iter().for_each(|entry| self.charges.remove(entry));
            }
            Change::Charge { path, payer, used } => {
                let Some(entry) = self.verified.entries.get_mut(&path) else { return };
                self.charges.remove(entry);
                (entry.payer, entry.used) = (payer, LastUse::new(used));
                self.charges.add(entry);
            }
            Change::Used { .. } => {}
            Change::SetSignatures { info, provenance, proven } => {
                // The rest of the info is the same, so no charge changes.
                if let Some(entry) = self.layer(&provenance).entries.get_mut(&info.path) {
                    (entry.info, entry.proven) = (info, proven);
                }
            }
            Change::AddRealisation { id, provenance, realisation } => {
                self.layer(&provenance).add_realisation(id, realisation);
            }
            Change::DropRealisation { id, member } => {
                let layer = match &member {
                    None => Some(&mut self.verified),
                    Some(member) => self.claimed.get_mut(member),
                };
                layer.into_iter().for_each(|layer| layer.drop_realisation(&id));
            }
            Change::PutResult { key, record } => {
                self.drop_result(&key);
                for object in record.objects() {
                    self.objects.entry(*object).or_default().results.insert(key);
                }
                if !record.end.is_built() {
                    self.failures.insert((record.time, key));
                }
                self.results.insert(key, record);
            }
            Change::DropResult { key } => self.drop_result(&key),
            Change::PutRoot { member, name, path } => {
                let layer = self.claimed.entry(member).or_default();
                layer.unrooted += u64::from(layer.roots.insert(name, path).is_some());
            }
            Change::DropRoot { member, name } => {
                if let Some(layer) = self.claimed.get_mut(&member) {
                    layer.unrooted += u64::from(layer.roots.remove(&name).is_some());
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

    /// The change that takes back `change`, if that drops or releases something that exists; else `None`.
    pub(crate) fn inverse(&self, change: &Change) -> Option<Change> {
        match change {
            Change::DropClaim { member, path } => {
                let entry = self.claimed.get(member)?.entries.get(path)?;
                Some(added_again(entry, Provenance::Claimed(member.clone())))
            }
            Change::DropVerified { path } => {
                Some(added_again(self.verified.entries.get(path)?, Provenance::Verified))
            }
            Change::Charge { path, .. } => {
                let Account { payer, used } = self.verified.entries.get(path)?.account();
                Some(Change::Charge { path: path.clone(), payer, used })
            }
            Change::DropRealisation { id, member } => {
                let (layer, provenance) = match member {
                    None => (&self.verified, Provenance::Verified),
                    Some(member) => (self.claimed.get(member)?, Provenance::Claimed(member.clone())),
                };
                let realisation = Arc::clone(layer.realisations.get(id)?);
                Some(Change::AddRealisation { id: id.clone(), provenance, realisation })
            }
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

    fn add_path(
        &mut self,
        info: &Arc<PathInfo>,
        provenance: &Provenance,
        (proven, origins): (bool, Origins),
        (size, account): (u64, Account),
    ) {
        let layer = self.layer(provenance);
        if layer.entries.contains_key(&info.path) {
            return;
        }
        layer.insert(Arc::clone(info), proven, origins, (size, account));
        if let (Provenance::Verified, Some(entry)) = (provenance, self.verified.entries.get(&info.path)) {
            self.charges.add(entry);
        }
        let uses = self.objects.entry(info.nar_hash).or_default();
        if uses.paths == 0 {
            self.object_bytes += size;
        }
        uses.paths += 1;
        uses.size = size;
    }

    /// A path that had this entry is gone.
    fn lost_path(&mut self, entry: Option<&Entry>) {
        if let Some(uses) = entry.and_then(|entry| self.objects.get_mut(&entry.info.nar_hash)) {
            uses.paths -= 1;
            if uses.paths == 0 {
                self.object_bytes -= uses.size;
            }
        }
    }

    /// The claims of `member`'s view, and the Verified paths that `member` pays for: those that were brought first by this view,
    /// and by the views of the holders of this member's tickets. So the view of a holder costs its claims only.
    pub(crate) fn costs_of(&self, member: &Member) -> Charged {
        let mut costs = self.charges.of(member);
        costs += self.claims_of(member).map(Layer::charged).unwrap_or_default();
        costs
    }

    /// What `payer` is charged for: the claims in all views that they pay for, and the Verified paths that were brought first
    /// in these. Depends on nothing that other payers have.
    pub(crate) fn charged_to(&self, payer: &Member) -> Charged {
        let mut charged = self.costs_of(payer);
        self.charges.other_views_of(payer).for_each(|member| charged += self.costs_of(member));
        charged
    }

    /// What each payer is charged for, without those who are charged for nothing.
    pub(crate) fn charges(&self) -> HashMap<&Member, Charged> {
        let mut charges: HashMap<&Member, Charged> = HashMap::new();
        for (member, costs) in self.costs() {
            *charges.entry(self.payer_of(member)).or_default() += costs;
        }
        charges
    }

    /// What each view costs, whoever pays for it, without those that cost nothing.
    pub(crate) fn costs(&self) -> impl Iterator<Item = (&Member, Charged)> {
        let without_claims = self.charges.all().filter(|member| !self.claimed.contains_key(*member));
        let members = self.claimed.keys().chain(without_claims);
        members.map(|member| (member, self.costs_of(member))).filter(|(_, costs)| costs.paths > 0)
    }

    /// Who pays for the view of `member`.
    pub(crate) fn payer_of<'a>(&'a self, member: &'a Member) -> &'a Member {
        self.charges.payer_of(member)
    }

    /// The views that `payer` pays for, the payer's own first.
    pub(crate) fn views_of<'a>(&'a self, payer: &'a Member) -> impl Iterator<Item = &'a Member> {
        std::iter::once(payer).chain(self.charges.other_views_of(payer))
    }

    /// See [`Charges::pay_for`].
    pub(crate) fn pay_for(&mut self, payer: &Member, member: &Member) {
        self.charges.pay_for(payer, member);
    }

    /// The Verified rows that `member` is charged for, in no order.
    pub(crate) fn paid_by(&self, member: &Member) -> impl Iterator<Item = &Entry> {
        self.charges.paths_of(member).filter_map(|path| self.verified.entry(path))
    }

    /// Bytes of all objects that some path has.
    pub(crate) fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    fn touched(&self) -> MutexGuard<'_, Vec<(StorePath, Option<Member>)>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `by` uses a path of this layer (`None`: Verified) now.
    pub(crate) fn touch(&self, entry: &Entry, layer: Option<&Member>, by: &Member) {
        let by_other = layer.is_none() && entry.payer.as_ref() != Some(self.payer_of(by));
        if entry.used.touch(account::now(), by_other) {
            self.touched().push((entry.info.path.clone(), layer.cloned()));
        }
    }

    /// The last uses that the database does not know yet.
    pub(crate) fn take_touched(&self) -> Vec<Change> {
        let touched = std::mem::take(&mut *self.touched());
        let used = |(path, member): (StorePath, Option<Member>)| {
            let layer = match &member {
                None => Some(&self.verified),
                Some(member) => self.claims_of(member),
            };
            let used = layer?.entry(&path)?.used.at();
            Some(Change::Used { path, member, used })
        };
        touched.into_iter().filter_map(used).collect()
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

    /// How many results without outputs are recorded.
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

    /// The layers of all members, in no order.
    pub(crate) fn claims(&self) -> impl Iterator<Item = (&Member, &Layer)> {
        self.claimed.iter()
    }

    /// The layer of `member`'s claims, with the name as it is stored here.
    pub(crate) fn claims_with_name(&self, member: &Member) -> Option<(&Member, &Layer)> {
        self.claimed.get_key_value(member)
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

/// The change that adds a path with this entry once more.
fn added_again(entry: &Entry, provenance: Provenance) -> Change {
    Change::AddPath {
        info: Arc::clone(&entry.info),
        provenance,
        proven: entry.proven,
        object_size: entry.size,
        origins: entry.origins.clone(),
        account: entry.account(),
    }
}
