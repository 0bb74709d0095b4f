//! `{ users = …; groups = …; hosts = …; }`: a roster with more than members.
//!
//! A mistake in a group leaves out its members, as the group may take something away. If the list of its members cannot
//! be read, nobody can say whom that concerns, so there is no roster. A name in it that no member has costs nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ::roster::settings::{Layer, Level};
use ::roster::{Group, MAX_GROUPS, MAX_MEMBERS, MemberLimits, name as names};

use super::attributes::Whose;
use super::{Costs, Found, MAX_HOSTS, R, Reader, Suggestions};
use crate::diag::{Class, Fault, Span, did_you_mean, one_of, quoted};
use crate::nix::{AttrMap, Evaluator, ThunkId, Value};
use crate::roster::evaluated::GroupEntry;
use crate::roster::modules;
use crate::roster::names::{self as lists, List, Named};

/// Most messages about names in groups that no member has. Lists of groups can have ten million names together.
const MAX_STRANGERS: usize = 100;

const ATTRIBUTES: &[&str] = &["users", "groups", "hosts"];
const GROUP_ATTRIBUTES: &[&str] = &["members", "limits", "memberLimits", "settings", "hosts"];

/// Whether a set at the top is this shape. A member named `users` has `keys`; a set of members has a set below each
/// name.
pub(super) fn is_whole(ev: &mut Evaluator, map: &AttrMap, at: Span) -> R<bool> {
    let Some(slot) = map.get("users") else { return Ok(false) };
    Ok(match ev.force(slot.thunk, at) {
        Ok(Value::List(_)) => true,
        Ok(Value::Attrs(_)) => !modules::is_member(ev, slot.thunk, at),
        // The mistake is reported with the member of this name.
        _ => false,
    })
}

/// The groups of a roster, before its members are known.
#[derive(Default)]
pub(super) struct Groups {
    sound: BTreeMap<String, GroupEntry>,
    /// Those with a mistake.
    broken: BTreeSet<String>,
    /// Who is in it by its own `members`.
    members: BTreeMap<String, Vec<Named>>,
}

impl Reader<'_, '_> {
    pub(super) fn whole(&mut self, map: &AttrMap, at: Span) -> R<()> {
        if let Some((name, slot)) = map.iter().find(|(name, _)| !ATTRIBUTES.contains(&&***name)) {
            let fault = Fault::new(Class::Roster, format!("a roster has no attribute {}", quoted(name)))
                .at(slot.span)
                .expected(one_of(ATTRIBUTES))
                .found(quoted(name))
                .hint("members belong into `users`");
            return Err(fault.did_you_mean(did_you_mean(name, ATTRIBUTES.iter().copied())));
        }
        if let Some(slot) = map.get("hosts") {
            let value = self.ev.force(slot.thunk, slot.span)?;
            let hosts = self.hosts_of(value, slot.thunk, slot.span, "the roster")?;
            self.hosts = hosts;
        }
        if let Some(slot) = map.get("groups") {
            let value = self.ev.force(slot.thunk, slot.span)?;
            self.read_groups(value, slot.span)?;
        }
        match map.get("users") {
            Some(slot) => {
                let users = self.ev.force(slot.thunk, slot.span)?;
                self.users(users, slot.span)
            }
            None => Err(Fault::new(Class::Roster, "this roster has no `users`").at(at)),
        }
    }

    fn read_groups(&mut self, value: Value, at: Span) -> R<()> {
        let Value::Attrs(map) = value else {
            return Err(Fault::new(Class::Roster, "`groups` must be an attribute set")
                .at(at)
                .expected("a set such as `{ ci.limits.maxJobs = 16; }`")
                .found(value.kind()));
        };
        if map.len() > MAX_GROUPS {
            return Err(Fault::new(Class::Limit, "the roster has too many groups")
                .at(at)
                .expected(format!("at most {MAX_GROUPS}"))
                .found(map.len().to_string()));
        }
        for (name, slot) in map.iter() {
            let map = self.listed_in(name, slot.thunk, slot.span).map_err(|fault| {
                let note = format!(
                    "nobody can say who shares the limits of the group {}, so the whole roster is refused",
                    quoted(name)
                );
                fault.note(note, None)
            })?;
            match self.group(name, &map, slot.span) {
                Ok(group) => {
                    self.sets.sound.insert(name.to_string(), group);
                }
                Err(fault) if self.ev.is_spent() => return Err(fault),
                Err(fault) => {
                    self.sets.broken.insert(name.to_string());
                    self.mistakes.push(Found::new(name, Costs::Group, fault));
                }
            }
        }
        Ok(())
    }

