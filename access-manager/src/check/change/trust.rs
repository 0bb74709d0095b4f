//! Sentences about which boxes let a member in, and who vouched for whom.

use std::collections::{BTreeMap, BTreeSet};

use ::roster::Member;
use ::roster::words::{all_of, quoted};

use super::{Effect, Side, Told};

/// Names in one sentence.
const MAX_NAMES: usize = 10;

/// Whom each member vouched for.
pub(super) type Vouched<'a> = BTreeMap<&'a str, Vec<&'a str>>;

pub(super) fn vouched<'a>(side: &Side<'a>) -> Vouched<'a> {
    let mut vouched = Vouched::new();
    for member in side.members() {
        for voucher in vouchers(side, &member.name) {
            vouched.entry(voucher).or_default().push(&member.name);
        }
    }
    vouched
}

/// The end of the sentence about a new member.
pub(super) fn conditions(member: &Member, after: &Side) -> String {
    let mut text = String::new();
    if let Some(boxes) = boxes(after, member) {
        text.push_str(&format!(", {}", on(&boxes)));
    }
    let vouchers = vouchers(after, &member.name);
    if !vouchers.is_empty() {
        text.push_str(&format!(", vouched for by {}", all_of(vouchers)));
    }
    text
}

fn boxes<'a>(side: &Side<'a>, member: &Member) -> Option<BTreeSet<&'a str>> {
    side.evaluated.and_then(|evaluated| evaluated.boxes(member))
}

fn vouchers<'a>(side: &Side<'a>, name: &str) -> &'a [String] {
    side.evaluated
        .and_then(|evaluated| evaluated.about.get(name))
        .map_or(&[], |about| about.vouched_by.as_slice())
}

fn on(boxes: &BTreeSet<&str>) -> String {
    match boxes.len() {
        0 => "on no box at all (their own `hosts` and those of their groups have none in common)".into(),
        1 => format!("on the box {} only", all_of(&boxes.iter().collect::<Vec<_>>())),
        _ => format!("on the boxes {} only", all_of(&boxes.iter().collect::<Vec<_>>())),
    }
}

impl Told {
    pub(super) fn hosts(&mut self, before: (&Side, &Member), after: (&Side, &Member)) {
        let (old, new) = (boxes(before.0, before.1), boxes(after.0, after.1));
        if old == new {
            return;
        }
        let effect = match (&old, &new) {
            (_, None) => Effect::Grants,
            (None, _) => Effect::Revokes,
            (Some(old), Some(new)) if new.is_superset(old) => Effect::Grants,
            (Some(old), Some(new)) if new.is_subset(old) => Effect::Revokes,
            _ => Effect::Changes,
        };
        let said =
            |boxes: Option<BTreeSet<&str>>| boxes.map_or("on all boxes".to_owned(), |boxes| on(&boxes));
        let name = &after.1.name;
        let text = format!("lets {} in {} (before: {})", quoted(name), said(new), said(old));
        self.say(effect, "changes-hosts", name, text);
    }

    pub(super) fn vouchers(&mut self, name: &str, before: &Side, after: &Side) {
        let (old, new) = (vouchers(before, name), vouchers(after, name));
        if old == new {
            return;
        }
        let said = |names: &[String]| if names.is_empty() { "nobody".to_owned() } else { all_of(names) };
        let text = format!("says that {} vouched for {} (before: {})", said(new), quoted(name), said(old));
        self.say(Effect::Changes, "changes-voucher", name, text);
    }

    /// Whom a member who leaves had vouched for: they stay, and a reviewer may want to know.
    pub(super) fn voucher_removed(&mut self, name: &str, vouched: &Vouched) {
        let vouched = vouched.get(name).map_or(&[][..], Vec::as_slice);
        if vouched.is_empty() {
            return;
        }
        let shown = &vouched[..vouched.len().min(MAX_NAMES)];
        let more = match vouched.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let text = format!(
            "{}, who leaves, had vouched for {}{more}: look whether these may stay",
            quoted(name),
            all_of(shown)
        );
        self.say(Effect::Changes, "removes-voucher", name, text);
    }
}
