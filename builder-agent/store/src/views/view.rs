//! The operations of one member on the store. Every query is answered from the layers that this member sees.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use sha2::{Digest, Sha256};

use super::closure::Closure;
use super::collect::{self, Collect, Collected};
use super::quota::{self, Payer};
use super::seen::{Seen, Viewer, Whose};
use super::staged::Staged;
use super::{address, copies, limits, records, register};
use crate::config::StoreConfig;
use crate::error::{CollectError, ImportError, MissingPath, NarError, RegisterError};
use crate::format::object::NarReader;
use crate::index::holds::Hold;
use crate::index::memory::{Entry, Memory};
use crate::index::rows::Annotation;
use crate::objects::contents::Contents;
use crate::objects::ingest::{Ingest, Ingested, Limits};
use crate::objects::intake::{Intake, IntakeKind};
use crate::objects::room::{Leave, Writer};
use crate::types::charged::Quota;
use crate::types::realisation::RealisationId;
use crate::types::{Member, Provenance};
use crate::upkeep::base::Base;

/// The store as one member may see it. Cheap to clone, safe to share between threads, blocking.
#[derive(Clone)]
pub struct View {
    base: Arc<Base>,
    viewer: Viewer,
    hold: Option<Arc<Hold>>,
}

impl View {
    pub(crate) fn new(base: Arc<Base>, viewer: Viewer, hold: Option<Arc<Hold>>) -> Self {
        Self { base, viewer, hold }
    }

    /// The same view with temporary roots, as Nix's daemon keeps for each connection: paths that are
    /// registered through it or its clones, or passed to [`View::hold`], are not collected while one of them
    /// lives.
    #[must_use]
    pub fn holding(self) -> Self {
        let hold = Hold::new(self.base.index.holds(), &self.viewer.member, BTreeSet::new());
        Self { hold: Some(Arc::new(hold)), ..self }
    }

    /// The same view with the temporary roots of another view of this member.
    #[must_use]
    pub fn holding_as(self, other: &Self) -> Self {
        Self { hold: other.hold.clone(), ..self }
    }

    /// The same view with a limit for its member alone; the box's counts if it is smaller. In bytes. And with `others`, that
    /// several members have together.
    #[must_use]
    pub fn limited_to(mut self, own: Option<u64>, others: Vec<Quota>) -> Self {
        let own = Quota::smaller(own, self.base.config.max_bytes_per_member);
        self.viewer.payer.quotas = own.into_iter().chain(others).collect();
        self
    }

    /// The same view, for which `payer` pays: the maker of a ticket for its holder. See [`crate::Store::pays_for`].
    #[must_use]
    pub fn charged_to(mut self, payer: &Member) -> Self {
        self.base.index.pay_for(payer, &self.viewer.member);
        self.viewer.payer.member = Some(payer.clone());
        self
    }

    /// The same view with another payer for what it registers as Verified.
    #[must_use]
    pub fn paid_by(mut self, payer: Payer) -> Self {
        self.viewer.payer = payer;
        self
    }

    /// Who pays for what this view registers.
    #[must_use]
    pub fn payer(&self) -> &Payer {
        &self.viewer.payer
    }

    /// Bytes that this member sees of what the view's payer is charged for, and the limit that the payer has alone. Who pays
    /// for themselves sees all of it. The holder of a ticket sees the claims of this view only: the Verified paths that it
    /// brought first are the maker's.
    #[must_use]
    pub fn charged(&self) -> (u64, Option<Quota>) {
        let index = self.base.index.read();
        let charged = match &self.viewer.payer.member {
            // What its maker has is not for the holder of a ticket to see. These are claims.
            Some(payer) if *payer != self.viewer.member => index.costs_of(&self.viewer.member),
            _ => index.charged_to(&self.viewer.member),
        };
        (charged.bytes, self.viewer.payer.own_quota().cloned())
    }

    /// Fails if so many more bytes cannot be within the limit of this view's payer, even without paths that the payer does
    /// not need; those are removed, as far as is necessary. For uploads and downloads of a known size, before they begin.
    pub fn make_room(&self, bytes: u64) -> Result<(), RegisterError> {
        quota::make_room(&self.base, &self.viewer, bytes)
    }

