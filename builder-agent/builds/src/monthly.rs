//! The monthly limit: processor time of a member's builds, or of those of all members of a group, in one calendar month
//! (UTC).
//!
//! A member who has used it starts no new run; running ones go on, so a month can end above the limit. Results that exist,
//! joined runs, copies and downloads need no run, so they still work. A run counts when it has ended (`schedule`). In a
//! group counts what those who are its members now have used in this month, also before they joined it.

use std::sync::Arc;

use ledger::{Amounts, Ledger, Month, Principal, Resource, Unit};
use members::{Group, Member, Roster, SetBy};
use nix_derivation::StorePath;
use settings::Config;

use crate::Failure;
use crate::failure::{Cause, Limit};

const HOUR: u64 = 3600 * Unit::Seconds.parts();
/// In `roster.json`.
const NAME: &str = "max-cpu-hours-per-month";

/// A limit that holds for one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monthly {
    pub hours: u64,
    pub set_by: SetBy,
    /// The group whose members have it together.
    group: Option<Arc<Group>>,
}

impl Monthly {
    /// The limits of this member, who is from the current roster: the own one, then those of groups. None: the member may
    /// use as much as the box gives.
    #[must_use]
    pub fn of(config: &Config, member: &Member) -> Vec<Self> {
        let own = Self::choose(member.limits.max_cpu_hours_per_month, config.limits.max_cpu_hours_per_month);
        let shared = |group: &Arc<Group>| {
            let set_by = SetBy::Group { limit: NAME, group: group.name.clone() };
            Some(Self { hours: group.limits.max_cpu_hours_per_month?, set_by, group: Some(group.clone()) })
        };
        own.into_iter().chain(member.groups.iter().filter_map(shared)).collect()
    }

    /// Unlike other limits, the member's own takes the place of the box's also if it is higher: the box's is the usual
    /// share, which a maintainer can raise for one member.
    fn choose(own: Option<u64>, of_box: Option<u64>) -> Option<Self> {
        let limit = |hours, set_by| Self { hours, set_by, group: None };
        let of_box = of_box.map(|hours| limit(hours, SetBy::Box("limits.max-cpu-hours-per-month")));
        own.map(|hours| limit(hours, SetBy::Member(NAME))).or(of_box)
    }

    /// What counts against this limit of `member`. Each member is asked for alone: whoever charges meanwhile does not wait
    /// for the sum of a large group.
    #[must_use]
    pub fn used(&self, ledger: &Ledger, roster: &Roster, member: &Member) -> Amounts {
        let of = |member: &Member| ledger.used_this_month(&Principal::of(&member.id));
        let Some(group) = &self.group else { return of(member) };
        let mut sum = Amounts::default();
        roster.members_of(group).for_each(|member| sum.add_all(&of(member)));
        sum
    }

    #[must_use]
    pub fn is_used_up(&self, used: &Amounts) -> bool {
        used.get(Resource::CpuSeconds) >= self.hours.saturating_mul(HOUR)
    }
}

/// Hours of processor time, for people.
#[must_use]
pub fn hours(used: &Amounts) -> f64 {
    used.get(Resource::CpuSeconds) as f64 / HOUR as f64
}

/// A limit that is used up.
pub struct UsedUp {
    limit: Monthly,
    used: Amounts,
    pub month: Month,
}

impl UsedUp {
    /// The first of the limits of this member that is used up this month. `member` is from `roster`, the current one.
    #[must_use]
    pub fn of(ledger: &Ledger, config: &Config, roster: &Roster, member: &Member) -> Option<Self> {
        let limits = Monthly::of(config, member).into_iter();
        let mut limits = limits.map(|limit| (limit.used(ledger, roster, member), limit));
        let (used, limit) = limits.find(|(used, limit)| limit.is_used_up(used))?;
        Some(Self { limit, used, month: ledger.this_month() })
    }

    /// For the member: who has used how much of what, and when it ends.
    #[must_use]
    pub fn told(&self) -> String {
        let who = match &self.limit.group {
            None => "you have".to_owned(),
            Some(group) => format!("the members of the group '{}' have together", group.name),
        };
        format!(
            "{who} used {:.1} of {} CPU hours in {}, which is the limit ({}); it ends on {} (UTC)",
            hours(&self.used),
            self.limit.hours,
            self.month,
            self.limit.set_by,
            self.month.next().first(),
        )
    }
}

/// The reason why this member starts no builds this month, if there is one. `member` is from `roster`, the current one.
pub(crate) fn refusal(
    ledger: &Ledger,
    config: &Config,
    roster: &Roster,
    member: &Member,
    drv: &StorePath,
) -> Option<Failure> {
    let payer = member.payer();
    let over = UsedUp::of(ledger, config, roster, payer)?;
    if member.ticket.is_some() {
        // The holder of a ticket learns nothing about what its maker uses.
        let month = over.month;
        let message = format!(
            "'{}' is not built: {}, who made this ticket, has used up the CPU hours of {month}; builds are possible again \
             from {} (UTC) on. Running builds go on, and results that exist can be copied",
            drv.to_absolute_path(),
            payer.name,
            month.next().first(),
        );
        return Some(Failure::transient(message).because(Cause::Limit(Limit::Month)));
    }
    let message = format!(
        "'{}' is not built: {}. Until then running builds go on, and results that exist, copies and downloads still work. \
         Build elsewhere meanwhile, or {}; `ssh box usage` shows what was used",
        drv.to_absolute_path(),
        over.told(),
        over.limit.set_by.ask(),
    );
    Some(Failure::transient(message).because(Cause::Limit(Limit::Month)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_own_limit_takes_the_place_of_the_boxs() {
        let chosen = |own, of_box| Monthly::choose(own, of_box).map(|limit| (limit.hours, limit.set_by));
        let of_box = SetBy::Box("limits.max-cpu-hours-per-month");
        assert_eq!(chosen(Some(20), Some(10)), Some((20, SetBy::Member(NAME))));
        assert_eq!(chosen(None, Some(10)), Some((10, of_box)));
        assert_eq!(chosen(Some(1), None), Some((1, SetBy::Member(NAME))));
        assert_eq!(chosen(None, None), None);
    }

    #[test]
    fn the_last_millisecond_of_the_last_hour_is_the_members() {
        let limit = Monthly::choose(Some(2), None).expect("a limit");
        let used = |millis| Amounts::from_iter([(Resource::CpuSeconds, millis)]);
        assert!(!limit.is_used_up(&used(2 * 3_600_000 - 1)) && limit.is_used_up(&used(2 * 3_600_000)));
    }
}
