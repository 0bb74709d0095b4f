//! Sentences about groups: who shares limits with whom.

use std::collections::{BTreeMap, BTreeSet};

use ::roster::MemberLimits;
use ::roster::settings::Layer;
use ::roster::words::{all_of, quoted};

use super::{Effect, Side, Told, Whom, words};
use crate::roster::GroupEntry;

/// A group and its members, by the names of both.
type Groups<'a> = BTreeMap<&'a str, (&'a GroupEntry, BTreeSet<&'a str>)>;

fn groups<'a>(side: &Side<'a>) -> Groups<'a> {
    let entries = side.evaluated.map_or(&[][..], |evaluated| &evaluated.groups);
    let mut groups: Groups<'a> =
        entries.iter().map(|entry| (entry.group.name.as_str(), (entry, BTreeSet::new()))).collect();
    for member in side.members() {
        for group in &member.groups {
            if let Some((_, members)) = groups.get_mut(group.as_str()) {
                members.insert(&member.name);
            }
        }
    }
    groups
}

impl Told {
    pub(super) fn groups(&mut self, before: &Side, after: &Side) {
        let (old, new) = (groups(before), groups(after));
        let after: BTreeSet<&str> = after.members().iter().map(|member| member.name.as_str()).collect();
        for (name, (entry, members)) in &new {
            let none = (None, BTreeSet::new());
            let (previous, were) =
                old.get(name).map_or(none, |(entry, members)| (Some(*entry), members.clone()));
            match previous {
                None => {
                    self.group_added(entry, members.len());
                    self.group_settings(name, &Layer::default(), &entry.group.settings);
                }
                Some(previous) => {
                    self.limits(Whom::Group(name), &previous.group.limits, &entry.group.limits);
                    self.group_settings(name, &previous.group.settings, &entry.group.settings);
                }
            }
            for member in members.difference(&were) {
                self.joined(member, entry, members.len() - 1);
            }
            // Who leaves the roster leaves the group with it.
            for member in were.difference(members).filter(|member| after.contains(*member)) {
                self.left(member, entry);
            }
        }
        for (name, (entry, members)) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
            let still = members.iter().filter(|member| after.contains(*member)).count();
            let text = format!(
                "removes the group {}: {}",
                quoted(name),
                match (still, shared(&entry.group.limits)) {
                    (0, _) => "it had no members who stay".to_owned(),
                    (count, None) => format!("it shared no limits among {}", members_of(count)),
                    (count, Some(what)) => format!("{} no longer share {what}", members_of(count)),
                }
            );
            self.say(Effect::Changes, "removes-group", name, text);
            if still > 0 {
                self.group_settings(name, &entry.group.settings, &Layer::default());
            }
        }
    }

    fn group_added(&mut self, entry: &GroupEntry, members: usize) {
        let name = &entry.group.name;
        let mut text = format!(
            "adds the group {}: {} {}",
            quoted(name),
            match members {
                0 => "nobody is in it yet, and its members would".to_owned(),
                count => format!("{} of it", members_of(count)),
            },
            match shared(&entry.group.limits) {
                Some(what) =>
                    format!("{} {what}", if members == 1 { "has for all its members" } else { "share" }),
                None => "share no limits".into(),
            }
        );
        let each = words::limits(&entry.member_limits);
        if !each.is_empty() {
            text.push_str(&format!("; each without limits of their own gets {each}"));
        }
        self.say(Effect::Changes, "adds-group", name, text);
    }

    fn joined(&mut self, member: &str, entry: &GroupEntry, others: usize) {
        let with = match others {
            0 => "with nobody yet".to_owned(),
            count => format!("with {}", words::count(count, "other", "others")),
        };
        let text = format!(
            "adds {} to the group {}: {}",
            quoted(member),
            quoted(&entry.group.name),
            match shared(&entry.group.limits) {
                Some(what) => format!("shares {what} {with}"),
                None => format!("shares no limits {with}"),
            }
        );
        let text = format!("{text}{}", settings_of(entry, "count"));
        self.say(Effect::Changes, "joins-group", member, text);
    }

    fn left(&mut self, member: &str, entry: &GroupEntry) {
        let text = format!(
            "takes {} out of the group {}{}",
            quoted(member),
            quoted(&entry.group.name),
            shared(&entry.group.limits).map(|what| format!(": no longer shares {what}")).unwrap_or_default()
        );
        let text = format!("{text}{}", settings_of(entry, "no longer count"));
        self.say(Effect::Changes, "leaves-group", member, text);
    }
}

/// The limits that members have together, as words; `None` if there are none.
fn shared(limits: &MemberLimits) -> Option<String> {
    let words = words::shared_limits(limits);
    (!words.is_empty()).then_some(words)
}

/// The settings that come or go with the group; empty if it has none.
fn settings_of(entry: &GroupEntry, verb: &str) -> String {
    let names: Vec<&str> = entry.group.settings.iter().map(|(setting, _)| setting.name).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!("; its settings {verb}: {}", all_of(&names)),
    }
}

fn members_of(count: usize) -> String {
    words::count(count, "member", "members")
}