    /// Makes temporary roots, if this view keeps them ([`View::holding`]). Paths need not be valid yet. If
    /// the limit is exceeded, none of `paths` is held.
    pub fn hold<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) -> Result<(), RegisterError> {
        let Some(hold) = &self.hold else { return Ok(()) };
        let index = self.base.index.read();
        // Only the box evicts Verified paths, and it respects leases.
        let (verified, others): (Vec<&StorePath>, Vec<_>) =
            paths.into_iter().partition(|path| index.is_verified(path));
        verified.into_iter().for_each(|path| hold.lease(path));
        hold.add(others)
    }

    /// The row of a path that a request is about: it counts as used now, and the box does not evict it while the session
    /// of this view lasts.
    fn named<'a>(&'a self, index: &'a Memory, path: &StorePath) -> Option<(Seen<'a>, Whose<'a>)> {
        let seen = self.viewer.sees(index);
        let (entry, whose) = seen.entry(path)?;
        self.touch(index, entry, whose);
        if let Some(hold) = &self.hold {
            hold.lease(path);
        }
        Some((seen, whose))
    }

    fn touch(&self, index: &Memory, entry: &Entry, whose: Whose<'_>) {
        let layer = match whose {
            Whose::Everybodys => None,
            Whose::Own(member) | Whose::Shared(member) => Some(member),
        };
        index.touch(entry, layer, &self.viewer.member);
    }

    /// Number of temporary roots of this view.
    #[must_use]
    pub fn held(&self) -> usize {
        self.hold.as_ref().map_or(0, |hold| hold.len())
    }

    /// The member whose view this is.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.viewer.member
    }

    /// Info of a valid path, with the deriver and the signatures that this member knows.
    #[must_use]
    pub fn info(&self, path: &StorePath) -> Option<Arc<PathInfo>> {
        self.info_and_whose(path, |info, _| info)
    }

    fn info_and_whose<T>(
        &self,
        path: &StorePath,
        answer: impl FnOnce(Arc<PathInfo>, Whose<'_>) -> T,
    ) -> Option<T> {
        let index = self.base.index.read();
        let (seen, _) = self.named(&index, path)?;
        let (info, whose) = seen.described(path)?;
        Some(answer(info, whose))
    }

    /// Info and provenance of a valid path.
    #[must_use]
    pub fn info_with_provenance(&self, path: &StorePath) -> Option<(Arc<PathInfo>, Provenance)> {
        self.info_and_whose(path, |info, whose| (info, whose.provenance()))
    }

    /// Whether `path` is valid in this view.
    #[must_use]
    pub fn is_valid(&self, path: &StorePath) -> bool {
        self.named(&self.base.index.read(), path).is_some()
    }

    /// Whether all of `paths` are valid and Verified. For the inputs of a build use their [`Closure::info`]
    /// instead: between two calls the contents of a path can change.
    #[must_use]
    pub fn all_verified(&self, paths: &BTreeSet<StorePath>) -> bool {
        let index = self.base.index.read();
        paths.iter().all(|path| index.is_verified(path))
    }

    /// The valid paths of `paths`, in the same order.
    #[must_use]
    pub fn query_valid(&self, paths: &[StorePath]) -> Vec<StorePath> {
        let index = self.base.index.read();
        paths.iter().filter(|path| self.named(&index, path).is_some()).cloned().collect()
    }

    /// The valid path whose digest is `hash_part`; the first by name if there are several.
    #[must_use]
    pub fn by_hash_part(&self, hash_part: &[u8; 20]) -> Option<StorePath> {
        let index = self.base.index.read();
        let path = self.viewer.sees(&index).by_digest(hash_part)?;
        self.named(&index, &path).map(|_| path)
    }

    /// Valid paths that refer to `path`.
    #[must_use]
    pub fn referrers(&self, path: &StorePath) -> BTreeSet<StorePath> {
        self.viewer.sees(&self.base.index.read()).referrers(path)
    }

    /// Every valid path.
    #[must_use]
    pub fn all_valid(&self) -> BTreeSet<StorePath> {
        self.viewer.sees(&self.base.index.read()).all()
    }

    /// The deriver of `path`, if it is valid. (Nix also finds other derivations with the same output; we keep
    /// no map of outputs.)
    #[must_use]
    pub fn valid_derivers(&self, path: &StorePath) -> BTreeSet<StorePath> {
        let index = self.base.index.read();
        let seen = self.viewer.sees(&index);
        let deriver = seen.described(path).and_then(|(info, _)| info.deriver.clone());
        deriver.filter(|deriver| self.named(&index, deriver).is_some()).into_iter().collect()
    }

    /// `paths` and all that they refer to, directly or not.
    pub fn closure(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, MissingPath> {
        let index = self.base.index.read();
        let closure = self.viewer.sees(&index).closure(paths)?;
        closure.keys().for_each(|path| drop(self.named(&index, path)));
        Ok(closure.into_keys().collect())
    }

    /// `paths` and all that they refer to, as they are now. The snapshot stays the same however the view
    /// changes.
    pub fn snapshot<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<Closure, MissingPath> {
        let paths: Vec<StorePath> = paths.into_iter().cloned().collect();
        let index = self.base.index.read();
        let seen = self.viewer.sees(&index);
        let closure = seen.closure(&paths)?;
        // The closure itself holds them, for as long as it is used.
        let entries = closure.keys().filter_map(|path| seen.entry(path));
        entries.for_each(|(entry, whose)| self.touch(&index, entry, whose));
        let infos = closure.into_iter().map(|(path, (info, whose))| (path, (info, whose.provenance())));
        Ok(Closure::new(&self.base, &self.viewer.member, infos.collect()))
    }

    /// [`View::snapshot`] for a build. First copies shared claims of other members to the member's own layer,
    /// so that the result can refer to them even if their owners delete them meanwhile. Writes nothing if
    /// there are none. Fails if the copies cannot be within the payer's limits.
    pub fn snapshot_to_build<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<Closure, RegisterError> {
        let paths: Vec<&StorePath> = paths.into_iter().collect();
        let inputs = self.snapshot(paths.iter().copied())?;
        let shared = |provenance: &Provenance| match provenance {
            Provenance::Verified => false,
            Provenance::Claimed(owner) => *owner != self.viewer.member,
        };
        let infos = inputs.info().paths.values().filter(|(_, provenance)| shared(provenance));
        let theirs: Vec<StorePath> = infos.map(|(info, _)| info.path.clone()).collect();
        if theirs.is_empty() {
            return Ok(inputs);
        }
        // The snapshot holds their paths while the rows are copied.
        copies::own(&self.base, &self.viewer, theirs)?;
        Ok(self.snapshot(paths)?)
    }

    fn limits(&self, writer: Writer) -> Limits {
        let StoreConfig { max_nar_bytes, max_entries, .. } = self.base.config;
        Limits { max_nar_bytes, max_entries, room: Arc::clone(&self.base.rooms) as _, writer }
    }

    /// Starts taking in a NAR that a build has made; the hash parts of `scan_for` are searched for in it.
    pub fn ingest(&self, scan_for: &[StorePath]) -> Result<Ingest, ImportError> {
        Ok(Ingest::new(&*self.base.objects, self.limits(Writer::Build), scan_for)?)
    }

    fn ingest_upload(&self) -> Result<Ingest, ImportError> {
        Ok(Ingest::new(&*self.base.objects, self.limits(Writer::Upload), &[])?)
    }

    /// Makes `ingested` visible as `info.path`. Durable when it returns.
    ///
    /// The caller decides on `Verified`, with one exception: a path with a reference that is not Verified is
    /// registered as Claimed. A path that is valid already under the same provenance stays as it is, whatever
    /// `ingested` contains; the info returned is the registered one.
    pub fn register(
        &self,
        ingested: Ingested,
        info: PathInfo,
        provenance: Provenance,
    ) -> Result<Arc<PathInfo>, RegisterError> {
        let staged = self.stage_built(ingested, info, provenance)?;
        let mut infos = self.register_many(vec![staged])?;
        Ok(infos.pop().expect("one path in, one info out"))
    }

    /// Registers all or none, with one transaction; paths of the batch may refer to each other in any order.
    /// The infos come in the order of the batch.
    pub fn register_many(&self, batch: Vec<Staged>) -> Result<Vec<Arc<PathInfo>>, RegisterError> {
        // Before the paths are visible, so that no collection comes in between.
        self.hold(batch.iter().map(|staged| &staged.info.path))?;
        let new = batch.iter().map(|staged| (&staged.info, Some(staged.ingested.object_size)));
        self.make_room_for(new)?;
        register::register(&self.base, &self.viewer, batch)
    }

    /// Makes room for those of these paths that are not valid yet, each with the bytes of its object, and for the copies of
    /// what they refer to.
    fn make_room_for<'a>(
        &self,
        paths: impl IntoIterator<Item = (&'a PathInfo, Option<u64>)>,
    ) -> Result<(), RegisterError> {
        if self.viewer.payer.quotas.is_empty() {
            return Ok(());
        }
        let bytes = {
            let index = self.base.index.read();
            let seen = self.viewer.sees(&index);
            let new = paths.into_iter().filter(|(info, _)| seen.info(&info.path).is_none());
            let (mut bytes, mut references) = (0, BTreeSet::new());
            for (info, size) in new {
                bytes += size.unwrap_or_default();
                // Copies are of what others share.
                if !self.viewer.others.is_empty() {
                    references.extend(&info.references);
                }
            }
            bytes + copies::bytes(&index, &self.viewer, references.into_iter())?
        };
        self.make_room(bytes)
    }

    /// An [`Ingested`] with its info, for [`View::register_many`].
    pub fn stage_built(
        &self,
        ingested: Ingested,
        info: PathInfo,
        provenance: Provenance,
    ) -> Result<Staged, RegisterError> {
        limits::check(&self.viewer.member, &ingested, &info, &provenance)?;
        let said = match provenance {
            // `info` has only checked fields.
            Provenance::Verified => Annotation::deriver(info.nar_hash, None),
            Provenance::Claimed(_) => Annotation::of(&info),
        };
        Ok(Staged { ingested, info, provenance, proven: false, said })
    }

    /// Reads exactly one NAR and checks it against a client's `info`; for [`View::register_many`]. The
    /// client's `registration_time` and `ultimate` are not used.
    ///
    /// Does not read beyond the end of the NAR.
    pub fn stage(&self, info: PathInfo, nar: &mut dyn BufRead) -> Result<Staged, ImportError> {
        self.stage_with(info, nar, Leave::default())
    }

    /// [`View::stage`] of a NAR for which there is room already.
    pub fn stage_with(
        &self,
        info: PathInfo,
        nar: &mut dyn BufRead,
        leave: Leave,
    ) -> Result<Staged, ImportError> {
        let mut ingest = self.ingest_upload()?;
        ingest.allow(leave);
        ingest.read_all(&info.path.to_string(), nar)?;
        address::stage(&self.base.config, &self.viewer.member, ingest.finish()?, info)
    }

    /// Starts taking in an upload that arrives piece by piece. `name` is for messages.
    pub fn intake(&self, kind: IntakeKind, name: &str) -> Result<Intake, ImportError> {
        Intake::new(&*self.base.objects, self.limits(Writer::Upload), kind, name)
    }

    /// Checks the outcome of [`Intake::finish`] against a client's `info`; for [`View::register_many`].
    pub fn stage_ingested(&self, ingested: Ingested, info: PathInfo) -> Result<Staged, ImportError> {
        address::stage(&self.base.config, &self.viewer.member, ingested, info)
    }

    /// The same for contents that determine their path together with `references`. May read them again, for
    /// hashes other than SHA-256.
    pub fn stage_addressed(
        &self,
        ingested: Ingested,
        name: &str,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: &BTreeSet<StorePath>,
    ) -> Result<Staged, ImportError> {
        address::stage_new(ingested, name, method, algorithm, references)
    }

    /// [`View::stage`] and [`View::register_many`] of one path.
    ///
    /// Verified if all references are Verified, and `info` has a content address that matches the contents (a
    /// wrong one is an error) or a valid signature of a trusted key; else Claimed.
    pub fn import(&self, info: PathInfo, nar: &mut dyn BufRead) -> Result<Arc<PathInfo>, ImportError> {
        self.register_one(self.stage(info, nar)?)
    }

    /// Adds contents at the path that they and `references` determine. `dump` is a NAR for `Nar`, else the
    /// bytes of the file, up to the end of `dump`.
    pub fn add_ca(
        &self,
        name: &str,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: &BTreeSet<StorePath>,
        dump: &mut dyn BufRead,
    ) -> Result<Arc<PathInfo>, ImportError> {
        let ingested = match method {
            ContentAddressMethod::Flat | ContentAddressMethod::Text => {
                let mut intake = self.intake(IntakeKind::File, name)?;
                intake.read_all(name, dump)?;
                intake.finish()?
            }
            ContentAddressMethod::Nar | ContentAddressMethod::Git => {
                let mut ingest = self.ingest_upload()?;
                ingest.read_all(name, dump)?;
                ingest.finish()?
            }
        };
        self.register_one(address::stage_new(ingested, name, method, algorithm, references)?)
    }

    fn register_one(&self, staged: Staged) -> Result<Arc<PathInfo>, ImportError> {
        let mut infos = self.register_many(vec![staged])?;
        Ok(infos.pop().expect("one path in, one info out"))
    }

    fn contents(&self, path: &StorePath) -> Result<Contents, NarError> {
        let info = self.info(path).ok_or_else(|| MissingPath(path.clone()))?;
        Contents::of(&*self.base.objects, &info)
    }

    /// The NAR of a valid path.
    pub fn nar(&self, path: &StorePath) -> Result<NarReader, NarError> {
        Ok(NarReader::new(self.contents(path)?.object))
    }

    /// Memory for the metadata of a valid path's object once [`View::nar`] has opened it, in bytes.
    pub fn nar_metadata(&self, path: &StorePath) -> Result<u64, NarError> {
        let info = self.info(path).ok_or_else(|| MissingPath(path.clone()))?;
        Contents::measure(&*self.base.objects, &info)
    }

    /// Contents of a valid path that is a single regular file of at most `max` bytes.
    pub fn read_file(&self, path: &StorePath, max: u64) -> Result<Vec<u8>, NarError> {
        self.contents(path)?.read_file(max)
    }

    /// Reads the whole object and compares its NAR hash with the registered one.
    pub fn verify(&self, path: &StorePath) -> Result<(), NarError> {
        let contents = self.contents(path)?;
        let mut hash = Sha256::new();
        contents.read_nar(|piece| hash.update(piece))?;
        if <[u8; 32]>::from(hash.finalize()) == *contents.object.nar_hash() {
            return Ok(());
        }
        Err(NarError::Damaged { path: path.to_string(), why: "its NAR has another hash".to_owned() })
    }

    /// Registers paths whose contents the store has already, by NAR hash, all or none. For hashes that the
    /// box itself recorded only: a client that could choose the hash could read the contents. This member
    /// gets `deriver` as their deriver, whatever other members see.
    pub fn adopt(
        &self,
        batch: Vec<(PathInfo, Provenance)>,
        deriver: Option<&StorePath>,
    ) -> Result<Vec<Arc<PathInfo>>, RegisterError> {
        self.hold(batch.iter().map(|(info, _)| &info.path))?;
        let sizes: Vec<_> = {
            let index = self.base.index.read();
            batch.iter().map(|(info, _)| (info, index.object_size(&info.nar_hash))).collect()
        };
        self.make_room_for(sizes)?;
        register::adopt(&self.base, &self.viewer, batch, deriver)
    }

    /// Notes `deriver` for this member, for those of `paths` that are valid and have no known deriver. Writes
    /// nothing if there are none.
    pub fn name_deriver(&self, paths: &[StorePath], deriver: &StorePath) -> Result<(), RegisterError> {
        records::name_deriver(&self.base, &self.viewer, paths, deriver)
    }

    /// Adds signatures to a valid path. A valid signature of a trusted key makes a claim Verified if its
    /// references are, and is shown to all members who see the path; if the path is not this member's claim,
    /// other signatures are shown to this member only.
    pub fn add_signatures(&self, path: &StorePath, signatures: &[String]) -> Result<(), RegisterError> {
        records::add_signatures(&self.base, &self.viewer, path, signatures)
    }

    /// The path, the provenance and the signatures (`name:base64`) of an output of a content-addressed
    /// derivation.
    #[must_use]
    pub fn realisation(&self, id: &RealisationId) -> Option<(StorePath, Provenance, Vec<String>)> {
        let index = self.base.index.read();
        let (realisation, whose) = self.viewer.sees(&index).realisation(id)?;
        Some((realisation.path.clone(), whose.provenance(), realisation.signatures.clone()))
    }

    /// Registers `path`, which is valid in this view, as the path of an output. The caller decides on
    /// Verified, which becomes Claimed if the path is not Verified. An earlier realisation stays, as with
    /// paths.
    pub fn add_realisation(
        &self,
        id: RealisationId,
        path: StorePath,
        provenance: Provenance,
    ) -> Result<(), RegisterError> {
        copies::make_room(&self.base, &self.viewer, std::iter::once(&path))?;
        records::add_realisation(&self.base, &self.viewer, id, path, provenance)
    }

    /// Keeps `path` and all that it refers to from being collected, under a name that the member chose.
    /// Replaces a root of that name.
    pub fn add_root(&self, name: &str, path: &StorePath) -> Result<(), RegisterError> {
        copies::make_room(&self.base, &self.viewer, std::iter::once(path))?;
        records::add_root(&self.base, &self.viewer, name.to_owned(), path.clone())
    }

    /// The member's roots, by name.
    #[must_use]
    pub fn roots(&self) -> BTreeMap<String, StorePath> {
        let index = self.base.index.read();
        self.viewer.sees(&index).roots().clone()
    }

    /// Removes a root; false if there is none of that name.
    pub fn remove_root(&self, name: &str) -> Result<bool, RegisterError> {
        records::remove_root(&self.base, &self.viewer, name)
    }

    /// Finds or deletes the member's own claims that neither a root, nor a temporary root of a view, nor a
    /// [`Closure`] taken in one of these views needs.
    pub fn collect(&self, wish: &Collect) -> Result<Collected, CollectError> {
        collect::collect(&self.base, &self.viewer, wish)
    }
}
