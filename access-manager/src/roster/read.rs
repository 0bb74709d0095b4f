//! From the value of `users.nix` to members, or to the first mistake and where it is.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::limits::LIMITS;
use super::{Member, MemberLimits, Role, modules, sharing};
use crate::diag::{Class, Diagnostic, Fault, Span, did_you_mean, one_of, quoted};
use crate::nix::{self, AttrMap, Evaluator, Limits, ThunkId, Value};
use crate::source::Source;
use crate::ssh_keys;

type R<T> = Result<T, Fault>;

/// Members of one roster; ten times the largest community builder.
const MAX_MEMBERS: usize = 10_000;
/// Keys of one member. sshd tries them in order and clients offer six; people with thirty exist.
const MAX_KEYS: usize = 100;
/// Longest member name; Linux user names end here too.
const MAX_NAME: usize = 32;

const ATTRIBUTES: &[&str] = &["keys", "role", "limits", "shareWith", "expires"];

/// A roster that was accepted.
#[derive(Clone, Debug)]
pub struct Evaluated {
    /// Sorted by name.
    pub members: Vec<Member>,
    /// What is fine but probably not meant, one line each.
    pub warnings: Vec<String>,
}

/// Evaluates `file` of `source` (a path from the top of the repository) into a roster.
pub fn evaluate<S: Source + Send>(
    source: S,
    file: &str,
    limits: Limits,
) -> Result<Evaluated, Box<Diagnostic>> {
    nix::with_evaluator(source, limits, |ev| {
        let value = ev.import_file(file)?;
        let value = ev.call_module(value)?;
        let mut reader = Reader {
            ev,
            members: BTreeMap::new(),
            keys: BTreeMap::new(),
            shares: BTreeMap::new(),
            warnings: Vec::new(),
        };
        reader.top(value)?;
        reader.warnings.extend(sharing::settle(&mut reader.members, &reader.shares)?);
        let members: Vec<Member> = reader.members.into_values().map(|(_, member)| member).collect();
        if members.is_empty() {
            reader.warnings.push("the roster has no members: nobody will get in".into());
        }
        Ok(Evaluated { members, warnings: reader.warnings })
    })
}

struct Reader<'a, 's> {
    ev: &'a mut Evaluator<'s>,
    /// By lower-case name: two names that differ in letter case only would be confused by people and file systems.
    members: BTreeMap<String, (Span, Member)>,
    /// Who has a key already, and where it is written.
    keys: BTreeMap<String, (String, Span)>,
    /// Who shares with whom, by name; the other may come later in the file.
    shares: BTreeMap<String, Vec<sharing::Share>>,
    warnings: Vec<String>,
}

