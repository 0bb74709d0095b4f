//! The store: opening it, and views of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use nix_derivation::StorePath;

use crate::config::StoreConfig;
use crate::error::{FileError, MissingPath, OpenError, RegisterError};
use crate::types::charged::{Charged, Quota};
use crate::types::result::BuildRecord;
use crate::types::{Member, Provenance};
use crate::upkeep::base::Base;
use crate::upkeep::evict::Evicted;
use crate::upkeep::recovery::Recovery;
use crate::upkeep::room::{Asking, evict_bytes};
use crate::upkeep::space::Space;
use crate::views::closure::Closure;
use crate::views::quota::Payer;
use crate::views::records;
use crate::views::seen::Viewer;
use crate::views::view::View;

/// One store on disk. Clones share it; the lock is released when the last clone, view and reader is dropped.
#[derive(Clone)]
pub struct Store {
    pub(crate) base: Arc<Base>,
}

impl Store {
    /// Opens or creates the store at `root` and repairs what an interrupted process left.
    pub fn open(root: &Path, config: StoreConfig) -> Result<Self, OpenError> {
        Ok(Self { base: Arc::new(Base::open(root, config)?) })
    }

    /// The repairs that [`Store::open`] made.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.base.recovery
    }

    /// Whether no file of the store is on a disk: then no work on a small path waits for one.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.base.in_memory
    }

    /// The store as `member` may see it.
    #[must_use]
    pub fn view(&self, member: &Member) -> View {
        self.view_sharing(member, &[])
    }

    /// The store as seen by `member`, who shares with `others`, as they do with `member`. If several of them
    /// have a path, the Verified one comes first, then the member's own claim, then those of `others` in
    /// their order.
    #[must_use]
    pub fn view_sharing(&self, member: &Member, others: &[Member]) -> View {
        let others = others.iter().filter(|other| *other != member).cloned().collect();
        let quotas = Quota::smaller(None, self.base.config.max_bytes_per_member).into_iter().collect();
        let payer = Payer { member: Some(member.clone()), quotas };
        View::new(Arc::clone(&self.base), Viewer { member: member.clone(), others, payer }, None)
    }

    /// A snapshot that an earlier process had: all its paths, with the NAR hash and the provenance that each had. It keeps
    /// them as that of [`View::snapshot`] does. Fails if one of them is not there any more with these contents.
    pub fn snapshot_again(
        &self,
        member: &Member,
        paths: impl IntoIterator<Item = (StorePath, [u8; 32], Provenance)>,
    ) -> Result<Closure, MissingPath> {
        let index = self.base.index.read();
        let mut infos = BTreeMap::new();
        for (path, nar_hash, provenance) in paths {
            let claim = match &provenance {
                Provenance::Verified => None,
                Provenance::Claimed(owner) => index.claims_of(owner).and_then(|layer| layer.entry(&path)),
            };
            // A claim can have become Verified meanwhile.
            let mut found = claim.into_iter().chain(index.verified().entry(&path));
            let info = found.find(|entry| entry.info.nar_hash == nar_hash).map(|entry| entry.info.clone());
            let info = info.ok_or_else(|| MissingPath(path.clone()))?;
            infos.insert(path, (info, provenance));
        }
        Ok(Closure::new(&self.base, member, infos))
    }

    /// From now on `payer` is charged for the view of `member` (the holder of a ticket), and what the two need when room is
    /// short has one part. Not written down: said anew after each start, and before that view is used.
    pub fn pays_for(&self, payer: &Member, member: &Member) {
        self.base.index.pay_for(payer, member);
    }

    /// `member`, the holder of a ticket that has ended, has nothing here any more: whoever paid for that view does so no
    /// longer. Otherwise each registration of theirs would look at one view more for every ticket that they ever made.
    pub fn forgets(&self, member: &Member) {
        self.pays_for(member, member);
    }

    /// The room on the store's file system.
    pub fn space(&self) -> Result<Space, FileError> {
        self.base.rooms.space().map_err(|e| FileError::new("look at", "the store", e))
    }

    /// Room for the next bytes of an upload, in so many objects, which may have to be made first. Uploads of one payer wait behind each other, and
    /// take turns with those of others. For [`crate::Intake::allow`].
    pub fn room_for(&self, payer: &Member, bytes: u64, objects: u64) -> Asking {
        self.base.rooms.ask(payer, bytes, objects)
    }

    /// How scarce room is, from 0 (nothing has to be evicted) to 1000 (uploads are refused if nothing can be evicted).
    #[must_use]
    pub fn pressure(&self) -> u32 {
        self.base.rooms.pressure()
    }

    /// Bytes of all objects that some path has.
    #[must_use]
    pub fn object_bytes(&self) -> u64 {
        self.base.index.read().object_bytes()
    }

    /// What each view costs: its claims, and the Verified paths that its member brought first. Without those that cost nothing.
    /// Whoever pays for other views ([`Store::pays_for`]) is charged for theirs, too; the Verified paths that were brought
    /// there are listed with the payer. Takes as long as there are members, however many paths there are.
    #[must_use]
    pub fn charged(&self) -> BTreeMap<Member, Charged> {
        let index = self.base.index.read();
        index.costs().map(|(member, charged)| (member.clone(), charged)).collect()
    }

    /// When the Verified path that was not used for the longest time was used, in seconds since 1970.
    #[must_use]
    pub fn oldest_use(&self) -> Option<u64> {
        let index = self.base.index.read();
        let uses = index.verified().entries().map(|(_, entry)| entry.used.at() / 1000);
        // 0: of somebody who had too much, and nobody else has used it (`Change::Charge`).
        uses.filter(|used| *used > 0).min()
    }

    /// Evicts paths that nobody needs, so many bytes or as many as is possible, and removes their files. Blocks until then.
    pub fn evict(&self, bytes: u64, why: &str) -> Result<Evicted, RegisterError> {
        evict_bytes(&self.base.rooms, &self.base.upkeep, bytes, why)
    }

    /// Does at once the work that is otherwise done every few seconds: renames objects, removes objects
    /// without a row, and, where the store survives a reboot, makes all commits durable. After an error they
    /// may not be durable.
    pub fn tidy(&self) -> Result<(), RegisterError> {
        self.base.upkeep.pass()
    }

    /// The result of the build with this key. All outputs that it names can be adopted.
    #[must_use]
    pub fn result(&self, key: &[u8; 32]) -> Option<Arc<BuildRecord>> {
        let index = self.base.index.read();
        // When its last path goes, the result is hidden at once; its row is deleted later (`upkeep`).
        index.result(key).filter(|record| record.objects().all(|o| index.paths_with(o) > 0)).cloned()
    }

    /// Records the result of the build with this key, in place of an earlier one. The store must have the
    /// objects of all outputs; when one of them is removed, the record is removed with it.
    pub fn record_result(&self, key: &[u8; 32], record: BuildRecord) -> Result<(), RegisterError> {
        records::record(&self.base, *key, record)
    }
}