    /// Reads who is in the group by its own list. Returns its attributes.
    fn listed_in(&mut self, name: &str, group: ThunkId, at: Span) -> R<Rc<AttrMap>> {
        let map = match self.ev.force(group, at)? {
            Value::Attrs(map) => map,
            other => {
                let title = format!("the group {} must be an attribute set", quoted(name));
                return Err(Fault::new(Class::Roster, title)
                    .at(at)
                    .expected("a set such as `{ members = [ \"alice\" ]; limits.maxJobs = 16; }`")
                    .found(other.kind()));
            }
        };
        if let Some(slot) = map.get("members") {
            let value = self.ev.force(slot.thunk, slot.span)?;
            let expected = "a list of members' names such as `[ \"alice\" ]`";
            let list = List { attribute: "members", of: name, expected, most: MAX_MEMBERS };
            let members = lists::read(self.ev, value, slot.thunk, slot.span, &list)?;
            self.sets.members.insert(name.to_owned(), members);
        }
        let mistyped = |word: &str| {
            !GROUP_ATTRIBUTES.contains(&word)
                && did_you_mean(word, GROUP_ATTRIBUTES.iter().copied()) == Some("members")
        };
        match map.iter().find(|(word, _)| mistyped(word)) {
            Some((word, slot)) => Err(unknown_attribute(name, word, slot.span)),
            None => Ok(map),
        }
    }

    fn group(&mut self, name: &str, map: &AttrMap, at: Span) -> R<GroupEntry> {
        names::check(name).map_err(|found| {
            Fault::new(Class::Roster, format!("{} cannot be a group's name", quoted(name)))
                .at(at)
                .expected(names::expected())
                .found(found)
        })?;
        let mut entry = GroupEntry {
            group: Group {
                name: name.to_owned(),
                limits: MemberLimits::default(),
                settings: Layer::default(),
            },
            member_limits: MemberLimits::default(),
            hosts: Vec::new(),
        };
        for (attribute, slot) in map.iter() {
            let value = self.ev.force(slot.thunk, slot.span)?;
            match &**attribute {
                "members" => {}
                "limits" => entry.group.limits = self.limits(value, slot.span, Whose::Group)?,
                "memberLimits" => entry.member_limits = self.limits(value, slot.span, Whose::EachOf)?,
                "settings" => entry.group.settings = self.settings(value, slot.span, name, Level::Group)?,
                "hosts" => entry.hosts = self.hosts_of(value, slot.thunk, slot.span, name)?,
                other => return Err(unknown_attribute(name, other, slot.span)),
            }
        }
        Ok(entry)
    }

    /// Names of boxes, each of which the roster's own `hosts` has, if there is such a list.
    pub(super) fn hosts_of(&mut self, value: Value, id: ThunkId, at: Span, of: &str) -> R<Vec<String>> {
        let expected = "a list of boxes such as `[ \"box\" ]`";
        let list = List { attribute: "hosts", of, expected, most: MAX_HOSTS };
        let listed = lists::read(self.ev, value, id, at, &list)?;
        if listed.is_empty() {
            return Err(Fault::new(Class::Roster, format!("`hosts` of {} is empty", quoted(of)))
                .at(at)
                .expected("at least one box")
                .hint("leave `hosts` away for all boxes"));
        }
        for Named { name, at } in &listed {
            names::check_host(name).map_err(|expected| {
                Fault::new(Class::Roster, format!("{} cannot be the name of a box", quoted(name)))
                    .at(*at)
                    .expected(expected)
            })?;
            if !self.hosts.is_empty() && !self.hosts.contains(name) {
                let fault =
                    Fault::new(Class::Roster, format!("there is no box {} in `hosts`", quoted(name))).at(*at);
                return Err(match self.suggestions.near(name, self.hosts.iter().map(String::as_str)) {
                    Some(near) => fault.hint(format!("did you mean {}?", quoted(near))),
                    None => fault.expected("a name in the `hosts` of the roster"),
                });
            }
        }
        let names: BTreeSet<String> = listed.into_iter().map(|named| named.name).collect();
        Ok(names.into_iter().collect())
    }

