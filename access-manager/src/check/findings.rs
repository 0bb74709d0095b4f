//! Mistakes in one state of the roster, and entries that are probably not meant.

use std::collections::BTreeSet;

use ::roster::words::{all_of, one_of};
use ::roster::{Day, LIMITS, Limit, Member, keys};

use super::Diagnostic;
use crate::diag::{Place, did_you_mean, quoted};
use crate::roster::{ALLOWED_USERS, Evaluated, Groups, Inspected, TRUSTED_USERS, Unused};

/// Names out of order that are listed one by one. With more of them, the roster has an order of its own.
const MAX_MISPLACED: usize = 5;
/// Names in one note.
const MAX_NAMES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The roster is refused.
    Error,
    /// Accepted, and probably not meant.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    /// Stable, for programs: `syntax`, `order` …
    pub kind: &'static str,
    /// One sentence.
    pub text: String,
    pub place: Option<Place>,
    pub hint: Option<String>,
    /// The complete message of a mistake, with the line at fault.
    pub diagnostic: Option<Diagnostic>,
    /// The base has it, too: this change did not bring it.
    pub old: bool,
}

impl Finding {
    pub fn mistake(diagnostic: Diagnostic) -> Finding {
        Finding {
            place: diagnostic.at.clone(),
            hint: diagnostic.hint.clone(),
            ..Finding::new(Severity::Error, diagnostic.class.name(), diagnostic.title.clone())
        }
        .with(diagnostic)
    }

    pub(super) fn new(severity: Severity, kind: &'static str, text: String) -> Finding {
        Finding { severity, kind, text, place: None, hint: None, diagnostic: None, old: false }
    }

    fn with(self, diagnostic: Diagnostic) -> Finding {
        Finding { diagnostic: Some(diagnostic), ..self }
    }

    pub(super) fn hint(self, hint: &str) -> Finding {
        Finding { hint: Some(hint.to_owned()), ..self }
    }
}

/// The largest value of a limit that one member may have at this site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// As in `users.nix`.
    pub limit: &'static str,
    pub largest: u64,
}

impl std::str::FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Bound, String> {
        let names: Vec<&str> = LIMITS.iter().map(|limit| limit.name).collect();
        let (name, value) = text.split_once('=').ok_or("expected LIMIT=VALUE, such as maxJobs=8")?;
        let Some(Limit { name, largest, .. }) = LIMITS.iter().find(|limit| limit.name == name) else {
            let near = did_you_mean(&name.replace('-', ""), names.iter().copied());
            return Err(match near {
                Some(near) => format!("there is no limit {}; did you mean {}?", quoted(name), quoted(near)),
                None => format!("there is no limit {}; expected {}", quoted(name), one_of(&names)),
            });
        };
        match value.parse() {
            Ok(value) if (1..=*largest as u64).contains(&value) => Ok(Bound { limit: name, largest: value }),
            _ => Err(format!("expected a whole number from 1 to {largest}")),
        }
    }
}

/// All findings about a roster that was evaluated.
pub fn all(evaluated: &Evaluated, inspected: &Inspected, bounds: &[Bound], now: u64) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        evaluated.mistakes.iter().map(|mistake| Finding::mistake(*mistake.diagnostic.clone())).collect();
    findings.extend(evaluated.warnings.iter().map(|warning| Finding {
        place: warning.place.clone(),
        ..Finding::new(Severity::Warning, "not-meant", warning.text.clone())
    }));
    findings.extend(inspected.unused.iter().map(unused));
    findings.extend(evaluated.members.iter().flat_map(|member| above_bounds(member, bounds)));
    findings.extend(evaluated.members.iter().flat_map(|member| expired(member, now)));
    findings.extend(evaluated.members.iter().filter_map(|member| nowhere(evaluated, member)));
    findings.extend(misplaced(&inspected.places));
    findings.extend(groups(&inspected.groups));
    findings
}

fn unused(Unused { path, private }: &Unused) -> Finding {
    match private {
        true => Finding::new(Severity::Error, "private-key", format!("{} holds a PRIVATE key", quoted(path))).hint(
            "treat this key as stolen: replace it everywhere it is used. Deleting the commit does not undo it",
        ),
        false => Finding::new(Severity::Warning, "unused-key-file", format!("nobody names the key file {}", quoted(path)))
            .hint("name it in `keys` of a member, or remove it"),
    }
}

fn above_bounds(member: &Member, bounds: &[Bound]) -> Vec<Finding> {
    let above = |(limit, value): (&Limit, u64)| {
        let bound = bounds.iter().find(|bound| bound.limit == limit.name && bound.largest < value)?;
        let text = format!(
            "{} of {} is {value}; at most {} {} are given to one member here",
            quoted(limit.name),
            quoted(&member.name),
            bound.largest,
            limit.unit
        );
        Some(Finding::new(Severity::Error, "above-bound", text))
    };
    member.limits.values().filter_map(above).collect()
}

