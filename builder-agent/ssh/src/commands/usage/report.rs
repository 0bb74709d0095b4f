//! A report in its three forms: a table for people; JSON and CSV with plain numbers in the units of the table of resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use builds::monthly::{self, Monthly};
use daemon::Agent;
use ledger::{Amounts, By, Kind as PartKind, Month, Part, RESOURCES, Resource};
use members::{Member, Roster};
use serde::Serialize;

use super::super::table::{Kind, Table};
use super::units::human;
use crate::terminal::Screen;

pub(super) struct Report {
    pub by: By,
    /// Each line is about such a part of what its member used.
    pub per: Option<PartKind>,
    /// Lines are of several members.
    pub everybody: bool,
    pub lines: Vec<Line>,
    pub limits: Vec<Limit>,
}

/// A key, a ticket or a tag.
pub(super) struct Its {
    /// As people write it: of a ticket the id without its prefix.
    name: String,
    /// What people call it.
    label: Option<String>,
}

impl Its {
    pub fn of(part: &Part, label: Option<String>) -> Self {
        let name = part.name.strip_prefix(tickets::PREFIX).unwrap_or(&part.name).to_owned();
        Self { name, label: label.filter(|label| !label.is_empty()) }
    }

    fn text(&self) -> String {
        match &self.label {
            Some(label) => format!("{} ({label})", self.name),
            None => self.name.clone(),
        }
    }
}

/// What one member, or a part of one, used in one period.
pub(super) struct Line {
    pub member: Arc<str>,
    /// No member of the roster has this identity; `member` is the identity.
    pub former: bool,
    pub its: Option<Its>,
    pub period: String,
    pub amounts: Amounts,
}

/// A limit on what is in the ledger.
#[derive(Serialize)]
pub(super) struct Limit {
    name: &'static str,
    value: u64,
    unit: &'static str,
    set_by: String,
    used: f64,
    /// The first day of the next month, when counting begins anew.
    until: String,
    #[serde(skip)]
    month: Month,
}

/// The monthly limits of this member of the roster, and of the member's groups.
pub(super) fn limits_of(agent: &Agent, roster: &Roster, member: &Member) -> Vec<Limit> {
    let month = agent.ledger.this_month();
    let limit = |limit: Monthly| Limit {
        name: "max-cpu-hours-per-month",
        value: limit.hours,
        unit: "CPU hours",
        set_by: limit.set_by.short(),
        used: monthly::hours(&limit.used(&agent.ledger, roster, member)),
        until: month.next().first().to_string(),
        month,
    };
    Monthly::of(&agent.config, member).into_iter().map(limit).collect()
}

/// A number without a unit: whole, or with a fraction.
#[derive(Serialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Fraction(f64),
}

fn number(resource: Resource, amount: u64) -> Number {
    match resource.row().unit.parts() {
        1 => Number::Whole(amount),
        parts => Number::Fraction(amount as f64 / parts as f64),
    }
}

#[derive(Serialize)]
pub(super) struct JsonReport<'a> {
    by: &'static str,
    per: &'static str,
    usage: Vec<JsonLine<'a>>,
    limits: &'a [Limit],
}

#[derive(Serialize)]
struct JsonLine<'a> {
    member: &'a str,
    former: bool,
    /// The key, the ticket or the tag, under this word, and what people call it.
    #[serde(flatten)]
    its: BTreeMap<&'static str, Option<&'a str>>,
    period: &'a str,
    #[serde(flatten)]
    amounts: BTreeMap<&'static str, Number>,
}

/// The columns of the table for people. Peaks, which few people need, are in JSON and CSV alone.
#[rustfmt::skip]
const COLUMNS: &[(&str, Resource)] = &[
    ("builds", Resource::Builds),
    ("failed", Resource::FailedBuilds),
    ("CPU time", Resource::CpuSeconds),
    ("wall", Resource::WallSeconds),
    ("memory", Resource::MemoryMibSeconds),
    ("log", Resource::LogBytes),
    ("up", Resource::BytesUp),
    ("down", Resource::BytesDown),
    ("logins", Resource::Connections),
    ("sessions", Resource::Sessions),
    ("fetched", Resource::DownloadBytes),
    ("store", Resource::StoreMibSeconds),
];

