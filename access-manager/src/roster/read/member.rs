//! The entry of one member, in each shape.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ::roster::settings::{Layer, Level};
use ::roster::{MAX_GROUPS_OF_MEMBER, MAX_MEMBERS, Member, MemberLimits, Role, name as names};

use super::attributes::Whose;
use super::keys::{Accept, Keys};
use super::{R, Reader, check_name, no_keys, too_many_members, while_reading};
use crate::diag::{Class, Fault, Span, did_you_mean, one_of, quoted};
use crate::nix::{AttrMap, ThunkId, Value};
use crate::roster::evaluated::About;
use crate::roster::names::{self as lists, List, Named};
use crate::roster::{inspect, modules, sharing};
use crate::ssh_keys;

const ATTRIBUTES: &[&str] = &[
    "keys",
    "role",
    "limits",
    "settings",
    "keySettings",
    "groups",
    "hosts",
    "shareWith",
    "vouchedBy",
    "expires",
];

/// Names in one `vouchedBy`. One is the rule; a community may ask for two or three.
const MAX_VOUCHERS: usize = 20;

impl Reader<'_, '_> {
    /// `name` is what the member would be called in a hint; empty in a list, where the name is not known yet.
    pub(super) fn attributes(&mut self, id: ThunkId, at: Span, name: &str) -> R<Rc<AttrMap>> {
        let value = self.ev.force(id, at).map_err(|f| while_reading(f, name, at))?;
        match value {
            Value::Attrs(map) => Ok(map),
            other => {
                let who = if name.is_empty() {
                    "each member of this list".into()
                } else {
                    format!("the member {}", quoted(name))
                };
                let fault = Fault::new(Class::Roster, format!("{who} must be an attribute set"))
                    .at(at)
                    .expected("a set such as `{ keys = ./keys/alice.pub; }`")
                    .found(other.kind());
                Err(match other {
                    Value::Path(_) | Value::Str(_) | Value::List(_) if !name.is_empty() => {
                        fault.hint(format!("write `{name}.keys = …;`"))
                    }
                    _ => fault,
                })
            }
        }
    }

    /// One entry of a list of users: the name is an attribute, which goes to `known_as` as soon as it is known.
    pub(super) fn listed(&mut self, id: ThunkId, known_as: &mut String) -> R<()> {
        let at = self.ev.span(id);
        let map = self.attributes(id, at, "")?;
        let Some(slot) = map.get("name").copied() else {
            return Err(Fault::new(Class::Roster, "this member has no `name`")
                .at(at)
                .expected("`name = \"alice\";` in each element of a list of users")
                .found(one_of(&map.keys().collect::<Vec<_>>())));
        };
        match self.ev.force(slot.thunk, slot.span)? {
            Value::Str(name) => {
                let rest =
                    map.iter().filter(|(k, _)| &***k != "name").map(|(k, v)| (k.clone(), *v)).collect();
                let at = self.ev.blame(slot.thunk, slot.span);
                if names::check(&name).is_ok() {
                    *known_as = name.to_string();
                }
                self.member(&name, at, &rest)
            }
            other => Err(Fault::new(Class::Roster, "a member's `name` must be a string")
                .at(slot.span)
                .expected("a string")
                .found(other.kind())),
        }
    }

    pub(super) fn module(&mut self, map: Rc<AttrMap>, at: Span) -> R<()> {
        for (name, user) in modules::users(self.ev, map, at, &mut self.groups)? {
            let read = user.and_then(|user| self.user(user));
            self.or_left_out(&name, read)?;
        }
        Ok(())
    }

    /// One user of a NixOS module.
    fn user(&mut self, user: modules::User) -> R<()> {
        let mut keys = Keys::default();
        for id in &user.keys {
            self.key_value(*id, user.span, &mut keys, &user.name, Accept::Text)?;
        }
        for id in &user.key_files {
            self.key_value(*id, user.span, &mut keys, &user.name, Accept::Path)?;
        }
        if keys.keys.is_empty() {
            // Modules define users for services too; having no key is their normal state.
            let text = format!("{} has no authorized keys and is left out", quoted(&user.name));
            self.warnings.push(text.into());
            return Ok(());
        }
        let member = Member { keys: keys.lines(), ..nobody(&user.name) };
        self.accept(member, About { key_sources: keys.sources, ..About::default() }, user.span)
    }

