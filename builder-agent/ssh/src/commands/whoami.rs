//! `whoami`: the member of this connection, and the limits of this member with their origin.

use std::sync::Arc;

use builds::monthly::Monthly;
use daemon::Agent;
use members::{Effective, Member, Roster, SetBy};
use serde::Serialize;

use super::ticket::Summary;
use crate::places::Kind;

#[derive(Serialize)]
struct WhoAmI {
    member: String,
    role: &'static str,
    /// The members whose claims this member sees, and who see those of this member.
    shares_with: Vec<String>,
    limits: Vec<Limit>,
    /// Bytes of the store that the member is charged for; for the holder of a ticket, its part of the maker's charge.
    store_bytes: u64,
    groups: Vec<Group>,
    /// For the holder of a ticket.
    #[serde(skip_serializing_if = "Option::is_none")]
    ticket: Option<Summary>,
}

/// A group of the member. Its limits are for all members of the group together.
#[derive(Serialize)]
struct Group {
    name: String,
    limits: Vec<Shared>,
}

#[derive(Serialize)]
struct Shared {
    name: &'static str,
    value: u64,
    unit: &'static str,
}

/// A limit that holds for this member: mostly the smaller one of the member's own and the box's.
#[derive(Serialize)]
struct Limit {
    name: &'static str,
    value: u64,
    unit: &'static str,
    set_by: String,
}

/// The output of the command.
pub(super) fn text(agent: &Agent, member: &Member, json: bool) -> String {
    let roster = agent.roster.borrow();
    let answer = WhoAmI {
        member: member.name.to_string(),
        role: member.role.name(),
        shares_with: roster.sharing_with(&member.name).iter().map(ToString::to_string).collect(),
        limits: limits(agent, member, &roster),
        store_bytes: roster.view_of(&agent.store, member).charged().0,
        groups: groups(member, &roster),
        ticket: member.ticket.as_ref().map(|bearer| Summary::of(&bearer.ticket, &roster)),
    };
    match json {
        true => super::json_line(&answer),
        false => answer.text(),
    }
}

fn limits(agent: &Agent, member: &Member, roster: &Roster) -> Vec<Limit> {
    let of_box = &agent.config.limits;
    // As they are now, not as they were at the login.
    let Some(member) = roster.current(member) else { return Vec::new() };
    let own = &member.limits;
    let limit = |name, unit, Effective { value, set_by }: Effective<u64>| {
        let set_by = set_by.short();
        Limit { name, value, unit, set_by }
    };
    let smaller = |name: &'static str, unit, own: Option<u64>, of_box: u64| {
        limit(name, unit, Effective::of_box(name, of_box).and(own, SetBy::Member(name)))
    };
    let places = |kind: Kind| {
        let Effective { value, set_by } = kind.most(of_box, own);
        limit(kind.limit(), kind.words(), Effective { value: value as u64, set_by })
    };
    let jobs = of_box.max_jobs_per_member.min(of_box.max_jobs) as u64;
    let memory = own.max_memory_mib.map(u64::from);
    let mut limits = vec![
        smaller("max-jobs", "builds", own.max_jobs.map(u64::from), jobs),
        smaller("max-cpus", "processors", own.max_cpus.map(u64::from), of_box.max_vcpus.into()),
        smaller("max-memory-mib", "MiB", memory, of_box.max_memory_mib.into()),
        smaller("max-build-seconds", "seconds", own.max_build_seconds, of_box.max_build.as_secs()),
        smaller("max-silent-seconds", "seconds", own.max_silent_seconds, of_box.max_silent.as_secs()),
        smaller("max-output-mib", "MiB", own.max_output_mib, of_box.max_output_bytes >> 20),
        smaller("max-upload-mib", "MiB", own.max_upload_mib, of_box.max_nar_bytes >> 20),
        places(Kind::Connection),
        places(Kind::Session),
    ];
    // Those of groups are listed with the groups.
    let monthly = Monthly::of(&agent.config, member).into_iter();
    let monthly = monthly.filter(|limit| !matches!(limit.set_by, SetBy::Group { .. }));
    limits.extend(monthly.map(|Monthly { hours: value, set_by, .. }| {
        limit("max-cpu-hours-per-month", "CPU hours", Effective { value, set_by })
    }));
    let quota = roster.view_of(&agent.store, member).charged().1;
    limits.extend(quota.map(|quota| {
        let set_by = match quota.is_own() {
            true => SetBy::Member("max-store-mib"),
            false => SetBy::Box("limits.max-store-mib-per-member"),
        };
        limit("max-store-mib", "MiB", Effective { value: quota.bytes >> 20, set_by })
    }));
    limits
}

fn groups(member: &Member, roster: &Roster) -> Vec<Group> {
    let Some(now) = roster.current(member) else { return Vec::new() };
    let group = |group: &Arc<members::Group>| {
        let limits =
            group.limits.values().map(|(limit, value)| Shared { name: limit.json, value, unit: limit.unit });
        Group { name: group.name.clone(), limits: limits.collect() }
    };
    now.groups.iter().map(group).collect()
}

impl WhoAmI {
    fn text(&self) -> String {
        let shares = match self.shares_with.as_slice() {
            [] => "nobody".to_owned(),
            names => names.join(" "),
        };
        let mut text = format!(
            "member              {}\nrole                {}\nshares paths with   {shares}\n",
            self.member, self.role
        );
        for Limit { name, value, unit, set_by } in &self.limits {
            text.push_str(&format!("{name:<18}  {value} {unit}, set by the {set_by}\n"));
        }
        text.push_str(&format!("store               {} MiB\n", self.store_bytes.div_ceil(1 << 20)));
        text.push_str(&self.ticket.as_ref().map(Summary::long).unwrap_or_default());
        for Group { name, limits } in &self.groups {
            if limits.is_empty() {
                text.push_str(&format!("group               {name}\n"));
            }
            for Shared { name: limit, value, unit } in limits {
                text.push_str(&format!(
                    "group               {name}, {limit} {value} {unit} for all its members together, set by the \
                     roster\n"
                ));
            }
        }
        text
    }
}
