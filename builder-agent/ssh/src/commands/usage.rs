//! `usage`: what a member has used, by day or month, from the ledger; as a whole, or with each key, for each ticket, for each
//! tag. Maintainers also see what others have used.

use std::collections::HashMap;
use std::sync::Arc;

use ::roster::Key;
use daemon::Agent;
use ledger::{By, Kind, Month, Part};
use members::{Member, Roster};

use super::{Command, Row, Wrong, arguments};
use crate::terminal::{ExitStatus, Screen, Terminal};
use report::{Its, Line, Report};

mod report;
mod units;

/// Most lines of one answer, which is in memory as a whole. A year of a hundred members has so many days.
const MAX_LINES: usize = 40_000;

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// Only this month (UTC), such as 2026-11
    #[arg(long, value_name = "YYYY-MM", value_parser = month)]
    month: Option<Month>,
    /// What one line is for; days are those of this month, unless --month names another
    #[arg(long, value_enum, default_value = "month", value_name = "PERIOD")]
    by: Period,
    /// What one line is about
    #[arg(long, value_enum, default_value = "member", value_name = "WHAT")]
    per: Per,
    #[arg(long, value_enum, default_value = "text", conflicts_with = "json")]
    format: Format,
    /// The same as --format csv
    #[arg(long, conflicts_with_all = ["json", "format"])]
    csv: bool,
    /// The same as --format json: one object on one line
    #[arg(long)]
    json: bool,
    /// Of every member, former ones included (for maintainers)
    #[arg(long, conflicts_with = "member")]
    all: bool,
    /// Of this member (for maintainers)
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Period {
    Day,
    Month,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Per {
    /// All that a member used
    Member,
    /// What was used with a key of the member, named by its fingerprint
    Key,
    /// What was used with a ticket that the member made
    Ticket,
    /// Builds with a word of the setting `tags`; a build with two tags is in two lines
    Tag,
}

impl Per {
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Member => None,
            Self::Key => Some(Kind::Key),
            Self::Ticket => Some(Kind::Ticket),
            Self::Tag => Some(Kind::Tag),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table for people
    Text,
    /// One object on one line
    Json,
    /// RFC 4180, with a line of names
    Csv,
}

fn month(text: &str) -> Result<Month, &'static str> {
    Month::parse(text).ok_or("not a month; write it as 2026-11")
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Usage)
}

/// Prints the report, or one line on stderr if it is refused. A report about every member can take a second, so a thread of
/// the caller's share makes it.
pub(super) async fn run(
    arguments: Arguments,
    terminal: Terminal<'_>,
    agent: Arc<Agent>,
    member: Arc<Member>,
) -> ExitStatus {
    let (stall, workers) = (agent.config.limits.client_stall, agent.threads.of(&member.payer().id));
    let screen = terminal.screen;
    match workers.plan(move || text(&arguments, &agent, &member, screen)).await {
        Ok(Ok(text)) => terminal.print(&text, stall).await,
        Ok(Err(why)) => terminal.fail(&why, stall).await,
        Err(lost) => {
            tracing::error!(error = %lost, "a report on usage was lost");
            terminal.fail(&format!("the report was lost because of the box: {lost}"), stall).await
        }
    }
}

fn text(arguments: &Arguments, agent: &Agent, member: &Member, screen: Screen) -> Result<String, String> {
    let roster = agent.roster.borrow().clone();
    let who = whose(arguments, agent, &roster, member)?;
    let by = match arguments.by {
        Period::Day => By::Day,
        Period::Month => By::Month,
    };
    let within = match by {
        By::Day => Some(arguments.month.unwrap_or_else(|| agent.ledger.this_month())),
        By::Month => arguments.month,
    };
    let per = arguments.per.kind();
    let sums = agent.ledger.usage(who.as_deref(), per, by, within);
    if sums.len() > MAX_LINES {
        return Err(format!(
            "this report has {} lines, at most {MAX_LINES} are printed; choose one --month, or --by month, or one --member",
            sums.len()
        ));
    }
    let labels = labels(agent, &roster, per, who.as_ref());
    let lines = sums.into_iter().map(|((who, first), amounts)| {
        let now = roster.by_id(&who.member);
        let name = now.map_or_else(|| who.member.clone(), |member| member.name.clone());
        let its = who.part.map(|part| Its::of(&part, labels.get(&part).cloned()));
        let period = match by {
            By::Day => first.to_string(),
            By::Month => Month::of(first).to_string(),
        };
        Line { member: name, former: now.is_none(), its, period, amounts }
    });
    let report = Report {
        by,
        per,
        everybody: who.is_none(),
        lines: lines.collect(),
        limits: match who.and_then(|who| roster.by_id(&who)) {
            Some(member) => report::limits_of(agent, &roster, member),
            None => Vec::new(),
        },
    };
    let format = match arguments {
        Arguments { json: true, .. } => Format::Json,
        Arguments { csv: true, .. } => Format::Csv,
        Arguments { format, .. } => *format,
    };
    Ok(match format {
        Format::Json => super::json_line(&report.json()),
        Format::Text => report.text(screen),
        Format::Csv => report.csv(),
    })
}

/// What people call these parts of `who`, or of everybody: the names of tickets that are still listed, and the comments of
/// keys in the roster.
fn labels(
    agent: &Agent,
    roster: &Roster,
    per: Option<Kind>,
    who: Option<&Arc<str>>,
) -> HashMap<Part, String> {
    match per {
        Some(Kind::Ticket) => {
            let tickets = agent.tickets.list(|ticket| who.is_none_or(|who| ticket.maker == *who));
            let label =
                |ticket: Arc<tickets::Ticket>| (Part::new(Kind::Ticket, &ticket.id), ticket.name.to_string());
            tickets.into_iter().map(label).collect()
        }
        Some(Kind::Key) => {
            let keys: Vec<&Arc<Key>> = match who {
                Some(who) => roster.by_id(who).map(|member| roster.keys_of(member)).unwrap_or_default(),
                None => roster.keys().collect(),
            };
            let label = |key: &Arc<Key>| (Part::new(Kind::Key, &key.fingerprint()), key.comment.clone());
            keys.into_iter().map(label).collect()
        }
        Some(Kind::Tag) | None => HashMap::new(),
    }
}

/// The identity of the member whose usage is shown; `None`: everybody's.
fn whose(
    arguments: &Arguments,
    agent: &Agent,
    roster: &Roster,
    member: &Member,
) -> Result<Option<Arc<str>>, String> {
    let other = arguments.member.as_deref().filter(|name| *name != &*member.name);
    if !arguments.all && other.is_none() {
        return Ok(Some(member.id.clone()));
    }
    if !super::is_maintainer(roster, member) {
        return Err("only maintainers see what others use (`role = \"maintainer\"` in the roster); without --all and \
                    --member, `usage` shows what you use"
            .to_owned());
    }
    let Some(name) = other else { return Ok(None) };
    let id: Option<Arc<str>> = roster.by_name(name).map(|member| member.id.clone());
    let former = || {
        let used = agent.ledger.usage(Some(name), None, By::Month, None);
        (!used.is_empty()).then(|| Arc::from(name))
    };
    let found = id.or_else(former);
    found.map(Some).ok_or_else(|| {
        let name = printable::start(name, 40);
        format!("there is no member `{name}` in the roster, and nobody of that name in the ledger; --all lists everybody")
    })
}
