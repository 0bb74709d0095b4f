//! From the value of `users.nix` to members, and to the mistakes of those who are left out.
//!
//! A member whose own lines are wrong is left out, and the others are not ([`Mistake`]). Refused whole is only what leaves
//! nobody to tell apart: no Nix, no set or list of users, an evaluation that has spent its limits, nobody left.

//!
//! ```text
//! read/whole.rs       `{ users, groups, hosts }`: groups, and who is in them
//! read/member.rs      the entry of one member, in each shape
//! read/keys.rs        keys of a member
//! read/attributes.rs  role, limits, date
//! read/settings.rs    settings of members and groups
//! ```

mod attributes;
mod keys;
mod member;
mod settings;
mod whole;

use std::collections::{BTreeMap, BTreeSet};

use ::roster::{MAX_MEMBERS, name as names};

use super::evaluated::{About, Evaluated, Mistake, Warning};
use super::inspect::{self, Groups, Inspected};
use super::names::Named;
use super::{Member, modules, sharing, twins};
use crate::diag::{Class, Diagnostic, Fault, Span, did_you_mean, quoted};
use crate::nix::{self, Evaluator, Limits, Value};
use crate::source::Source;

type R<T> = Result<T, Fault>;

/// Longest part of a name that is no member's name in a message.
const MAX_SHOWN: usize = 80;

/// Suggestions for mistyped names of members, groups and boxes. Each compares with up to 2000 names, and a hostile roster
/// may mistype each of a hundred thousand.
const MAX_SUGGESTIONS: u32 = 100;
/// Boxes in one list. A fleet that one roster serves is smaller.
const MAX_HOSTS: usize = 1_000;

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
    /// Of a member, or of the group.
    name: String,
    costs: Costs,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Costs {
    /// The member is left out.
    Member,
    /// Only the part that is wrong does not count.
    Part,
    /// The members of the group are left out, with a mistake each.
    Group,
    /// The group counts for its other members.
    NobodyElse,
}

impl Found {
    fn new(name: &str, costs: Costs, fault: Fault) -> Found {
        Found { name: name.to_owned(), costs, fault }
    }

    fn left_out(&self) -> bool {
        self.costs == Costs::Member
    }

    fn resolve(self, ev: &Evaluator) -> Mistake {
        let (left_out, who) = (self.left_out(), shown(&self.name));
        let note = match self.costs {
            Costs::Member => {
                format!("{who} is left out until this is corrected; the other members are not affected")
            }
            Costs::Part => format!("{who} can log in without it"),
            Costs::Group => "the members of this group are left out until this is corrected".into(),
            Costs::NobodyElse => "the group counts for its other members".into(),
        };
        let diagnostic = Box::new(ev.resolve(self.fault.note(note, None)));
        Mistake { name: self.name, left_out, diagnostic }
    }
}

/// A name with a mistake may be anything.
fn shown(name: &str) -> String {
    name.chars().take(MAX_SHOWN).map(printable::character).collect()
}

struct Reader<'a, 's> {
    ev: &'a mut Evaluator<'s>,
    /// By lower-case name: two names that differ in letter case only would be confused by people and file systems. More
    /// than one of a name is settled when all are known.
    members: BTreeMap<String, Vec<(Span, Member)>>,
    mistakes: Vec<Found>,
    /// Who shares with whom, by name; the other may come later in the file.
    shares: BTreeMap<String, Vec<Named>>,
    /// The boxes that the roster lists.
    hosts: Vec<String>,
    sets: whole::Groups,
    /// The groups that members name, by member.
    memberships: BTreeMap<String, Vec<Named>>,
    about: BTreeMap<String, About>,
    warnings: Vec<Warning>,
    /// Groups of a module's users, where somebody asks for them.
    groups: Option<Groups>,
    suggestions: Suggestions,
}

/// How many suggestions are left.
struct Suggestions(u32);

