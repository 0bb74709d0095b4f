//! `usage`: what a member has used, by day or month, from the ledger. Maintainers also see what others have used.

use std::sync::Arc;

use daemon::Agent;
use ledger::{By, Month, Principal};
use members::{Member, Roster};

use super::{Command, Row, Wrong, arguments};
use crate::terminal::{ExitStatus, Screen, Terminal};
use report::{Line, Report};

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
    #[arg(long, value_enum, default_value = "text", conflicts_with = "json")]
    format: Format,
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
    let sums = agent.ledger.usage(who.as_ref(), by, within);
    if sums.len() > MAX_LINES {
        return Err(format!(
            "this report has {} lines, at most {MAX_LINES} are printed; choose one --month, or --by month, or one --member",
            sums.len()
        ));
    }
    let lines = sums.into_iter().map(|((who, first), amounts)| {
        let now = roster.by_id(&who.member);
        let name = now.map_or_else(|| who.member.clone(), |member| member.name.clone());
        let period = match by {
            By::Day => first.to_string(),
            By::Month => Month::of(first).to_string(),
        };
        Line { member: name, former: now.is_none(), period, amounts }
    });
    let report = Report {
        by,
        everybody: who.is_none(),
        lines: lines.collect(),
        limits: match who.and_then(|who| roster.by_id(&who.member)) {
            Some(member) => report::limits_of(agent, &roster, member),
            None => Vec::new(),
        },
    };
    let format = if arguments.json { Format::Json } else { arguments.format };
    Ok(match format {
        Format::Json => super::json_line(&report.json()),
        Format::Text => report.text(screen),
        Format::Csv => report.csv(),
    })
}

/// The principal whose usage is shown; `None`: everybody's.
fn whose(
    arguments: &Arguments,
    agent: &Agent,
    roster: &Roster,
    member: &Member,
) -> Result<Option<Principal>, String> {
    let other = arguments.member.as_deref().filter(|name| *name != &*member.name);
    if !arguments.all && other.is_none() {
        return Ok(Some(Principal::of(&member.id)));
    }
    if !super::is_maintainer(roster, member) {
        return Err("only maintainers see what others use (`role = \"maintainer\"` in the roster); without --all and \
                    --member, `usage` shows what you use"
            .to_owned());
    }
    let Some(name) = other else { return Ok(None) };
    let id: Option<Arc<str>> = roster.by_name(name).map(|member| member.id.clone());
    let former = || {
        Some(Principal::member(name)).filter(|who| !agent.ledger.usage(Some(who), By::Month, None).is_empty())
    };
    let found = id.map(|id| Principal::of(&id)).or_else(former);
    found.map(Some).ok_or_else(|| {
        let name = printable::start(name, 40);
        format!("there is no member `{name}` in the roster, and nobody of that name in the ledger; --all lists everybody")
    })
}
