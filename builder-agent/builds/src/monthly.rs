//! The monthly limit: processor time of a member's builds in one calendar month (UTC).
//!
//! A member who has used it starts no new run; running ones go on, so a month can end above the limit. Results that exist,
//! joined runs, copies and downloads need no run, so they still work. A run counts when it has ended (`schedule`).

use ledger::{Amounts, Ledger, Principal, Resource, Unit};
use members::{Member, MemberLimits};
use nix_derivation::StorePath;
use settings::Config;

use crate::Failure;
use crate::failure::{Cause, Limit};

const HOUR: u64 = 3600 * Unit::Seconds.parts();

/// The limit that holds for one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Monthly {
    pub hours: u64,
    /// Whether it is the member's own, from the roster, and not the box's.
    pub own: bool,
}

impl Monthly {
    /// `None`: the member may use as much as the box gives.
    #[must_use]
    pub fn of(config: &Config, limits: &MemberLimits) -> Option<Self> {
        Self::choose(own(limits), config.limits.max_cpu_hours_per_month)
    }

    /// Unlike other limits, the member's own takes the place of the box's also if it is higher: the box's is the usual
    /// share, which a maintainer can raise for one member.
    fn choose(own: Option<u64>, of_box: Option<u64>) -> Option<Self> {
        let hours = own.or(of_box)?;
        Some(Self { hours, own: own.is_some() })
    }

    #[must_use]
    pub fn is_used_up(&self, used: &Amounts) -> bool {
        used.get(Resource::CpuSeconds) >= self.hours.saturating_mul(HOUR)
    }
}

/// The member's own limit. The roster cannot hold one yet.
fn own(_: &MemberLimits) -> Option<u64> {
    None
}

/// Hours of processor time, for people.
#[must_use]
pub fn hours(used: &Amounts) -> f64 {
    used.get(Resource::CpuSeconds) as f64 / HOUR as f64
}

/// The reason why this member starts no builds this month, if there is one. `member` is from the current roster.
pub(crate) fn refusal(ledger: &Ledger, config: &Config, member: &Member, drv: &StorePath) -> Option<Failure> {
    let monthly = Monthly::of(config, &member.limits)?;
    let used = ledger.used_this_month(&Principal::of(&member.id));
    if !monthly.is_used_up(&used) {
        return None;
    }
    let month = ledger.this_month();
    let (set_by, ask) = match monthly.own {
        true => ("your `max-cpu-hours-per-month` in the roster", "a maintainer of the roster"),
        false => ("the box's `limits.max-cpu-hours-per-month`", "the operator of the box"),
    };
    let message = format!(
        "'{}' is not built: you have used {:.1} of {} CPU hours in {month}, which is the limit ({set_by}); it ends on {} \
         (UTC). Until then running builds go on, and results that exist, copies and downloads still work. Build \
         elsewhere meanwhile, or ask {ask} for more; `ssh box usage` shows what you have used",
        drv.to_absolute_path(),
        hours(&used),
        monthly.hours,
        month.next().first(),
    );
    Some(Failure::transient(message).because(Cause::Limit(Limit::Month)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_own_limit_takes_the_place_of_the_boxs() {
        let chosen = |own, of_box| Monthly::choose(own, of_box).map(|limit| (limit.hours, limit.own));
        assert_eq!(chosen(Some(20), Some(10)), Some((20, true)));
        assert_eq!(chosen(None, Some(10)), Some((10, false)));
        assert_eq!(chosen(Some(1), None), Some((1, true)));
        assert_eq!(chosen(None, None), None);
    }

    #[test]
    fn the_last_millisecond_of_the_last_hour_is_the_members() {
        let limit = Monthly { hours: 2, own: false };
        let used = |millis| Amounts::from_iter([(Resource::CpuSeconds, millis)]);
        assert!(!limit.is_used_up(&used(2 * 3_600_000 - 1)) && limit.is_used_up(&used(2 * 3_600_000)));
    }
}