/// Whether a part of this kind, or a member, can have any of this resource.
fn has(per: Option<PartKind>, resource: Resource) -> bool {
    let of_store = resource == Resource::StoreMibSeconds;
    let of_connections = matches!(
        resource,
        Resource::BytesUp | Resource::BytesDown | Resource::Connections | Resource::Sessions
    );
    !(of_store && per.is_some() || of_connections && per == Some(PartKind::Tag))
}

impl Report {
    fn by(&self) -> &'static str {
        match self.by {
            By::Day => "day",
            By::Month => "month",
        }
    }

    /// The object that `--json` prints.
    pub fn json(&self) -> JsonReport<'_> {
        let usage = self.lines.iter().map(|Line { member, former, its, period, amounts }| {
            let number = |resource: Resource| number(resource, amounts.get(resource));
            let amounts = RESOURCES.iter().map(|row| (row.name, number(row.resource))).collect();
            let its = self.per.zip(its.as_ref()).map(|(kind, Its { name, label })| {
                [(kind.name(), Some(name.as_str())), ("label", label.as_deref())]
            });
            let its = its.into_iter().flatten().collect();
            JsonLine { member, former: *former, its, period, amounts }
        });
        let per = self.per.map_or("member", PartKind::name);
        JsonReport { by: self.by(), per, usage: usage.collect(), limits: &self.limits }
    }

    pub fn csv(&self) -> String {
        let its = self.per.map(|kind| [kind.name(), "label"]);
        let names = ["member", "former"].into_iter().chain(its.into_iter().flatten()).chain(["period"]);
        let mut text = csv_line(names.chain(RESOURCES.iter().map(|row| row.name)));
        for Line { member, former, its, period, amounts } in &self.lines {
            let numbers = RESOURCES.iter().map(|row| match number(row.resource, amounts.get(row.resource)) {
                Number::Whole(number) => number.to_string(),
                Number::Fraction(number) => format!("{number:.3}"),
            });
            let its =
                its.as_ref().map(|Its { name, label }| [name.clone(), label.clone().unwrap_or_default()]);
            let cells = [member.to_string(), former.to_string()].into_iter();
            let cells = cells.chain(its.into_iter().flatten()).chain([period.clone()]);
            text.push_str(&csv_line(cells.chain(numbers)));
        }
        text
    }

    pub fn text(&self, screen: Screen) -> String {
        let head = self.everybody.then_some("member").into_iter();
        let head = head.chain(self.per.map(PartKind::name)).chain([self.by()]);
        let head = head.map(|name| (name, Kind::Text));
        let columns = || COLUMNS.iter().filter(|(_, resource)| has(self.per, *resource));
        let mut table = Table::new(head.chain(columns().map(|(name, _)| (*name, Kind::Number))).collect());
        for Line { member, former, its, period, amounts } in &self.lines {
            let name = match former {
                true => format!("{member} (former)"),
                false => member.to_string(),
            };
            let head = self.everybody.then_some(name).into_iter();
            let head = head.chain(its.as_ref().map(Its::text)).chain([period.clone()]);
            let amounts = columns().map(|(_, resource)| human(*resource, amounts.get(*resource)));
            table.row(head.chain(amounts).collect());
        }
        let mut text = match self.lines.is_empty() {
            true => "nothing was used in this time\n".to_owned(),
            false => table.text(screen),
        };
        for Limit { value, set_by, used, until, month, .. } in &self.limits {
            text.push_str(&format!(
                "\n{used:.1} of {value} CPU hours used in {month} (max-cpu-hours-per-month, set by the {set_by}); \
                 a new month begins on {until} (UTC)\n"
            ));
        }
        text
    }
}

