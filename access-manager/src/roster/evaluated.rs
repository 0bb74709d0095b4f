//! The result of evaluating a roster: members, mistakes of those who are left out, warnings.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ::roster::words::{all_of, did_you_mean};
use ::roster::{Group, MemberLimits};

use super::{LeftOut, Member, Roster};
use crate::diag::{Diagnostic, Place, quoted};

/// A roster that was accepted, for those who have no mistake in their own lines.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Sorted by name.
    pub members: Vec<Member>,
    /// Sorted by name.
    pub groups: Vec<GroupEntry>,
    /// The boxes that the roster serves, if it lists them.
    pub hosts: Vec<String>,
    /// More about each member, by name.
    pub about: BTreeMap<String, About>,
    /// In the order of the file.
    pub mistakes: Vec<Mistake>,
    /// Accepted entries that are probably not meant.
    pub warnings: Vec<Warning>,
}

/// The part of a member's entry that is not in `roster.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The boxes that let the member in; all if empty. Sorted.
    pub hosts: Vec<String>,
    /// Sorted. They need not be members: whom somebody vouched for does not leave with them.
    pub vouched_by: Vec<String>,
    /// Without what groups give each of their members.
    pub own_limits: MemberLimits,
    pub key_sources: Vec<KeySource>,
}

/// Where the next `keys` of a member come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    /// From the top of the repository; `None` for text in the roster.
    pub file: Option<String>,
    pub keys: usize,
}

/// A group as the roster has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// As in `roster.json`.
    pub group: Group,
    /// For each member who has none of their own.
    pub member_limits: MemberLimits,
    /// The boxes that let its members in; all if empty. Sorted.
    pub hosts: Vec<String>,
}

/// One line, with the place if one is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub place: Option<Place>,
    pub text: String,
}

impl From<String> for Warning {
    fn from(text: String) -> Warning {
        Warning { place: None, text }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// A mistake in the entry of one member.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// The member's name, or which entry of a list it is.
    pub name: String,
    /// Whether it keeps the member out. If not, the part that is wrong does not count.
    pub left_out: bool,
    pub diagnostic: Box<Diagnostic>,
}

impl Evaluated {
    /// For the check of a pull request: any mistake refuses the roster. The error is the first one.
    pub fn strict(self) -> Result<Evaluated, Box<Diagnostic>> {
        match self.mistakes.into_iter().next() {
            Some(mistake) => Err(mistake.diagnostic),
            None => Ok(Evaluated { mistakes: Vec::new(), ..self }),
        }
    }

    /// The boxes that let this member in: those that the member and every group of theirs allow. `None`: all.
    pub fn boxes(&self, member: &Member) -> Option<BTreeSet<&str>> {
        let own = self.about.get(&member.name).map(|about| about.hosts.as_slice());
        let groups = self.groups.iter().filter(|entry| member.groups.contains(&entry.group.name));
        let lists = own.into_iter().chain(groups.map(|entry| entry.hosts.as_slice()));
        lists
            .filter(|hosts| !hosts.is_empty())
            .map(|hosts| hosts.iter().map(String::as_str).collect::<BTreeSet<&str>>())
            .reduce(|one, other| one.intersection(&other).copied().collect())
    }

    /// Whom this box lets in. Without its name everybody, which a warning says where it matters.
    #[must_use]
    pub fn for_host(mut self, host: Option<&str>) -> Evaluated {
        let elsewhere: BTreeSet<String> = self
            .members
            .iter()
            .filter(|member| {
                self.boxes(member).is_some_and(|boxes| host.is_none_or(|host| !boxes.contains(host)))
            })
            .map(|member| member.name.clone())
            .collect();
        let Some(host) = host else {
            if !elsewhere.is_empty() {
                let names: Vec<&String> = elsewhere.iter().take(5).collect();
                let more = elsewhere.len() - names.len();
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let text = format!(
                    "for some boxes only: {}{more}; it is not known which box this is, so they count here too (name the box \
                     with --host)",
                    all_of(&names)
                );
                self.warnings.push(text.into());
            }
            return self;
        };
        if !self.hosts.is_empty() && !self.hosts.iter().any(|known| known == host) {
            let near = did_you_mean(host, self.hosts.iter().map(String::as_str));
            let near = near.map(|near| format!(" (did you mean {}?)", quoted(near))).unwrap_or_default();
            self.warnings.push(format!("the roster has no box {} in `hosts`{near}", quoted(host)).into());
        }
        self.members.retain(|member| !elsewhere.contains(&member.name));
        if self.members.is_empty() && !elsewhere.is_empty() {
            self.warnings
                .push(format!("no member is for the box {}: nobody can log in", quoted(host)).into());
        }
        self
    }

    /// As the agent reads it.
    pub fn roster(self, commit: Option<String>, source: String) -> Roster {
        let errors = self.left_out();
        let used: BTreeSet<&String> = self.members.iter().flat_map(|member| &member.groups).collect();
        let groups = self.groups.into_iter().map(|entry| entry.group);
        let groups = groups.filter(|group| used.contains(&group.name)).collect();
        Roster::new((commit, source), self.members, groups, errors)
    }

    /// The members who are left out, as `roster.json` lists them.
    pub fn left_out(&self) -> Vec<LeftOut> {
        let out = self.mistakes.iter().filter(|mistake| mistake.left_out);
        out.map(|mistake| LeftOut::new(&mistake.name, &mistake.diagnostic.line())).collect()
    }
}