impl Suggestions {
    /// The candidate that was probably meant.
    fn near<'c>(&mut self, word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
        self.0 = self.0.checked_sub(1)?;
        did_you_mean(word, candidates)
    }
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
            hosts: Vec::new(),
            sets: whole::Groups::default(),
            memberships: BTreeMap::new(),
            about: BTreeMap::new(),
            warnings: Vec::new(),
            groups,
            suggestions: Suggestions(MAX_SUGGESTIONS),
        };
        reader.top(value)?;
        reader.leave_out_namesakes();
        let groups = reader.settle_groups();
        reader.settle_shares();
        let places = match reader.groups {
            Some(_) => inspect::places(reader.ev, reader.members.values().flatten()),
            None => Vec::new(),
        };
        let members: Vec<Member> = reader.members.into_values().flatten().map(|(_, member)| member).collect();
        if members.is_empty() {
            if let Some(position) = reader.mistakes.iter().position(Found::left_out) {
                return Err(reader.mistakes.swap_remove(position).fault);
            }
            reader.warnings.push("the roster has no members: nobody can log in".to_owned().into());
        }
        reader.warnings.extend(twins::warnings(&members).into_iter().map(Warning::from));
        let mistakes = reader.mistakes.into_iter().map(|mistake| mistake.resolve(reader.ev)).collect();
        let inspected = Inspected { places, groups: reader.groups.unwrap_or_default(), unused: Vec::new() };
        let mut about = reader.about;
        let names: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
        about.retain(|name, _| names.contains(name.as_str()));
        let (hosts, warnings) = (reader.hosts, reader.warnings);
        Ok((Evaluated { members, groups, hosts, about, mistakes, warnings }, inspected))
    }
}

impl Reader<'_, '_> {
    fn top(&mut self, value: Value) -> R<()> {
        let nowhere = Span { file: 0, start: 0, end: 0 };
        match value {
            Value::Attrs(map) if modules::is_module(self.ev, &map, nowhere)? => self.module(map, nowhere),
            Value::Attrs(map) if whole::is_whole(self.ev, &map, nowhere)? => self.whole(&map, nowhere),
            other => self.users(other, nowhere),
        }
    }

    /// A set or a list of members.
    fn users(&mut self, value: Value, at: Span) -> R<()> {
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
            Value::Attrs(map) => {
                for (name, slot) in map.iter() {
                    let read = self
                        .attributes(slot.thunk, slot.span, name)
                        .and_then(|attributes| self.member(name, slot.span, &attributes));
                    self.or_left_out(name, read)?;
                }
                Ok(())
            }
            other => {
                let fault = Fault::new(Class::Roster, "the file is not a roster")
                    .expected("a set of users, `{ alice.keys = ./keys/alice.pub; }`, or a list of them")
                    .found(other.kind());
                Err(if at.end > 0 { fault.at(at) } else { fault })
            }
        }
    }

    /// Goes on without this member, unless what went wrong is everybody's: nothing can be evaluated any more, or there
    /// are too many members.
    fn or_left_out(&mut self, name: &str, read: R<()>) -> R<()> {
        let Err(fault) = read else { return Ok(()) };
        if self.ev.is_spent() {
            return Err(fault);
        }
        self.mistakes.push(Found::new(name, Costs::Member, fault));
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
                self.mistakes.push(Found::new(&member.name, Costs::Member, fault));
            }
        }
        self.members.retain(|_, members| !members.is_empty());
    }

    fn settle_shares(&mut self) {
        let members = self.members.values_mut().flatten().map(|(_, member)| member);
        let (faults, warnings) = sharing::settle(members.collect(), &self.shares, |word, names| {
            self.suggestions.near(word, names.iter().map(String::as_str))
        });
        self.mistakes.extend(faults.into_iter().map(|(name, fault)| Found::new(&name, Costs::Part, fault)));
        self.warnings.extend(warnings.into_iter().map(Warning::from));
    }

    fn warn(&mut self, at: Span, text: String) {
        self.warnings.push(Warning { place: self.ev.place(at), text });
    }
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