/// Cells as RFC 4180 has them.
fn csv_line(cells: impl Iterator<Item = impl AsRef<str>>) -> String {
    let quoted = |cell: &str| match cell.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    };
    let cells: Vec<String> = cells.map(|cell| quoted(cell.as_ref())).collect();
    cells.join(",") + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(member: &str) -> Report {
        let amounts =
            [(Resource::CpuSeconds, 11_520_500), (Resource::Builds, 12), (Resource::BytesUp, 1_288_490_189)];
        let line = |member: &str, former| Line {
            member: member.into(),
            former,
            its: None,
            period: "2026-11".into(),
            amounts: Amounts::from_iter(amounts),
        };
        Report {
            by: By::Month,
            per: None,
            everybody: true,
            lines: vec![line(member, false), line("bob~2", true)],
            limits: vec![],
        }
    }

    #[test]
    fn the_table_is_aligned_and_has_units() {
        assert_eq!(
            report("alice").text(Screen::default()),
            "member          month    builds  failed    CPU time  wall  memory  log       up  down  logins  sessions  fetched  store\n\
             alice           2026-11      12       0  3 h 12 min     0       0    0  1.2 GiB     0       0         0        0      0\n\
             bob~2 (former)  2026-11      12       0  3 h 12 min     0       0    0  1.2 GiB     0       0         0        0      0\n"
        );
    }

    #[test]
    fn the_reference_page_has_a_row_for_each_resource_and_no_other() {
        let page = include_str!("../../../../../docs/reference/commands.md");
        let (_, table) = page.split_once("| name | meaning |\n").expect("the table");
        let listed: Vec<&str> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
        let rows = RESOURCES.iter().map(|row| format!("| `{}` | {} |", row.name, row.help));
        assert_eq!(listed, rows.collect::<Vec<_>>(), "docs/reference/commands.md");
    }

    #[test]
    fn parts_have_their_names_in_each_form() {
        let mut report = report("alice");
        report.per = Some(PartKind::Ticket);
        let ticket = Part::new(PartKind::Ticket, "ticket:0123");
        report.lines[0].its = Some(Its::of(&ticket, Some("friend".to_owned())));
        report.lines[1].its = Some(Its::of(&Part::new(PartKind::Ticket, ledger::OTHER), None));
        let text = report.text(Screen::default());
        assert!(text.starts_with("member          ticket         month    builds"), "{text}");
        assert!(text.contains("alice           0123 (friend)  2026-11") && !text.contains("store"), "{text}");
        assert!(text.contains("bob~2 (former)  (other)        2026-11"), "{text}");
        let json = serde_json::to_value(report.json()).expect("JSON");
        let (first, second) = (&json["usage"][0], &json["usage"][1]);
        assert_eq!(
            (&json["per"], &first["ticket"], &first["label"]),
            (&"ticket".into(), &"0123".into(), &"friend".into())
        );
        assert_eq!((&second["ticket"], second["label"].is_null()), (&"(other)".into(), true));
        let csv = report.csv();
        assert!(csv.starts_with("member,former,ticket,label,period,cpu_seconds,"), "{csv}");
        assert!(
            csv.contains("alice,false,0123,friend,2026-11,") && csv.contains("bob~2,true,(other),,2026-11,"),
            "{csv}"
        );
    }

    #[test]
    fn json_has_plain_numbers() {
        let text = serde_json::to_string(&report("alice").json()).expect("JSON");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let line = &json["usage"][0];
        assert_eq!(
            (line["cpu_seconds"].as_f64(), line["builds"].as_u64()),
            (Some(11_520.5), Some(12)),
            "{text}"
        );
        assert_eq!(
            (line["bytes_up"].as_u64(), line["period"].as_str()),
            (Some(1_288_490_189), Some("2026-11"))
        );
    }

    #[test]
    fn a_cell_of_csv_stays_one_cell() {
        let text = report("a,\"b\"").csv();
        let mut lines = text.split("\r\n");
        let names = lines.next().expect("names");
        assert!(names.starts_with("member,former,period,cpu_seconds,wall_seconds,"), "{names}");
        assert!(
            lines.next().expect("a line").starts_with("\"a,\"\"b\"\"\",false,2026-11,11520.500,0.000,"),
            "{text}"
        );
        assert_eq!(lines.next().map(|line| line.matches(',').count()), Some(names.matches(',').count()));
    }
}
