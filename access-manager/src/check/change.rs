//! The effects of a change of the roster, as sentences that a reviewer can act on. A pure function of two states.
//!
//! Each sentence names one effect on the box. There is no sentence for a difference without an effect (comments, order,
//! the file of a key).

use std::collections::{BTreeMap, BTreeSet};

use ::roster::settings::Layer;
use ::roster::words::{all_of, quoted};
use ::roster::{Day, Key, LIMITS, Limit, Member, MemberLimits, Role, keys, person};

use super::words;
use crate::roster::Evaluated;

mod groups;
mod settings;
mod trust;

/// Keys of a new member that are listed one by one.
const MAX_KEYS_TOLD: usize = 4;

/// Whether somebody gets more, less, or something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    Grants,
    Revokes,
    Changes,
}

impl Effect {
    pub fn name(self) -> &'static str {
        match self {
            Effect::Grants => "grants",
            Effect::Revokes => "revokes",
            Effect::Changes => "changes",
        }
    }
}

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub effect: Effect,
    /// Stable, for programs: `adds-member`, `removes-key` …
    pub kind: &'static str,
    /// The member, or the group for the kinds that are about a whole group.
    pub member: String,
    /// One sentence without a subject ("grants `alice` 2 keys"), or with a member as its subject.
    pub text: String,
}

/// One state of the roster.
#[derive(Clone, Debug, Default)]
pub struct Side<'a> {
    /// `None` if there was no roster.
    pub evaluated: Option<&'a Evaluated>,
    /// Names whose entries have mistakes, so that nobody gets in by them.
    pub left_out: BTreeSet<&'a str>,
}

impl<'a> Side<'a> {
    pub fn of(evaluated: &'a Evaluated) -> Side<'a> {
        let left_out = evaluated.mistakes.iter().filter(|mistake| mistake.left_out);
        let left_out = left_out.map(|mistake| mistake.name.as_str()).collect();
        Side { evaluated: Some(evaluated), left_out }
    }

    /// Sorted by name.
    fn members(&self) -> &'a [Member] {
        self.evaluated.map_or(&[], |evaluated| &evaluated.members)
    }
}

/// The effects of replacing `before` by `after`, by member.
pub fn changes(before: &Side, after: &Side, today: Day) -> Vec<Change> {
    let old: BTreeMap<&str, &Member> = by_name(before);
    let new: BTreeMap<&str, &Member> = by_name(after);
    let (old_personal, new_personal) = (personal_keys(before), personal_keys(after));
    let vouched = trust::vouched(after);
    let mut told = Told::default();
    for name in old.keys().chain(new.keys()).copied().collect::<BTreeSet<&str>>() {
        match (old.get(name), new.get(name)) {
            (None, Some(member)) => {
                told.added(member, before, after, today);
                let keys = &new_personal[name];
                let left =
                    |other: &&&str| !new.contains_key(**other) && !old_personal[**other].is_disjoint(keys);
                if let Some(other) = old.keys().find(left) {
                    told.renamed(name, other);
                }
            }
            (Some(_), None) => {
                told.removed(name, after);
                told.voucher_removed(name, &vouched);
            }
            (Some(one), Some(other)) => {
                told.keys(one, other, (&old_personal[name], &new_personal[name]));
                told.role(name, one.role, other.role);
                told.limits(Whom::Member(name), &one.limits, &other.limits);
                told.member_settings(name, &one.settings, &other.settings);
                told.key_settings(name, &one.key_settings, &other.key_settings);
                told.expires(name, one.expires, other.expires, today);
                told.hosts((before, one), (after, other));
                told.vouchers(name, before, after);
            }
            (None, None) => {}
        }
    }
    told.groups(before, after);
    told.shares(&old, &new);
    told.0
}

fn by_name<'a>(side: &Side<'a>) -> BTreeMap<&'a str, &'a Member> {
    side.members().iter().map(|member| (member.name.as_str(), member)).collect()
}

fn parsed(member: &Member) -> Vec<Key> {
    member.keys.iter().filter_map(|line| keys::parse_line(line).ok()).collect()
}

