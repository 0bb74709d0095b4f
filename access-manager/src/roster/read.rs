//! From the value of `users.nix` to members, and to the mistakes of those who are left out.
//!
//! A member whose own lines are wrong is left out, and the others are not ([`Mistake`]). Refused whole is only what leaves
//! nobody to tell apart: no Nix, no set or list of users, an evaluation that has spent its limits, nobody left.

use std::collections::BTreeMap;
use std::rc::Rc;

use ::roster::{Day, LIMITS, Limit, MAX_KEYS, MAX_MEMBERS, name as names};

use super::evaluated::{Evaluated, Mistake, Warning};
use super::inspect::{self, Groups, Inspected};
use super::{Member, MemberLimits, Role, modules, sharing, twins};
use crate::diag::{Class, Diagnostic, Fault, Span, did_you_mean, one_of, quoted};
use crate::nix::{self, AttrMap, Evaluator, Limits, ThunkId, Value};
use crate::source::Source;
use crate::ssh_keys::{self, Key};

type R<T> = Result<T, Fault>;

/// Longest part of a name that is no member's name in a message.
const MAX_SHOWN: usize = 80;

const ATTRIBUTES: &[&str] = &["keys", "role", "limits", "shareWith", "expires"];

/// Evaluates `file` of `source` (a path from the top of the repository) into a roster.
pub fn evaluate<S: Source + Send>(
    source: S,
    file: &str,
    limits: Limits,
) -> Result<Evaluated, Box<Diagnostic>> {
    nix::with_evaluator(source, limits, |ev| Ok(Reader::read(ev, file, None)?.0))
}

/// As [`evaluate`]; and looks at what has no effect on the roster, but concerns maintainers: order, key files,
/// groups. `more_key_files` are files that nobody may have named, besides those in the folders of key files.
pub fn inspect<S: Source + Send>(
    source: S,
    file: &str,
    limits: Limits,
    more_key_files: &[String],
) -> Result<(Evaluated, Inspected), Box<Diagnostic>> {
    nix::with_evaluator(source, limits, |ev| {
        let (evaluated, inspected) = Reader::read(ev, file, Some(Groups::default()))?;
        let unused = inspect::unused_key_files(ev, more_key_files);
        Ok((evaluated, Inspected { unused, ..inspected }))
    })
}

/// A [`Mistake`] whose places are not resolved yet.
struct Found {
    name: String,
    left_out: bool,
    fault: Fault,
}

impl Found {
    fn resolve(self, ev: &Evaluator) -> Mistake {
        let Found { name, left_out, fault } = self;
        // A name with a mistake may be anything.
        let who: String = name.chars().take(MAX_SHOWN).map(printable::character).collect();
        let fault = match left_out {
            true => fault.note(
                format!("{who} is left out until this is corrected; the other members are not affected"),
                None,
            ),
            false => fault.note(format!("{who} can log in without it"), None),
        };
        Mistake { name, left_out, diagnostic: Box::new(ev.resolve(fault)) }
    }
}

struct Reader<'a, 's> {
    ev: &'a mut Evaluator<'s>,
    /// By lower-case name: two names that differ in letter case only would be confused by people and file systems. More
    /// than one of a name is settled when all are known.
    members: BTreeMap<String, Vec<(Span, Member)>>,
    mistakes: Vec<Found>,
    /// Who shares with whom, by name; the other may come later in the file.
    shares: BTreeMap<String, Vec<sharing::Share>>,
    warnings: Vec<Warning>,
    /// Groups of a module's users, where somebody asks for them.
    groups: Option<Groups>,
}

