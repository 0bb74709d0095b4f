//! How much a member's paths may take.
//!
//! A member is charged for the objects of all their claims, and for those of the Verified paths that they brought first. An
//! object that others have too counts in full, so the charge says nothing about what others have. Before a registration is
//! refused, the member is charged less: dead claims are removed, and Verified paths that the member does not need are
//! charged to the box from then on (`upkeep::evict::slim`).
//! Not here: room on the disk (`upkeep::room`).

use std::sync::Arc;

use super::seen::Viewer;
use crate::error::RegisterError;
use crate::index::change::Change;
use crate::index::commit::{About, Plan, commit_repeatable};
use crate::index::memory::Memory;
use crate::types::{Member, Provenance};
use crate::upkeep::base::Base;
use crate::upkeep::evict::{Slimming, slim};

/// A member who is over the limit gets below this part of it at once, so that not every small path costs a look at all of
/// the member's paths.
const DOWN_TO: (u64, u64) = (9, 10);

/// The most that a member may be charged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// In bytes.
    pub bytes: u64,
    /// Whether it is the member's own, from the roster, and not the box's.
    pub own: bool,
}

impl Quota {
    /// The smaller one of the member's own limit and the box's, in bytes.
    #[must_use]
    pub fn smaller(own: Option<u64>, of_box: Option<u64>) -> Option<Self> {
        let (own, of_box) = (own.map(|bytes| (bytes, true)), of_box.map(|bytes| (bytes, false)));
        let (bytes, own) = own.into_iter().chain(of_box).min_by_key(|(bytes, own)| (*bytes, !own))?;
        Some(Self { bytes, own })
    }
}

/// Who is charged for what a view registers, and the limit.
#[derive(Debug, Clone, Default)]
pub struct Payer {
    /// `None`: the box, which has no limit.
    pub(crate) member: Option<Member>,
    pub(crate) quota: Option<Quota>,
}

impl Payer {
    /// The same without a limit, for a registration whose size was checked before it was fetched.
    #[must_use]
    pub fn without_limit(&self) -> Self {
        Self { member: self.member.clone(), quota: None }
    }
}

/// Bytes for which these changes charge `member` more, and for which they charge less.
fn charges(index: &Memory, member: &Member, changes: &[Change]) -> (u64, u64) {
    let (mut more, mut less) = (0, 0);
    for change in changes {
        match change {
            Change::AddPath { provenance, object_size, account, .. } => match provenance {
                Provenance::Verified if account.payer.as_ref() == Some(member) => more += object_size,
                Provenance::Claimed(owner) if owner == member => more += object_size,
                _ => {}
            },
            Change::DropClaim { member: owner, path } if owner == member => {
                let entry = index.claims_of(member).and_then(|claims| claims.entry(path));
                less += entry.map_or(0, |entry| entry.size);
            }
            _ => {}
        }
    }
    (more, less)
}

fn over(member: &Member, quota: Quota, more: u64, charged: u64) -> RegisterError {
    let Quota { bytes: limit, own } = quota;
    RegisterError::Quota { member: member.clone(), more, charged, limit, own }
}

/// Refuses changes with which the payer would be charged more than the limit.
pub(crate) fn within(index: &Memory, viewer: &Viewer, changes: &[Change]) -> Result<(), RegisterError> {
    let Payer { member: Some(member), quota: Some(quota) } = &viewer.payer else { return Ok(()) };
    let (more, less) = charges(index, member, changes);
    let charged = index.charged_to(member).bytes.saturating_sub(less);
    match more > 0 && charged.saturating_add(more) > quota.bytes {
        true => Err(over(member, *quota, more, charged)),
        false => Ok(()),
    }
}

/// Charges the payer less, if `more` bytes would not fit otherwise; an error, and no change, if they cannot fit.
pub(crate) fn make_room(base: &Arc<Base>, viewer: &Viewer, more: u64) -> Result<(), RegisterError> {
    let Payer { member: Some(member), quota: Some(quota) } = viewer.payer.clone() else { return Ok(()) };
    let missing = move |charged: u64| charged.saturating_add(more).saturating_sub(quota.bytes);
    if more == 0 || missing(base.index.read().charged_to(&member).bytes) == 0 {
        return Ok(());
    }
    let holds = Arc::clone(base.index.holds());
    let about = About { everything: true, ..About::default() };
    let plan = move |memory: &Memory| {
        let charged = memory.charged_to(&member).bytes;
        let missing = missing(charged);
        if missing == 0 {
            return Ok((Plan::default(), Vec::new()));
        }
        let ample = quota.bytes - quota.bytes / DOWN_TO.1 * DOWN_TO.0;
        let Slimming { plan, gone, bytes } = slim(memory, &holds, &member, missing.saturating_add(ample));
        match bytes < missing {
            true => Err(over(&member, quota, more, charged - bytes)),
            false => Ok((plan, gone)),
        }
    };
    // It looks at all paths of the member.
    let gone = base.config.long_work.run(|| commit_repeatable(&base.index, about, plan))?;
    base.upkeep.look_at(gone);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_counts_and_of_two_equal_ones_the_members() {
        let smaller = |own, of_box| Quota::smaller(own, of_box).map(|quota| (quota.bytes, quota.own));
        assert_eq!(smaller(Some(5), Some(9)), Some((5, true)));
        assert_eq!(smaller(Some(9), Some(5)), Some((5, false)));
        assert_eq!(smaller(Some(5), Some(5)), Some((5, true)));
        assert_eq!(smaller(None, Some(5)), Some((5, false)));
        assert_eq!(smaller(None, None), None);
    }
}
