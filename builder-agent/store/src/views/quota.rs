//! How much a member's paths may take.
//!
//! A member is charged for the objects of all their claims, and for those of the Verified paths that they brought first. An
//! object that others have too counts in full, so the charge says nothing about what others have. The holder of a ticket is
//! charged for nothing: the ticket's maker is. Before a registration is
//! refused, the member is charged less: dead claims are removed, and Verified paths that the member does not need are
//! charged to the box from then on (`upkeep::evict::slim`). A limit that several members have together is one on the sum of
//! their charges; whoever wants more is charged less.
//! Not here: room on the disk (`upkeep::room`).

use std::sync::Arc;
use std::time::Instant;

use super::seen::Viewer;
use crate::error::RegisterError;
use crate::index::change::Change;
use crate::index::commit::{About, Plan, commit_repeatable};
use crate::index::holds::Holds;
use crate::index::memory::Memory;
use crate::types::charged::Quota;
use crate::types::{Member, Provenance};
use crate::upkeep::base::Base;
use crate::upkeep::evict::looks::{Look, Next, Situation};
use crate::upkeep::evict::{Slimming, slim};

/// A member who is over the limit gets below this part of it at once, so that not every small path costs a look at all of
/// the member's paths.
const DOWN_TO: (u64, u64) = (9, 10);

/// Who is charged for what a view registers, and the limits.
#[derive(Debug, Clone, Default)]
pub struct Payer {
    /// `None`: the box, which has no limit.
    pub(crate) member: Option<Member>,
    pub(crate) quotas: Arc<[Quota]>,
}

impl Payer {
    /// The same without a limit, for a registration whose size was checked before it was fetched.
    #[must_use]
    pub fn without_limit(&self) -> Self {
        Self { member: self.member.clone(), quotas: Arc::default() }
    }

    /// The limit of the payer alone.
    pub(crate) fn own_quota(&self) -> Option<&Quota> {
        self.quotas.iter().find(|quota| quota.together.is_none())
    }
}

/// Bytes for which these changes charge `payer` more, and for which they charge less.
fn charges(index: &Memory, payer: &Member, changes: &[Change]) -> (u64, u64) {
    let (mut more, mut less) = (0, 0);
    for change in changes {
        match change {
            Change::AddPath { provenance, object_size, account, .. } => match provenance {
                Provenance::Verified if account.payer.as_ref() == Some(payer) => more += object_size,
                Provenance::Claimed(owner) if index.payer_of(owner) == payer => more += object_size,
                _ => {}
            },
            Change::DropClaim { member: owner, path } if index.payer_of(owner) == payer => {
                let entry = index.claims_of(owner).and_then(|claims| claims.entry(path));
                less += entry.map_or(0, |entry| entry.size);
            }
            _ => {}
        }
    }
    (more, less)
}

/// What counts for this limit.
fn charged(index: &Memory, payer: &Member, quota: &Quota) -> u64 {
    match &quota.together {
        None => index.charged_to(payer).bytes,
        Some(members) => members.iter().map(|member| index.charged_to(member).bytes).sum(),
    }
}

fn over(viewer: &Viewer, payer: &Member, quota: &Quota, more: u64, charged: u64) -> RegisterError {
    let (limit, set_by) = (quota.bytes, quota.set_by.clone());
    RegisterError::Quota { member: viewer.member.clone(), payer: payer.clone(), more, charged, limit, set_by }
}

/// Refuses changes with which the payer would be charged more than a limit.
pub(crate) fn within(index: &Memory, viewer: &Viewer, changes: &[Change]) -> Result<(), RegisterError> {
    let Payer { member: Some(payer), quotas } = &viewer.payer else { return Ok(()) };
    if quotas.is_empty() {
        return Ok(());
    }
    let (more, less) = charges(index, payer, changes);
    for quota in quotas.iter().filter(|_| more > 0) {
        let charged = charged(index, payer, quota).saturating_sub(less);
        if charged.saturating_add(more) > quota.bytes {
            return Err(over(viewer, payer, quota, more, charged));
        }
    }
    Ok(())
}