    /// Puts members into their groups, once both are known. Returns the groups.
    pub(super) fn settle_groups(&mut self) -> Vec<GroupEntry> {
        let Groups { sound, broken, members: listed } = std::mem::take(&mut self.sets);
        let mut by_member: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (group, named) in &listed {
            for Named { name, .. } in named {
                by_member.entry(name).or_default().push(group);
            }
        }
        for (at, member) in self.members.values_mut().flatten() {
            let own = self.memberships.remove(&member.name).unwrap_or_default();
            match groups_of(
                &own,
                by_member.get(member.name.as_str()),
                (&sound, &broken),
                &mut self.suggestions,
                *at,
            ) {
                Ok(names) => {
                    let entries = names.iter().filter_map(|name| sound.get(name));
                    let defaults = entries
                        .map(|entry| entry.member_limits.clone())
                        .reduce(|one, other| one.smaller(&other))
                        .unwrap_or_default();
                    member.limits = member.limits.or(&defaults);
                    member.groups = names.into_iter().collect();
                }
                Err(fault) => self.mistakes.push(Found::new(&member.name, Costs::Member, fault)),
            }
        }
        let out: BTreeSet<&str> =
            self.mistakes.iter().filter(|found| found.left_out()).map(|found| found.name.as_str()).collect();
        for members in self.members.values_mut() {
            members.retain(|(_, member)| !out.contains(member.name.as_str()));
        }
        self.members.retain(|_, members| !members.is_empty());
        let known: BTreeSet<&str> =
            self.members.values().flatten().map(|(_, member)| member.name.as_str()).collect();
        let strangers: Vec<Found> = listed
            .iter()
            .flat_map(|(group, named)| named.iter().map(move |named| (group, named)))
            .filter(|(_, named)| !known.contains(named.name.as_str()) && !out.contains(named.name.as_str()))
            .take(MAX_STRANGERS)
            .map(|(group, named)| {
                let near = self.suggestions.near(&named.name, known.iter().copied());
                Found::new(group, Costs::NobodyElse, stranger(group, named, near))
            })
            .collect();
        self.mistakes.extend(strangers);
        sound.into_values().collect()
    }
}

fn unknown_attribute(group: &str, attribute: &str, at: Span) -> Fault {
    let title = format!("the group {} has an unknown attribute {}", quoted(group), quoted(attribute));
    let fault = Fault::new(Class::Roster, title)
        .at(at)
        .expected(one_of(GROUP_ATTRIBUTES))
        .found(quoted(attribute))
        .hint("docs/reference/roster.md lists what each attribute does");
    fault.did_you_mean(did_you_mean(attribute, GROUP_ATTRIBUTES.iter().copied()))
}

/// All groups of one member. `Err` if one of them does not count.
fn groups_of(
    own: &[Named],
    listed: Option<&Vec<&str>>,
    (sound, broken): (&BTreeMap<String, GroupEntry>, &BTreeSet<String>),
    suggestions: &mut Suggestions,
    at: Span,
) -> R<BTreeSet<String>> {
    let own = own.iter().map(|named| (named.name.as_str(), named.at));
    let listed = listed.into_iter().flatten().map(|name| (*name, at));
    let mut names = BTreeSet::new();
    for (name, at) in own.chain(listed) {
        if broken.contains(name) {
            return Err(Fault::new(Class::Roster, format!("the group {} has a mistake", quoted(name))).at(at));
        }
        if !sound.contains_key(name) {
            let fault = Fault::new(Class::Roster, format!("there is no group {}", quoted(name)))
                .at(at)
                .hint("define it: `{ users = { … }; groups.NAME.limits.maxJobs = 16; }`");
            return Err(fault.did_you_mean(suggestions.near(name, sound.keys().map(String::as_str))));
        }
        names.insert(name.to_owned());
    }
    Ok(names)
}

fn stranger(group: &str, Named { name, at }: &Named, near: Option<&str>) -> Fault {
    let title = format!("the group {} lists {}, who is not in this roster", quoted(group), quoted(name));
    let fault = Fault::new(Class::Roster, title).at(*at);
    match near {
        Some(near) => fault.hint(format!("did you mean {}?", quoted(near))),
        None => fault.expected("names of this roster").hint("remove former members from `members` too"),
    }
}