/// See [`person::personal_keys`].
fn personal_keys<'a>(side: &Side<'a>) -> BTreeMap<&'a str, BTreeSet<String>> {
    let parsed: Vec<Vec<Key>> = side.members().iter().map(parsed).collect();
    let names = side.members().iter().map(|member| member.name.as_str());
    let members: Vec<(&str, &[Key])> = names.zip(parsed.iter().map(Vec::as_slice)).collect();
    person::personal_keys(&members)
}

/// Names who share with each other, each pair once.
fn shared(members: &BTreeMap<&str, &Member>) -> BTreeSet<(String, String)> {
    let lists = |one: &Member, other: &str| one.share_with.iter().any(|name| name == other);
    let mut pairs = BTreeSet::new();
    for (name, member) in members {
        for other in &member.share_with {
            let mutual = members.get(other.as_str()).is_some_and(|member| lists(member, name));
            if mutual && *name < other.as_str() {
                pairs.insert(((*name).to_owned(), other.clone()));
            }
        }
    }
    pairs
}

/// Whose limits are compared.
#[derive(Clone, Copy)]
enum Whom<'a> {
    Member(&'a str),
    Group(&'a str),
}

#[derive(Default)]
struct Told(Vec<Change>);

impl Told {
    fn say(&mut self, effect: Effect, kind: &'static str, member: &str, text: String) {
        self.0.push(Change { effect, kind, member: member.to_owned(), text });
    }

    fn added(&mut self, member: &Member, before: &Side, after: &Side, today: Day) {
        let name = quoted(&member.name);
        let (authorities, keys): (Vec<Key>, Vec<Key>) =
            parsed(member).into_iter().partition(|key| key.authority.is_some());
        let limits = match words::limits(&member.limits) {
            limits if limits.is_empty() => "with the limits of the box".to_owned(),
            limits => format!("up to {limits}"),
        };
        let count = words::count(keys.len(), "key", "keys");
        let mut text = format!("grants {name} {count}, {limits}");
        if member.role == Role::Maintainer {
            text.push_str(", as a maintainer");
        }
        match (member.expired(today), member.expires) {
            (Some(day), _) => text.push_str(&format!(", but has expired on {day}: nobody gets in")),
            (None, Some(day)) => text.push_str(&format!(", until {day}")),
            (None, None) => {}
        }
        text.push_str(&trust::conditions(member, after));
        if before.left_out.contains(member.name.as_str()) {
            text.push_str(" (the entry had a mistake before, which kept its owner out)");
        }
        let mut told: Vec<String> = keys.iter().take(MAX_KEYS_TOLD).map(words::key).collect();
        if let Some(more @ 1..) = keys.len().checked_sub(MAX_KEYS_TOLD) {
            told.push(format!("{more} more"));
        }
        if !told.is_empty() {
            text.push_str(&format!(": {}", told.join("; ")));
        }
        self.say(Effect::Grants, "adds-member", &member.name, text);
        self.member_settings(&member.name, &Layer::default(), &member.settings);
        self.key_settings(&member.name, &BTreeMap::new(), &member.key_settings);
        for key in &authorities {
            self.authority(&member.name, key);
        }
    }

    fn renamed(&mut self, name: &str, before: &str) {
        let text = format!(
            "{} has a key of {}, who is removed: to the box another name is another person, so claims and logs of {} \
             are not inherited",
            quoted(name),
            quoted(before),
            quoted(before)
        );
        self.say(Effect::Changes, "renames-member", name, text);
    }

    fn removed(&mut self, name: &str, after: &Side) {
        let who = quoted(name);
        if after.left_out.contains(name) {
            let text = format!(
                "leaves out {who} because of a mistake in the entry: ends their sessions and builds until it is corrected"
            );
            self.say(Effect::Revokes, "leaves-out-member", name, text);
        } else {
            let text = format!("removes {who}: ends their sessions and builds");
            self.say(Effect::Revokes, "removes-member", name, text);
        }
    }

    fn authority(&mut self, member: &str, key: &Key) {
        let text = format!(
            "adds a certificate authority for {}: its holder can let in anybody as {}, with {} in the certificate: {}",
            quoted(member),
            quoted(member),
            words::of_principals(&words::principals(key, member)),
            words::key(key)
        );
        self.say(Effect::Grants, "adds-authority", member, text);
    }

    fn keys(&mut self, one: &Member, other: &Member, personal: (&BTreeSet<String>, &BTreeSet<String>)) {
        let name = &other.name;
        let (old, new) = (by_key(one), by_key(other));
        let (before, after) = personal;
        if !person::is_same(before, after) {
            let who = quoted(name);
            let text = format!(
                "replaces all keys of {who}: the box takes {who} for another person, and claims, logs and shares are not \
                 inherited (to stay the same person, keep one of the old keys for one change)"
            );
            self.say(Effect::Changes, "replaces-keys", name, text);
        }
        for (id, keys) in &new {
            match old.get(id) {
                None => keys.iter().for_each(|key| self.key_added(name, key)),
                Some(before) => self.key_changed(name, before, keys),
            }
        }
        for keys in old.iter().filter(|(id, _)| !new.contains_key(id)).map(|(_, keys)| keys) {
            keys.iter().for_each(|key| self.key_removed(name, key));
        }
    }

    fn key_added(&mut self, name: &str, key: &Key) {
        if key.authority.is_some() {
            return self.authority(name, key);
        }
        let text = format!("adds a key to {}: {}", quoted(name), words::key(key));
        self.say(Effect::Grants, "adds-key", name, text);
    }

    fn key_removed(&mut self, name: &str, key: &Key) {
        let who = quoted(name);
        let (kind, text) = match &key.authority {
            Some(_) => {
                let text = format!(
                    "removes the certificate authority {} of {who}: sessions with its certificates end",
                    words::key(key)
                );
                ("removes-authority", text)
            }
            None => {
                ("removes-key", format!("removes the key {} of {who}: sessions with it end", words::key(key)))
            }
        };
        self.say(Effect::Revokes, kind, name, text);
    }

    /// The same key, perhaps under other conditions.
    fn key_changed(&mut self, name: &str, before: &[Key], after: &[Key]) {
        let terms = |keys: &[Key]| -> BTreeSet<String> { keys.iter().map(|key| terms(key, name)).collect() };
        let (old, new) = (terms(before), terms(after));
        let Some(key) = after.first().filter(|_| old != new) else { return };
        let said = |terms: BTreeSet<String>| terms.into_iter().collect::<Vec<_>>().join(", or ");
        let (what, kind) = match &key.authority {
            Some(_) => ("certificate authority", "changes-authority"),
            None => ("key", "changes-key"),
        };
        let text = format!(
            "changes when the {what} {} ({}) of {} counts: {} (before: {})",
            key.fingerprint(),
            key.kind(),
            quoted(name),
            said(new),
            said(old)
        );
        self.say(Effect::Changes, kind, name, text);
    }

    fn role(&mut self, name: &str, before: Role, after: Role) {
        if before == after {
            return;
        }
        let who = quoted(name);
        let (effect, text) = match after {
            Role::Maintainer => (
                Effect::Grants,
                format!(
                    "makes {who} a maintainer: sees what every member uses, sees and cancels every member's builds, \
                     revokes their tickets and ends their connections, drains the box, evicts paths, reads the audit, \
                     and gets in when the roster is too old for others"
                ),
            ),
            Role::Member => (Effect::Revokes, format!("makes {who} a member who is no maintainer")),
        };
        self.say(effect, "changes-role", name, text);
    }

    fn limits(&mut self, whom: Whom, before: &MemberLimits, after: &MemberLimits) {
        let value = |limits: &MemberLimits, limit: &Limit| {
            limits.values().find(|(other, _)| other.name == limit.name).map(|(_, value)| value)
        };
        let (name, kind, who, rest) = match whom {
            Whom::Member(name) => {
                (name, "changes-limit", format!("of {}", quoted(name)), "the limit of the box")
            }
            Whom::Group(name) => (
                name,
                "changes-group-limit",
                format!("that the members of the group {} share", quoted(name)),
                "the limits of each member",
            ),
        };
        for limit in LIMITS {
            let what = quoted(limit.name);
            let (effect, text) = match (value(before, limit), value(after, limit)) {
                (Some(one), Some(other)) if one != other => {
                    let (effect, verb) =
                        if other > one { (Effect::Grants, "raises") } else { (Effect::Revokes, "lowers") };
                    (effect, format!("{verb} {what} {who} from {one} to {other}"))
                }
                // It can be more than the box's, which the repository does not know.
                (None, Some(value)) if limit.replaces && matches!(whom, Whom::Member(_)) => {
                    (Effect::Grants, format!("sets {what} {who} to {value}, in place of {rest}"))
                }
                (None, Some(value)) => {
                    (Effect::Revokes, format!("limits {what} {who} to {value} (before: {rest} only)"))
                }
                (Some(value), None) => (
                    Effect::Grants,
                    format!(
                        "removes the limit {what} {who}, which was {value}: {rest} {}",
                        if matches!(whom, Whom::Group(_)) { "remain" } else { "remains" }
                    ),
                ),
                _ => continue,
            };
            self.say(effect, kind, name, text);
        }
    }

    fn expires(&mut self, name: &str, before: Option<Day>, after: Option<Day>, today: Day) {
        if before == after {
            return;
        }
        let who = quoted(name);
        let lets_in = |day: Option<Day>| day.is_none_or(|day| day.lets_in(today));
        let until = after.map_or("without an end".to_owned(), |day| format!("until {day}"));
        let (effect, text) = match (before, after) {
            _ if !lets_in(before) && lets_in(after) => {
                (Effect::Grants, format!("lets {who} in again, {until}"))
            }
            (_, Some(day)) if lets_in(before) && !lets_in(after) => (
                Effect::Revokes,
                format!("ends the access of {who}, since {day} has passed: ends their sessions and builds"),
            ),
            (Some(_), None) => (Effect::Grants, format!("the access of {who} no longer ends")),
            (None, Some(day)) => (Effect::Revokes, format!("the access of {who} now ends after {day}")),
            (Some(one), Some(other)) if other > one => {
                (Effect::Grants, format!("extends the access of {who} from {one} to {other}"))
            }
            (Some(one), Some(other)) => {
                (Effect::Revokes, format!("shortens the access of {who} from {one} to {other}"))
            }
            (None, None) => return,
        };
        self.say(effect, "changes-expiry", name, text);
    }

    fn shares(&mut self, old: &BTreeMap<&str, &Member>, new: &BTreeMap<&str, &Member>) {
        let (before, after) = (shared(old), shared(new));
        for (one, other) in after.difference(&before) {
            let text =
                format!("{} now share claims: each sees the paths of the other", all_of(&[one, other]));
            self.say(Effect::Grants, "shares", one, text);
        }
        for (one, other) in before.difference(&after) {
            let text = format!("{} no longer share claims", all_of(&[one, other]));
            self.say(Effect::Revokes, "stops-sharing", one, text);
        }
    }
}

/// The keys of a member; a key and an authority with the same bytes are two. One authority may have several lines.
fn by_key(member: &Member) -> BTreeMap<(String, bool), Vec<Key>> {
    let mut keys: BTreeMap<(String, bool), Vec<Key>> = BTreeMap::new();
    for key in parsed(member) {
        keys.entry((key.key.clone(), key.authority.is_some())).or_default().push(key);
    }
    keys
}

/// Under which conditions a key of `member` counts.
fn terms(key: &Key, member: &str) -> String {
    let conditions = match words::conditions(key) {
        conditions if conditions.is_empty() => "always".to_owned(),
        conditions => conditions,
    };
    match &key.authority {
        Some(_) => {
            format!("{conditions}, with {}", words::of_principals(&words::principals(key, member)))
        }
        None => conditions,
    }
}

#[cfg(test)]
#[path = "change_test.rs"]
mod change_test;
