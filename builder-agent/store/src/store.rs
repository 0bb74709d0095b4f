//! tbd
use std::path::Path;
use std::sync::Arc;

use crate::error::OpenError;
use crate::types::{Member, StoreConfig};
use crate::view::View;

/// One store on disk. Clones share it; the last one releases the lock.
#[derive(Clone)]
pub struct Store { #[allow(dead_code)] inner: Arc<()> }

/// What opening had to clean up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Temporary files of interrupted writes, removed.
    pub temporary_files: usize,
    /// Objects without a row, removed.
    pub unregistered_objects: usize,
    /// Rows without an object, or with a reference that was lost this way, removed.
    pub lost_paths: usize,
}

impl Store {
    /// Opens or creates the store at `root` and repairs what an interrupted process left.
    pub fn open(_root: &Path, _config: StoreConfig) -> Result<Self, OpenError> { unimplemented!() }
    /// What [`Store::open`] had to clean up.
    #[must_use]
    pub fn recovery(&self) -> &Recovery { unimplemented!() }
    /// The store as `member` may see it.
    #[must_use]
    pub fn view(&self, _member: &Member) -> View { unimplemented!() }
}