fn nowhere(evaluated: &Evaluated, member: &Member) -> Option<Finding> {
    evaluated.boxes(member).filter(BTreeSet::is_empty)?;
    let text = format!(
        "no box lets in {}: their own `hosts` and those of their groups have none in common",
        quoted(&member.name)
    );
    Some(Finding::new(Severity::Warning, "not-meant", text))
}

fn expired(member: &Member, now: u64) -> Vec<Finding> {
    let name = quoted(&member.name);
    let warning = |text| Finding::new(Severity::Warning, "expired", text);
    let day = member.expired(Day::at(now));
    let mut out: Vec<Finding> =
        day.map(|day| warning(format!("the access of {name} has expired on {day}"))).into_iter().collect();
    for key in member.keys.iter().filter_map(|line| keys::parse_line(line).ok()) {
        if let Some(until) = key.expired(now) {
            let text = format!("the key {} of {name} has expired at {until}", key.fingerprint());
            out.push(warning(text));
        }
    }
    out
}

/// Names that are not where the alphabet puts them.
fn misplaced(places: &[(String, Place)]) -> Vec<Finding> {
    let files: BTreeSet<&str> = places.iter().map(|(_, place)| place.file.as_str()).collect();
    files
        .into_iter()
        .flat_map(|file| {
            let here: Vec<&(String, Place)> = places.iter().filter(|(_, place)| place.file == file).collect();
            misplaced_in_one_file(&here)
        })
        .collect()
}

fn misplaced_in_one_file(names: &[&(String, Place)]) -> Vec<Finding> {
    let lower: Vec<String> = names.iter().map(|(name, _)| name.to_lowercase()).collect();
    let kept = longest_sorted(&lower);
    let mut sorted: Vec<usize> = kept.clone();
    let strays: Vec<usize> = (0..names.len()).filter(|i| kept.binary_search(i).is_err()).collect();
    if strays.len() > MAX_MISPLACED {
        let (name, place) = names[strays[0]];
        let text = format!(
            "the names are not in alphabetical order: {} of {}, the first of them {}",
            strays.len(),
            names.len(),
            quoted(name)
        );
        return vec![Finding { place: Some(place.clone()), ..Finding::new(Severity::Note, "order", text) }];
    }
    strays
        .into_iter()
        .map(|stray| {
            let (name, place) = names[stray];
            let at = sorted.partition_point(|other| lower[*other] <= lower[stray]);
            let belongs = match at.checked_sub(1).map(|before| sorted[before]) {
                Some(before) => format!("after {}", quoted(&names[before].0)),
                None => format!("before {}", quoted(&names[sorted[0]].0)),
            };
            sorted.insert(at, stray);
            let text = format!("{} is not in alphabetical order: it belongs {belongs}", quoted(name));
            Finding { place: Some(place.clone()), ..Finding::new(Severity::Warning, "order", text) }
        })
        .collect()
}

/// The most names that are in order already, as their positions: so as few as possible are out of order.
fn longest_sorted(names: &[String]) -> Vec<usize> {
    // `ends[n]` is the smallest name that ends a sorted run of n + 1 names.
    let mut ends: Vec<usize> = Vec::new();
    let mut before = vec![None; names.len()];
    for (i, name) in names.iter().enumerate() {
        let length = ends.partition_point(|end| names[*end] <= *name);
        before[i] = length.checked_sub(1).map(|shorter| ends[shorter]);
        match ends.get_mut(length) {
            Some(end) => *end = i,
            None => ends.push(i),
        }
    }
    let mut run: Vec<usize> = std::iter::successors(ends.last().copied(), |i| before[*i]).collect();
    run.reverse();
    run
}

/// Groups give rights on an ordinary machine. One note for each that people may count on.
fn groups(groups: &Groups) -> Vec<Finding> {
    let note = |text: String| Finding::new(Severity::Note, "no-effect", text);
    let mut out = Vec::new();
    let mut others: Vec<&str> = Vec::new();
    for (group, users) in groups {
        let who = some_of(&users.iter().map(String::as_str).collect::<Vec<_>>());
        match group.as_str() {
            "wheel" | "sudo" | "admin" => out.push(note(format!(
                "{} ({who}) has no effect here: members have no account on the box, and the roster makes nobody root",
                quoted(group)
            ))),
            ALLOWED_USERS => out.push(note(format!(
                "{} ({who}) has no effect here: every member may build, and nobody else",
                quoted(group)
            ))),
            "trusted" | TRUSTED_USERS => out.push(note(format!(
                "{} ({who}) has no effect here: there are no trusted users, and nobody has to be one to build",
                quoted(group)
            ))),
            other => others.push(other),
        }
    }
    if !others.is_empty() {
        out.push(note(format!("groups of users have no effect here: {}", some_of(&others))));
    }
    out
}

/// `a`, `b` and 7 more.
fn some_of(names: &[&str]) -> String {
    match names.len().checked_sub(MAX_NAMES) {
        None | Some(0) => all_of(names),
        Some(more) => {
            let shown: Vec<String> = names[..MAX_NAMES].iter().map(|name| quoted(name)).collect();
            format!("{} and {more} more", shown.join(", "))
        }
    }
}

#[cfg(test)]
#[path = "findings_test.rs"]
mod findings_test;