/// The limit of which most bytes are missing for `more`, and how many.
fn missing<'q>(
    index: &Memory,
    payer: &Member,
    quotas: &'q [Quota],
    more: u64,
) -> Option<(&'q Quota, u64, u64)> {
    let missing = quotas.iter().map(|quota| {
        let charged = charged(index, payer, quota);
        (quota, charged, charged.saturating_add(more).saturating_sub(quota.bytes))
    });
    missing.filter(|(.., missing)| *missing > 0).max_by_key(|(.., missing)| *missing)
}

fn situation(index: &Memory, holds: &Holds, payer: &Member) -> Situation {
    let freed =
        |member: &Member| holds.ended(member) + index.claims_of(member).map_or(0, |claims| claims.unrooted());
    Situation { charged: index.charged_to(payer).bytes, freed: index.views_of(payer).map(freed).sum() }
}

/// Charges the payer less, if `more` bytes would not fit otherwise; an error, and no change, if they cannot fit.
pub(crate) fn make_room(base: &Arc<Base>, viewer: &Viewer, more: u64) -> Result<(), RegisterError> {
    let Payer { member: Some(payer), .. } = &viewer.payer else { return Ok(()) };
    if more == 0 {
        return Ok(());
    }
    let asked = Instant::now();
    let _looking = loop {
        let index = base.index.read();
        let Some((quota, charged, missing)) = missing(&index, payer, &viewer.payer.quotas, more) else {
            return Ok(());
        };
        // No look can find more than all.
        if missing > index.charged_to(payer).bytes {
            return Err(over(viewer, payer, quota, more, charged));
        }
        let now = situation(&index, base.index.holds(), payer);
        match base.looks.next(payer, (asked, Instant::now()), now, missing) {
            Next::Look(looking) => break looking,
            Next::Refused(possible) => {
                return Err(over(viewer, payer, quota, more, charged.saturating_sub(possible)));
            }
            Next::Wait(pause) => {
                drop(index);
                base.config.long_work.run(|| base.looks.wait(payer, pause));
            }
        }
    };
    // It looks at all paths of the payer. Those that go are only so many at once.
    base.config.long_work.run(|| {
        while !slim_once(base, viewer, more)? {}
        Ok(())
    })
}

/// False: there is more to do.
fn slim_once(base: &Arc<Base>, viewer: &Viewer, more: u64) -> Result<bool, RegisterError> {
    let Some(payer) = viewer.payer.member.clone() else { return Ok(true) };
    let (viewer, holds, notes) = (viewer.clone(), Arc::clone(base.index.holds()), Arc::clone(base));
    let about = About { everything: true, ..About::default() };
    let plan = move |memory: &Memory| {
        let quotas = &viewer.payer.quotas;
        let Some((quota, charged, missing)) = missing(memory, &payer, quotas, more) else {
            return Ok((Plan::default(), (Vec::new(), true)));
        };
        let ample = quota.bytes - quota.bytes / DOWN_TO.1 * DOWN_TO.0;
        let (began, before) = (Instant::now(), situation(memory, &holds, &payer));
        let Slimming { plan, gone, bytes, possible, looked_at } =
            slim(memory, &holds, &payer, missing.saturating_add(ample));
        let is_enough = possible >= missing;
        let less = if is_enough { bytes } else { 0 };
        let situation = Situation { charged: before.charged.saturating_sub(less), ..before };
        let possible_then = possible.saturating_sub(less);
        notes.looks.note(&payer, Look { began, rows: looked_at, situation, possible: possible_then });
        match is_enough {
            true => Ok((plan, (gone, bytes >= missing || bytes == 0))),
            false => Err(over(&viewer, &payer, quota, more, charged.saturating_sub(possible))),
        }
    };
    let (gone, is_done) = commit_repeatable(&base.index, about, plan)?;
    base.upkeep.look_at(gone);
    Ok(is_done)
}
