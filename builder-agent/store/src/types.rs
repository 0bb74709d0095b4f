//! The store's basic types: members, and the provenance that decides which of them see a path.

pub(crate) mod charged;
pub(crate) mod realisation;
pub(crate) mod result;

use std::fmt;
use std::sync::Arc;

/// An owner of claims. Cheap to clone.
///
/// The identity begins with the member's name in the roster. The part after a `~` distinguishes people who
/// had that name one after the other: the store treats them as different members, and messages show the name
/// only.
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

/// The reason why the box believes that a path has its contents; decides which members see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provenance {
    /// The agent established it: all members see the path. All its references are Verified too.
    Verified,
    /// One member says so: only that member sees the path, and members who share with that member.
    Claimed(Member),
}
