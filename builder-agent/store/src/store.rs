//! The store: opening it, and views of it.

use std::path::Path;
use std::sync::Arc;

use crate::config::StoreConfig;
use crate::error::{OpenError, RegisterError};
use crate::types::Member;
use crate::types::result::BuildRecord;
use crate::upkeep::base::Base;
use crate::upkeep::recovery::Recovery;
use crate::views::records;
use crate::views::seen::Viewer;
use crate::views::view::View;

/// One store on disk. Clones share it; the last one, view or reader to go releases the lock.
#[derive(Clone)]
pub struct Store {
    pub(crate) base: Arc<Base>,
}

impl Store {
    /// Opens or creates the store at `root` and repairs what an interrupted process left.
    pub fn open(root: &Path, config: StoreConfig) -> Result<Self, OpenError> {
        Ok(Self { base: Arc::new(Base::open(root, config)?) })
    }

    /// What [`Store::open`] had to clean up.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.base.recovery
    }

    /// The store as `member` may see it.
    #[must_use]
    pub fn view(&self, member: &Member) -> View {
        self.view_sharing(member, &[])
    }

    /// The store as `member` may see it who shares with `others`, and they with them. Where several know a path,
    /// Verified comes first, then the member's own, then the others' in their order.
    #[must_use]
    pub fn view_sharing(&self, member: &Member, others: &[Member]) -> View {
        let others = others.iter().filter(|other| *other != member).cloned().collect();
        View::new(Arc::clone(&self.base), Viewer { member: member.clone(), others }, None)
    }

    /// Does now what is otherwise done every few seconds: objects get their names, what nobody names any more goes, and,
    /// where state survives a reboot, all that was committed is made durable. An error means that it may not be.
    pub fn tidy(&self) -> Result<(), RegisterError> {
        self.base.upkeep.pass()
    }

    /// What became of the build with this key. All outputs it names can be adopted.
    #[must_use]
    pub fn result(&self, key: &[u8; 32]) -> Option<Arc<BuildRecord>> {
        let index = self.base.index.read();
        // When its last path goes, so does the result; the row follows later (`upkeep`).
        index.result(key).filter(|record| record.objects().all(|o| index.paths_with(o) > 0)).cloned()
    }

    /// Records what became of the build with this key, in place of what was known. The
    /// store must have the objects of all outputs; when one goes, the record goes with it.
    pub fn record_result(&self, key: &[u8; 32], record: BuildRecord) -> Result<(), RegisterError> {
        records::record(&self.base, *key, record)
    }
}