    pub(super) fn member(&mut self, name: &str, at: Span, attributes: &AttrMap) -> R<()> {
        check_name(name, at)?;
        let mut member = nobody(name);
        let mut about = About::default();
        let mut has_keys = false;
        if ["groups", "hosts"].contains(&name) && !attributes.contains_key("keys") {
            let hint = "with groups or hosts, members are in `users`: `{ users = { … }; groups = { … }; }`";
            return Err(no_keys(name, at).hint(hint));
        }
        for (attribute, slot) in attributes {
            let value = self.ev.force(slot.thunk, slot.span).map_err(|f| while_reading(f, name, at))?;
            match &**attribute {
                "keys" => {
                    has_keys = true;
                    let mut keys = Keys::default();
                    self.keys(slot.thunk, value, slot.span, &mut keys, name)
                        .map_err(|f| while_reading(f, name, at))?;
                    member.keys = keys.lines();
                    about.key_sources = keys.sources;
                    if member.keys.is_empty() {
                        return Err(no_keys(name, slot.span).found("no key"));
                    }
                }
                "role" => member.role = self.role(value, slot.span, slot.thunk)?,
                "limits" => member.limits = self.limits(value, slot.span, Whose::Member)?,
                "keySettings" => member.key_settings = self.key_settings(value, slot.span, name)?,
                "settings" => member.settings = self.settings(value, slot.span, name, Level::Member)?,
                "groups" => {
                    let list = List {
                        attribute,
                        of: name,
                        expected: "a list of groups such as `[ \"ci\" ]`",
                        most: MAX_GROUPS_OF_MEMBER,
                    };
                    let groups = lists::read(self.ev, value, slot.thunk, slot.span, &list)?;
                    self.memberships.insert(name.to_owned(), groups);
                }
                "hosts" => about.hosts = self.hosts_of(value, slot.thunk, slot.span, name)?,
                "vouchedBy" => about.vouched_by = self.vouched_by(value, slot.thunk, slot.span, name)?,
                "shareWith" => {
                    let shares = sharing::read(self.ev, value, slot.thunk, slot.span, name)?;
                    self.shares.insert(name.to_owned(), shares);
                }
                "expires" => member.expires = self.expires(value, slot.span, slot.thunk)?,
                // Older community lists have it; dropping it silently would look like a grant.
                "trusted" => self.warn(
                    slot.span,
                    format!("`trusted` of {} is ignored: no member has to be trusted here", quoted(name)),
                ),
                other => {
                    let fault = Fault::new(
                        Class::Roster,
                        format!("{} has an unknown attribute {}", quoted(name), quoted(other)),
                    )
                    .at(slot.span)
                    .expected(one_of(ATTRIBUTES))
                    .found(quoted(other))
                    .hint(match inspect::RIGHTS.contains(&other) {
                        true => "leave it away: members have no account on the box, and nobody is root by the roster",
                        false => "docs/reference/roster.md lists what each attribute does",
                    });
                    return Err(fault.did_you_mean(did_you_mean(other, ATTRIBUTES.iter().copied())));
                }
            }
        }
        if !has_keys {
            let fault = no_keys(name, at).found(match attributes.len() {
                0 => "an empty set".to_owned(),
                _ => format!("only {}", one_of(&attributes.keys().collect::<Vec<_>>())),
            });
            return Err(fault);
        }
        let known = match member.key_settings.is_empty() {
            true => BTreeSet::new(),
            false => fingerprints(&member),
        };
        if let Some(stray) = member.key_settings.keys().find(|of| !known.contains(*of)) {
            let title = format!("{} has no key {}", quoted(name), quoted(stray));
            let span = attributes.get("keySettings").map_or(at, |slot| slot.span);
            let known: Vec<String> = known.into_iter().collect();
            return Err(Fault::new(Class::Roster, title).at(span).expected(one_of(&known)));
        }
        about.own_limits = member.limits.clone();
        self.accept(member, about, at)
    }

    fn accept(&mut self, member: Member, about: About, at: Span) -> R<()> {
        check_name(&member.name, at)?;
        if self.members.len() >= MAX_MEMBERS {
            return Err(too_many_members().at(at));
        }
        self.about.insert(member.name.clone(), about);
        self.members.entry(member.name.to_lowercase()).or_default().push((at, member));
        Ok(())
    }

    /// `vouchedBy = "alice";` or a list of names. Whether these are members is a question of the check: a member whose
    /// voucher has left does not leave with them.
    fn vouched_by(&mut self, value: Value, id: ThunkId, at: Span, member: &str) -> R<Vec<String>> {
        let named = match value {
            Value::Str(name) => vec![Named { name: name.to_string(), at: self.ev.blame(id, at) }],
            other => {
                let expected = "a member's name, or a list such as `[ \"alice\" \"bob\" ]`";
                let list = List { attribute: "vouchedBy", of: member, expected, most: MAX_VOUCHERS };
                lists::read(self.ev, other, id, at, &list)?
            }
        };
        for Named { name, at } in &named {
            check_name(name, *at)?;
            if name == member {
                return Err(Fault::new(Class::Roster, format!("{} vouches for itself", quoted(member)))
                    .at(*at)
                    .expected("names of other members"));
            }
        }
        let names: BTreeSet<String> = named.into_iter().map(|named| named.name).collect();
        Ok(names.into_iter().collect())
    }
}

/// Of all keys and authorities.
fn fingerprints(member: &Member) -> BTreeSet<String> {
    let keys = member.keys.iter().filter_map(|line| ssh_keys::parse_line(line).ok());
    keys.map(|key| key.fingerprint()).collect()
}

/// A member of this name, so far without anything.
fn nobody(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        keys: Vec::new(),
        role: Role::Member,
        limits: MemberLimits::default(),
        settings: Layer::default(),
        key_settings: BTreeMap::new(),
        groups: Vec::new(),
        share_with: Vec::new(),
        expires: None,
    }
}