impl<'a, 's> Reader<'a, 's> {
    fn read(ev: &'a mut Evaluator<'s>, file: &str, groups: Option<Groups>) -> R<(Evaluated, Inspected)> {
        let value = ev.import_file(file)?;
        let value = ev.call_module(value)?;
        let mut reader = Reader {
            ev,
            members: BTreeMap::new(),
            mistakes: Vec::new(),
            shares: BTreeMap::new(),
            warnings: Vec::new(),
            groups,
        };
        reader.top(value)?;
        reader.leave_out_namesakes();
        reader.settle_shares();
        let places = match reader.groups {
            Some(_) => inspect::places(reader.ev, reader.members.values().flatten()),
            None => Vec::new(),
        };
        let members: Vec<Member> = reader.members.into_values().flatten().map(|(_, member)| member).collect();
        if members.is_empty() {
            if let Some(position) = reader.mistakes.iter().position(|mistake| mistake.left_out) {
                return Err(reader.mistakes.swap_remove(position).fault);
            }
            reader.warnings.push("the roster has no members: nobody can log in".to_owned().into());
        }
        reader.warnings.extend(twins::warnings(&members).into_iter().map(Warning::from));
        let mistakes = reader.mistakes.into_iter().map(|mistake| mistake.resolve(reader.ev)).collect();
        let inspected = Inspected { places, groups: reader.groups.unwrap_or_default(), unused: Vec::new() };
        Ok((Evaluated { members, mistakes, warnings: reader.warnings }, inspected))
    }
}

impl Reader<'_, '_> {
    fn top(&mut self, value: Value) -> R<()> {
        let nowhere = Span { file: 0, start: 0, end: 0 };
        match value {
            Value::List(items) => {
                for (number, item) in items.iter().enumerate() {
                    // Known better once its `name` is.
                    let mut name = format!("entry {}", number + 1);
                    let read = self.listed(*item, &mut name);
                    self.or_left_out(&name, read)?;
                }
                Ok(())
            }
            Value::Attrs(map) if modules::is_module(self.ev, &map, nowhere)? => self.module(map, nowhere),
            Value::Attrs(map) => {
                for (name, slot) in map.iter() {
                    let read = self
                        .attributes(slot.thunk, slot.span, name)
                        .and_then(|attributes| self.member(name, slot.span, &attributes));
                    self.or_left_out(name, read)?;
                }
                Ok(())
            }
            other => Err(Fault::new(Class::Roster, "the file is not a roster")
                .expected("a set of users, `{ alice.keys = ./keys/alice.pub; }`, or a list of them")
                .found(other.kind())),
        }
    }

    /// Goes on without this member, unless what went wrong is everybody's: nothing can be evaluated any more, or there
    /// are too many members.
    fn or_left_out(&mut self, name: &str, read: R<()>) -> R<()> {
        let Err(fault) = read else { return Ok(()) };
        if self.ev.is_spent() {
            return Err(fault);
        }
        self.mistakes.push(Found { name: name.to_owned(), left_out: true, fault });
        if self.mistakes.len() + self.members.len() > MAX_MEMBERS {
            return Err(too_many_members());
        }
        Ok(())
    }

    /// Nobody can say which of two members of one name is meant, so neither gets in.
    fn leave_out_namesakes(&mut self) {
        for namesakes in self.members.values_mut().filter(|members| members.len() > 1) {
            let first = namesakes[0].0;
            let found: Vec<String> = namesakes.iter().map(|(_, member)| quoted(&member.name)).collect();
            for (number, (at, member)) in namesakes.drain(..).enumerate() {
                let fault = Fault::new(
                    Class::Roster,
                    format!("there are two members named {}", quoted(&member.name)),
                )
                .at(at)
                .expected("names that differ in more than letter case")
                .found(found.join(" and "));
                let fault =
                    if number == 0 { fault } else { fault.note("the first one is here", Some(first)) };
                self.mistakes.push(Found { name: member.name, left_out: true, fault });
            }
        }
        self.members.retain(|_, members| !members.is_empty());
    }

    fn settle_shares(&mut self) {
        let members = self.members.values_mut().flatten().map(|(_, member)| member);
        let (faults, warnings) = sharing::settle(members.collect(), &self.shares);
        self.mistakes.extend(faults.into_iter().map(|(name, fault)| Found { name, left_out: false, fault }));
        self.warnings.extend(warnings.into_iter().map(Warning::from));
    }

