//! Who vouches for whom. With `--require-vouch`, a new member needs a voucher who was a member before the change.
//!
//! A roster is text that newcomers write themselves: that the voucher agrees is for the reviewer to see (an approval of
//! the pull request). Members from before the rule need nobody.

use std::collections::{BTreeMap, BTreeSet};

use ::roster::words::all_of;
use ::roster::{Day, Member};

use super::Options;
use super::findings::{Finding, Severity};
use crate::diag::{did_you_mean, quoted};
use crate::roster::Evaluated;

/// Suggestions for mistyped names: each compares with many.
const MAX_SUGGESTIONS: usize = 20;

/// The vouchers of each member.
type Vouchers<'a> = BTreeMap<&'a str, &'a [String]>;

/// Findings about `now`. `before` is the state before the change, if there is one to compare with.
pub(super) fn findings(now: &Evaluated, before: Option<&Evaluated>, options: &Options) -> Vec<Finding> {
    let today = Day::at(options.now);
    let vouchers: Vouchers =
        now.about.iter().map(|(name, about)| (name.as_str(), about.vouched_by.as_slice())).collect();
    let was_member = |name: &str| before.is_some_and(|before| is_member(before, name));
    let is_bound = |name: &str| options.require_vouch && before.is_some() && !was_member(name);
    let mut findings: Vec<Finding> = circles(&vouchers)
        .into_iter()
        .map(|names| {
            let text = format!(
                "{} vouch for each other in a circle: nobody from outside vouches for them",
                all_of(&names)
            );
            let severity =
                if names.iter().any(|name| is_bound(name)) { Severity::Error } else { Severity::Warning };
            Finding::new(severity, "vouching", text)
        })
        .collect();
    let members: BTreeMap<&str, &Member> =
        now.members.iter().map(|member| (member.name.as_str(), member)).collect();
    let mut suggestions = 0;
    for (name, names) in &vouchers {
        if is_bound(name) {
            findings.extend(missing(name, names, &members, before, today));
            continue;
        }
        for voucher in names.iter().filter(|voucher| !is_member(now, voucher)) {
            let text = format!("{} vouched for {}, and is not in this roster", quoted(voucher), quoted(name));
            let finding = Finding::new(Severity::Note, "vouching", text);
            // A former member is no typing mistake.
            let asked = !was_member(voucher) && suggestions < MAX_SUGGESTIONS;
            suggestions += usize::from(asked);
            findings.push(match asked.then(|| did_you_mean(voucher, members.keys().copied())).flatten() {
                Some(near) => finding.hint(&format!("did you mean {}?", quoted(near))),
                None => finding,
            });
        }
    }
    findings
}

/// The reason why no voucher of a new member counts, if so.
fn missing(
    name: &str,
    vouchers: &[String],
    members: &BTreeMap<&str, &Member>,
    before: Option<&Evaluated>,
    today: Day,
) -> Option<Finding> {
    let reason = |voucher: &String| -> Option<String> {
        let word = quoted(voucher);
        match members.get(voucher.as_str()) {
            None => Some(format!("{word} is not in this roster")),
            Some(member) if member.expired(today).is_some() => {
                Some(format!("the access of {word} has expired"))
            }
            Some(_) if !before.is_some_and(|before| is_member(before, voucher)) => {
                Some(format!("{word} is new as well"))
            }
            Some(_) => None,
        }
    };
    let reasons: Vec<String> = vouchers.iter().filter_map(reason).collect();
    if reasons.len() < vouchers.len() {
        return None;
    }
    let who = quoted(name);
    let text = match reasons.is_empty() {
        true => format!("{who} is new, and nobody vouches for them"),
        false => format!("{who} is new, and nobody who counts vouches for them: {}", reasons.join("; ")),
    };
    let hint = "a member who knows them is named in `vouchedBy = \"…\";` and approves the pull request";
    Some(Finding::new(Severity::Error, "vouching", text).hint(hint))
}

fn is_member(evaluated: &Evaluated, name: &str) -> bool {
    evaluated.about.contains_key(name)
}

/// Members who vouch for each other in a circle and have no voucher outside of it, each circle once, in order of name.
fn circles(vouchers: &Vouchers) -> Vec<Vec<String>> {
    // Whoever has no voucher, or one who is no member, is vouched for from outside; and so is whom such a member
    // vouches for. The others lead to circles only.
    let mut vouched: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, names) in vouchers {
        names.iter().for_each(|voucher| vouched.entry(voucher).or_default().push(name));
    }
    let from_outside =
        |names: &[String]| names.is_empty() || names.iter().any(|name| !vouchers.contains_key(name.as_str()));
    let mut grounded: Vec<&str> =
        vouchers.iter().filter(|(_, names)| from_outside(names)).map(|(name, _)| *name).collect();
    let mut open: BTreeMap<&str, &[String]> = vouchers.clone();
    while let Some(name) = grounded.pop() {
        if open.remove(name).is_some() {
            grounded.extend(vouched.get(name).into_iter().flatten());
        }
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for start in open.keys() {
        // The first voucher of each leads into a circle after at most all of them.
        let mut way: Vec<&str> = Vec::new();
        let mut here = *start;
        while !seen.contains(here) {
            seen.insert(here);
            way.push(here);
            here = open[here][0].as_str();
        }
        if let Some(from) = way.iter().position(|name| *name == here) {
            let circle: BTreeSet<&str> = way[from..].iter().copied().collect();
            found.push(circle.into_iter().map(str::to_owned).collect());
        }
    }
    found
}

#[cfg(test)]
#[path = "vouching_test.rs"]
mod vouching_test;
