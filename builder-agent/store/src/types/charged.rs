//! What a member is charged for, and the limits on it.

use std::ops::AddAssign;
use std::sync::Arc;

use super::Member;

/// What somebody is charged for. An object that several paths have counts for each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charged {
    /// Bytes of the files of objects; each object is a file.
    pub bytes: u64,
    /// Rows of paths.
    pub paths: u64,
    /// References of these rows.
    pub references: u64,
}

impl AddAssign for Charged {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.paths += other.paths;
        self.references += other.references;
    }
}

/// Who set a limit on what somebody is charged for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuotaSetBy {
    /// The box, for each member.
    Box,
    /// The roster, for this member.
    Member,
    /// The roster, for the members of this group together.
    Group(Arc<str>),
}

/// The most that a member may be charged for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// In bytes.
    pub bytes: u64,
    /// Whom to ask for more.
    pub set_by: QuotaSetBy,
    /// The members whose charges count together; `None`: the payer's alone.
    pub together: Option<Arc<[Member]>>,
}

impl Quota {
    /// The smaller one of the member's own limit and the box's, in bytes.
    #[must_use]
    pub fn smaller(own: Option<u64>, of_box: Option<u64>) -> Option<Self> {
        let (own, of_box) = (own.map(|bytes| (bytes, true)), of_box.map(|bytes| (bytes, false)));
        let (bytes, own) = own.into_iter().chain(of_box).min_by_key(|(bytes, own)| (*bytes, !own))?;
        let set_by = if own { QuotaSetBy::Member } else { QuotaSetBy::Box };
        Some(Self { bytes, set_by, together: None })
    }

    /// Whether it is the member's own, from the roster, and not the box's.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.set_by == QuotaSetBy::Member
    }

    /// So many bytes for the members of a group together.
    #[must_use]
    pub fn of_group(name: &str, bytes: u64, members: Arc<[Member]>) -> Self {
        Self { bytes, set_by: QuotaSetBy::Group(name.into()), together: Some(members) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_counts_and_of_two_equal_ones_the_members() {
        let smaller = |own, of_box| {
            let quota = Quota::smaller(own, of_box)?;
            Some((quota.bytes, quota.is_own()))
        };
        assert_eq!(smaller(Some(5), Some(9)), Some((5, true)));
        assert_eq!(smaller(Some(9), Some(5)), Some((5, false)));
        assert_eq!(smaller(Some(5), Some(5)), Some((5, true)));
        assert_eq!(smaller(None, Some(5)), Some((5, false)));
        assert_eq!(smaller(None, None), None);
    }
}
