//! Files that are removed unless the caller keeps them.

use std::fs;
use std::path::{Path, PathBuf};

/// A file below `tmp/` or `new/`. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    /// The current place of the file, for messages.
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// The caller moved the file to `path`.
    pub(super) fn moved_to(&mut self, path: PathBuf) {
        self.path = Some(path);
    }

    /// Leaves the file where it is.
    pub(super) fn keep(mut self) -> Option<PathBuf> {
        self.path.take()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(e) = fs::remove_file(&path)
        {
            // The next start removes it.
            tracing::warn!(file = %path.display(), "cannot remove temporary file: {e}");
        }
    }
}
