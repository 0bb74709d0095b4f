//! The words of the store: who sees a path, and why we believe it.

pub(crate) mod realisation;
pub(crate) mod result;

use std::fmt;
use std::sync::Arc;

/// Who owns claims. Cheap to clone.
///
/// It begins with the member's name in the roster. What follows a `~` tells apart people who had that name one after the
/// other: they are different members to the store, and people are shown the name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member(Arc<str>);

impl Member {
    /// The member with this identity.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// The identity, as it was given to [`Member::new`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.split('~').next().unwrap_or_default())
    }
}

/// Why we believe that a path has the contents it has; decides who can see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provenance {
    /// Checked here: everyone sees it. All its references are Verified too.
    Verified,
    /// One member says so: that member alone sees it.
    Claimed(Member),
}