impl Reader<'_, '_> {
    fn top(&mut self, value: Value) -> R<()> {
        let nowhere = Span { file: 0, start: 0, end: 0 };
        match value {
            Value::List(items) => {
                for item in items.iter() {
                    self.listed(*item)?;
                }
                Ok(())
            }
            Value::Attrs(map) if modules::is_module(self.ev, &map, nowhere)? => self.module(map, nowhere),
            Value::Attrs(map) => {
                for (name, slot) in map.iter() {
                    let attributes = self.attributes(slot.thunk, slot.span, name)?;
                    self.member(name, slot.span, &attributes)?;
                }
                Ok(())
            }
            other => Err(Fault::new(Class::Roster, "the file is not a roster")
                .expected("a set of users, `{ alice.keys = ./keys/alice.pub; }`, or a list of them")
                .found(other.kind())),
        }
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

    /// One entry of a list of users: the name is an attribute.
    fn listed(&mut self, id: ThunkId) -> R<()> {
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
                self.member(&name, at, &rest)
            }
            other => Err(Fault::new(Class::Roster, "a member's `name` must be a string")
                .at(slot.span)
                .expected("a string")
                .found(other.kind())),
        }
    }

    fn module(&mut self, map: Rc<AttrMap>, at: Span) -> R<()> {
        for user in modules::users(self.ev, map, at)? {
            let mut keys = Vec::new();
            for id in &user.keys {
                self.key_value(*id, user.span, &mut keys, &user.name, Accept::Text)?;
            }
            for id in &user.key_files {
                self.key_value(*id, user.span, &mut keys, &user.name, Accept::Path)?;
            }
            if keys.is_empty() {
                // Modules define users for services too; having no key is their normal state.
                self.warnings.push(format!("{} has no authorized keys and is left out", quoted(&user.name)));
                continue;
            }
            let member = Member {
                name: user.name.to_string(),
                keys,
                role: Role::Member,
                limits: MemberLimits::default(),
                share_with: Vec::new(),
                expires: None,
            };
            self.accept(member, user.span)?;
        }
        Ok(())
    }

    fn member(&mut self, name: &str, at: Span, attributes: &AttrMap) -> R<()> {
        check_name(name, at)?;
        let mut member = Member {
            name: name.to_owned(),
            keys: Vec::new(),
            role: Role::Member,
            limits: MemberLimits::default(),
            share_with: Vec::new(),
            expires: None,
        };
        let mut has_keys = false;
        for (attribute, slot) in attributes {
            let value = self.ev.force(slot.thunk, slot.span).map_err(|f| while_reading(f, name, at))?;
            match &**attribute {
                "keys" => {
                    has_keys = true;
                    self.keys(slot.thunk, value, slot.span, &mut member.keys, name)
                        .map_err(|f| while_reading(f, name, at))?;
                    if member.keys.is_empty() {
                        return Err(no_keys(name, slot.span).found("no key"));
                    }
                }
                "role" => member.role = self.role(value, slot.span, slot.thunk)?,
                "limits" => member.limits = self.limits(value, slot.span)?,
                "shareWith" => {
                    let shares = sharing::read(self.ev, value, slot.thunk, slot.span, name)?;
                    self.shares.insert(name.to_owned(), shares);
                }
                "expires" => member.expires = self.expires(value, slot.span, slot.thunk)?,
                // Older community lists have it; dropping it silently would look like a grant.
                "trusted" => self.warnings.push(format!(
                    "{}: `trusted` of {} is ignored: nobody needs to be trusted here",
                    self.ev.place(slot.span),
                    quoted(name)
                )),
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
                        None => fault.hint("docs/roster.md lists what each attribute does"),
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
            return Err(Fault::new(Class::Limit, "the roster has too many members")
                .at(at)
                .expected(format!("at most {MAX_MEMBERS}")));
        }
        let lower = member.name.to_lowercase();
        if let Some((first, old)) = self.members.get(&lower) {
            return Err(Fault::new(
                Class::Roster,
                format!("there are two members named {}", quoted(&member.name)),
            )
            .at(at)
            .expected("names that differ in more than letter case")
            .found(format!("{} and {}", quoted(&old.name), quoted(&member.name)))
            .note("the first one is here", Some(*first)));
        }
        self.members.insert(lower, (at, member));
        Ok(())
    }

    // --- keys --------------------------------------------------------------------------------------------------

    fn keys(&mut self, id: ThunkId, value: Value, at: Span, out: &mut Vec<String>, member: &str) -> R<()> {
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
        out: &mut Vec<String>,
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

    fn key_text(&mut self, text: &str, place: Where, at: Span, out: &mut Vec<String>, member: &str) -> R<()> {
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
            match self.keys.get(&key.key) {
                Some((owner, _)) if owner == member => self.warnings.push(format!(
                    "{}: {} lists the same key twice",
                    self.ev.place(span),
                    quoted(member)
                )),
                Some((owner, first)) => {
                    return Err(Fault::new(
                        Class::Key,
                        format!("{} and {} have the same key", quoted(owner), quoted(member)),
                    )
                    .at(span)
                    .expected("each key once: the key alone tells the box who is there")
                    .note(format!("{} has it here", quoted(owner)), Some(*first)));
                }
                None => {
                    self.keys.insert(key.key.clone(), (member.to_owned(), span));
                    out.push(key.line());
                }
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

    fn limits(&mut self, value: Value, at: Span) -> R<MemberLimits> {
        let Value::Attrs(map) = value else {
            return Err(Fault::new(Class::Roster, "`limits` must be an attribute set")
                .at(at)
                .expected("a set such as `{ maxJobs = 2; }`")
                .found(value.kind()));
        };
        let mut limits = MemberLimits::default();
        for (name, slot) in map.iter() {
            let Some((_, low, high, unit)) = LIMITS.iter().find(|l| l.0 == &**name) else {
                let names: Vec<&str> = LIMITS.iter().map(|l| l.0).collect();
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
            let value = self.ev.force(slot.thunk, slot.span)?;
            let range = format!("a whole number of {unit}, from {low} to {high}");
            let fault = |found: String| {
                Fault::new(Class::Roster, format!("the limit {} has no such value", quoted(name)))
                    .expected(range.clone())
                    .found(found)
            };
            let blame = self.ev.blame(slot.thunk, slot.span);
            match value {
                Value::Int(i) if (*low..=*high).contains(&i) => limits.set(name, i),
                Value::Int(i) => return Err(fault(i.to_string()).at(blame)),
                other => return Err(fault(other.kind().into()).at(blame)),
            }
        }
        Ok(limits)
    }

    fn expires(&mut self, value: Value, at: Span, id: ThunkId) -> R<Option<String>> {
        let blame = self.ev.blame(id, at);
        match &value {
            Value::Null => Ok(None),
            Value::Str(s) if is_date(s) => Ok(Some(s.to_string())),
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

/// Names appear in logs, file names, prompts and `ssh box` output: letters, digits, `_`, `.`, `-` do no harm there.
fn check_name(name: &str, at: Span) -> R<()> {
    let fault = |found: String| {
        Err(Fault::new(Class::Roster, format!("{} cannot be a member's name", quoted(name)))
            .at(at)
            .expected(format!(
                "1 to {MAX_NAME} letters, digits, `_`, `.` or `-`, starting with a letter, a digit or `_`"
            ))
            .found(found))
    };
    if name.is_empty() {
        return fault("an empty name".into());
    }
    if name.len() > MAX_NAME {
        return fault(format!("{} bytes", name.len()));
    }
    if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "_.-".contains(*c))) {
        return fault(quoted(&c.to_string()));
    }
    if name.starts_with(['.', '-']) {
        return fault(format!("{} at the start", quoted(&name[..1])));
    }
    Ok(())
}

/// `YYYY-MM-DD`, a day that exists.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return false;
    }
    let number = |range: std::ops::Range<usize>| -> Option<u32> {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let (Some(year), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10)) else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return false,
    };
    year >= 1970 && (1..=days).contains(&day)
}
