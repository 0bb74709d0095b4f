//! `whoami`: the member of this connection, and the limits of this member with their origin.

use std::sync::Arc;

use builds::monthly::Monthly;
use daemon::Agent;
use members::{Member, Roster};
use serde::Serialize;

#[derive(Serialize)]
struct WhoAmI {
    member: String,
    role: &'static str,
    /// The members whose claims this member sees, and who see those of this member.
    shares_with: Vec<String>,
    limits: Vec<Limit>,
    groups: Vec<Group>,
}

/// A group of the member. Its limit is for all members of the group together.
#[derive(Serialize)]
struct Group {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_jobs: Option<u32>,
}

/// A limit that holds for this member: the smaller one of the member's own and the box's.
#[derive(Serialize)]
struct Limit {
    name: &'static str,
    value: u64,
    unit: &'static str,
    set_by: &'static str,
}

/// The output of the command.
pub(super) fn text(agent: &Agent, member: &Member, json: bool) -> String {
    let roster = agent.roster.borrow();
    let answer = WhoAmI {
        member: member.name.to_string(),
        role: member.role.name(),
        shares_with: roster.sharing_with(&member.name).iter().map(ToString::to_string).collect(),
        limits: limits(agent, member, &roster),
        groups: groups(member, &roster),
    };
    match json {
        true => super::json_line(&answer),
        false => answer.text(),
    }
}

fn limits(agent: &Agent, member: &Member, roster: &Roster) -> Vec<Limit> {
    let of_box = &agent.config.limits;
    // As they are now, not as they were at the login.
    let own = roster.current(member).map_or_else(Default::default, |member| member.limits.clone());
    let limit = |name, unit, own: Option<u64>, of_box: u64| match own.filter(|own| *own <= of_box) {
        Some(value) => Limit { name, value, unit, set_by: "roster" },
        None => Limit { name, value: of_box, unit, set_by: "box" },
    };
    let monthly = Monthly::of(&agent.config, &own).map(|limit| Limit {
        name: "max-cpu-hours-per-month",
        value: limit.hours,
        unit: "CPU hours",
        set_by: if limit.own { "roster" } else { "box" },
    });
    let jobs = of_box.max_jobs_per_member.min(of_box.max_jobs) as u64;
    let mut limits = vec![
        limit("max-jobs", "builds", own.max_jobs.map(u64::from), jobs),
        limit("max-cpus", "processors", own.max_cpus.map(u64::from), of_box.max_vcpus.into()),
        limit("max-memory-mib", "MiB", own.max_memory_mib.map(u64::from), of_box.max_memory_mib.into()),
        limit("max-build-seconds", "seconds", own.max_build_seconds, of_box.max_build.as_secs()),
        limit("max-silent-seconds", "seconds", None, of_box.max_silent.as_secs()),
        limit("max-output-mib", "MiB", None, of_box.max_output_bytes >> 20),
        limit("max-connections", "connections", None, of_box.max_connections_per_member as u64),
    ];
    limits.extend(monthly);
    limits
}

fn groups(member: &Member, roster: &Roster) -> Vec<Group> {
    let Some(now) = roster.current(member) else { return Vec::new() };
    let group =
        |group: &Arc<members::Group>| Group { name: group.name.clone(), max_jobs: group.limits.max_jobs };
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
        for Group { name, max_jobs } in &self.groups {
            let jobs = max_jobs
                .map(|jobs| format!(", {jobs} builds for all its members together, set by the roster"));
            text.push_str(&format!("group               {name}{}\n", jobs.unwrap_or_default()));
        }
        text
    }
}