    fn warn(&mut self, at: Span, text: String) {
        self.warnings.push(Warning { place: self.ev.place(at), text });
    }

    /// `name` is what the member would be called in a hint; empty in a list, where the name is not known yet.
    fn attributes(&mut self, id: ThunkId, at: Span, name: &str) -> R<Rc<AttrMap>> {
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
    fn listed(&mut self, id: ThunkId, known_as: &mut String) -> R<()> {
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

    fn module(&mut self, map: Rc<AttrMap>, at: Span) -> R<()> {
        for (name, user) in modules::users(self.ev, map, at, &mut self.groups)? {
            let read = user.and_then(|user| self.user(user));
            self.or_left_out(&name, read)?;
        }
        Ok(())
    }

    /// One user of a NixOS module.
    fn user(&mut self, user: modules::User) -> R<()> {
        let mut keys = Vec::new();
        for id in &user.keys {
            self.key_value(*id, user.span, &mut keys, &user.name, Accept::Text)?;
        }
        for id in &user.key_files {
            self.key_value(*id, user.span, &mut keys, &user.name, Accept::Path)?;
        }
        if keys.is_empty() {
            // Modules define users for services too; having no key is their normal state.
            let text = format!("{} has no authorized keys and is left out", quoted(&user.name));
            self.warnings.push(text.into());
            return Ok(());
        }
        let member = Member { keys: lines(&keys), ..nobody(&user.name) };
        self.accept(member, user.span)
    }

    fn member(&mut self, name: &str, at: Span, attributes: &AttrMap) -> R<()> {
        check_name(name, at)?;
        let mut member = nobody(name);
        let mut has_keys = false;
        for (attribute, slot) in attributes {
            let value = self.ev.force(slot.thunk, slot.span).map_err(|f| while_reading(f, name, at))?;
            match &**attribute {
                "keys" => {
                    has_keys = true;
                    let mut keys = Vec::new();
                    self.keys(slot.thunk, value, slot.span, &mut keys, name)
                        .map_err(|f| while_reading(f, name, at))?;
                    member.keys = lines(&keys);
                    if member.keys.is_empty() {
                        return Err(no_keys(name, slot.span).found("no key"));
                    }
                }
                "role" => member.role = self.role(value, slot.span, slot.thunk)?,
                "limits" => member.limits = self.limits(value, slot.span, name)?,
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
                    .found(quoted(other));
                    return Err(match did_you_mean(other, ATTRIBUTES.iter().copied()) {
                        Some(near) => fault.hint(format!("did you mean {}?", quoted(near))),
                        None if inspect::RIGHTS.contains(&other) => {
                            fault.hint("leave it away: members have no account on the box, and nobody is root by the roster")
                        }
                        None => fault.hint("docs/reference/roster.md lists what each attribute does"),
                    });
                }
            }
        }
        if !has_keys {
            return Err(no_keys(name, at).found(match attributes.len() {
                0 => "an empty set".to_owned(),
                _ => format!("only {}", one_of(&attributes.keys().collect::<Vec<_>>())),
            }));
        }
        self.accept(member, at)
    }

    fn accept(&mut self, member: Member, at: Span) -> R<()> {
        check_name(&member.name, at)?;
        if self.members.len() >= MAX_MEMBERS {
            return Err(too_many_members().at(at));
        }
        self.members.entry(member.name.to_lowercase()).or_default().push((at, member));
        Ok(())
    }

    // --- keys --------------------------------------------------------------------------------------------------

    fn keys(&mut self, id: ThunkId, value: Value, at: Span, out: &mut Vec<Key>, member: &str) -> R<()> {
        match value {
            Value::List(items) => {
                items.iter().try_for_each(|item| self.key_value(*item, at, out, member, Accept::Both))
            }
            _ => self.key_value(id, at, out, member, Accept::Both),
        }
    }

    fn key_value(
        &mut self,
        id: ThunkId,
        at: Span,
        out: &mut Vec<Key>,
        member: &str,
        accept: Accept,
    ) -> R<()> {
        let value = self.ev.force(id, at)?;
        let blame = self.ev.blame(id, at);
        match (&value, accept) {
            (Value::Path(path), Accept::Both | Accept::Path) => {
                let (file, text) = self.ev.read_for_positions(path).map_err(|f| f.at(blame))?;
                self.key_text(&text, Where::File(file), blame, out, member)?;
                if !text.lines().any(|l| !l.trim().is_empty() && !l.trim().starts_with('#')) {
                    return Err(Fault::new(
                        Class::Key,
                        format!("the key file {} holds no key", quoted(path)),
                    )
                    .at(blame)
                    .expected("at least one line such as `ssh-ed25519 AAAA… name`")
                    .found(if text.is_empty() {
                        "an empty file"
                    } else {
                        "only comments and blank lines"
                    }));
                }
                Ok(())
            }
            (Value::Str(text), Accept::Both | Accept::Text) => {
                if text.trim().is_empty() {
                    return Err(no_keys(member, blame).found("an empty string"));
                }
                self.key_text(text, Where::Inline, blame, out, member)
            }
            (other, _) => {
                Err(Fault::new(Class::Roster, format!("a key of {} has the wrong type", quoted(member)))
                    .at(blame)
                    .expected(match accept {
                        Accept::Both => "a path to a .pub file, a string with the key, or a list of these",
                        Accept::Path => "a path to a .pub file",
                        Accept::Text => "a string with the key",
                    })
                    .found(other.kind()))
            }
        }
    }

    fn key_text(&mut self, text: &str, place: Where, at: Span, out: &mut Vec<Key>, member: &str) -> R<()> {
        for (offset, key) in ssh_keys::parse(text) {
            let span = match place {
                Where::File(file) => {
                    let end = text[offset..].find('\n').map_or(text.len(), |i| offset + i);
                    Span { file, start: offset as u32, end: end as u32 }
                }
                Where::Inline => at,
            };
            let key = match key {
                Ok(key) => key,
                Err(error) => {
                    let (title, expected, hint) = error.explain();
                    let fault = Fault::new(Class::Key, title).at(span).expected(expected).hint(hint);
                    let fault = if error == ssh_keys::KeyError::PrivateKey { fault.secret() } else { fault };
                    return Err(match place {
                        Where::File(_) => fault.note(format!("it is a key of {}", quoted(member)), Some(at)),
                        Where::Inline => fault,
                    });
                }
            };
            if out.len() >= MAX_KEYS {
                return Err(Fault::new(Class::Limit, format!("{} has too many keys", quoted(member)))
                    .at(span)
                    .expected(format!("at most {MAX_KEYS}")));
            }
            if out.iter().any(|other| Key { comment: key.comment.clone(), ..other.clone() } == key) {
                self.warn(span, format!("{} lists the same key twice", quoted(member)));
            } else {
                out.push(key);
            }
        }
        Ok(())
    }

    // --- the other attributes ----------------------------------------------------------------------------------

    fn role(&mut self, value: Value, at: Span, id: ThunkId) -> R<Role> {
        let blame = self.ev.blame(id, at);
        match &value {
            Value::Str(s) if &**s == "member" => Ok(Role::Member),
            Value::Str(s) if &**s == "maintainer" => Ok(Role::Maintainer),
            other => Err(Fault::new(Class::Roster, "there is no such role")
                .at(blame)
                .expected("\"member\" or \"maintainer\"")
                .found(match other {
                    Value::Str(s) => quoted(s),
                    other => other.kind().to_owned(),
                })),
        }
    }

    fn limits(&mut self, value: Value, at: Span, member: &str) -> R<MemberLimits> {
        let Value::Attrs(map) = value else {
            return Err(Fault::new(Class::Roster, "`limits` must be an attribute set")
                .at(at)
                .expected("a set such as `{ maxJobs = 2; }`")
                .found(value.kind()));
        };
        let mut limits = MemberLimits::default();
        for (name, slot) in map.iter() {
            let Some(Limit { smallest, largest, unit, enforced, .. }) =
                LIMITS.iter().find(|l| l.name == &**name)
            else {
                let names: Vec<&str> = LIMITS.iter().map(|l| l.name).collect();
                // `max-jobs`, as roster.json and the agent's configuration have it, is what people try first.
                let camel = name.replace('-', "");
                let fault = Fault::new(Class::Roster, format!("there is no limit {}", quoted(name)))
                    .at(slot.span)
                    .expected(one_of(&names))
                    .found(quoted(name));
                return Err(match did_you_mean(&camel, names.iter().copied()) {
                    Some(near) => fault.hint(format!("did you mean {}?", quoted(near))),
                    None => fault,
                });
            };
            if !enforced {
                let text = format!(
                    "the limit {} of {} is not enforced yet: it is recorded and has no effect",
                    quoted(name),
                    quoted(member)
                );
                self.warn(slot.span, text);
            }
            let value = self.ev.force(slot.thunk, slot.span)?;
            let range = format!("a whole number of {unit}, from {smallest} to {largest}");
            let fault = |found: String| {
                Fault::new(Class::Roster, format!("the limit {} has no such value", quoted(name)))
                    .expected(range.clone())
                    .found(found)
            };
            let blame = self.ev.blame(slot.thunk, slot.span);
            match value {
                Value::Int(i) if (*smallest..=*largest).contains(&i) => limits.set(name, i),
                Value::Int(i) => return Err(fault(i.to_string()).at(blame)),
                other => return Err(fault(other.kind().into()).at(blame)),
            }
        }
        Ok(limits)
    }

    fn expires(&mut self, value: Value, at: Span, id: ThunkId) -> R<Option<Day>> {
        let blame = self.ev.blame(id, at);
        match &value {
            Value::Null => Ok(None),
            Value::Str(s) if Day::parse(s).is_some() => Ok(Day::parse(s)),
            other => Err(Fault::new(Class::Roster, "`expires` is not a date")
                .at(blame)
                .expected("a day such as \"2027-01-31\" (YYYY-MM-DD), or null")
                .found(match other {
                    Value::Str(s) => quoted(s),
                    other => other.kind().to_owned(),
                })),
        }
    }
}

#[derive(Clone, Copy)]
enum Accept {
    Both,
    Path,
    Text,
}

#[derive(Clone, Copy)]
enum Where {
    File(u32),
    Inline,
}

fn no_keys(name: &str, at: Span) -> Fault {
    Fault::new(Class::Roster, format!("{} has no keys", quoted(name)))
        .at(at)
        .expected("`keys`: a path to a .pub file, a string with the key, or a list of these")
}

fn while_reading(fault: Fault, name: &str, at: Span) -> Fault {
    if name.is_empty() {
        return fault;
    }
    let inside = fault.span().is_some_and(|s| s.file == at.file && s.start >= at.start);
    if inside && fault.class() != Class::Recursion {
        fault
    } else {
        fault.note(format!("while reading the member {}", quoted(name)), Some(at))
    }
}

fn check_name(name: &str, at: Span) -> R<()> {
    names::check(name).map_err(|found| {
        Fault::new(Class::Roster, format!("{} cannot be a member's name", quoted(name)))
            .at(at)
            .expected(names::expected())
            .found(found)
    })
}

fn too_many_members() -> Fault {
    Fault::new(Class::Limit, "the roster has too many members").expected(format!("at most {MAX_MEMBERS}"))
}

/// A member of this name, so far without anything.
fn nobody(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        keys: Vec::new(),
        role: Role::Member,
        limits: MemberLimits::default(),
        share_with: Vec::new(),
        expires: None,
    }
}

fn lines(keys: &[Key]) -> Vec<String> {
    keys.iter().map(Key::line).collect()
}
