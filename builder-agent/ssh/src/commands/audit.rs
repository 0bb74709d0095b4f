//! `audit`: what happened at this box that concerns who may use it.

use std::time::Duration;

use ::roster::date;

use super::maintainers::{Desk, Maintaining};
use super::table::{self, Table};
use super::{Command, Row, Wrong, arguments, units};
use crate::records::{Event, json_lines};
use crate::terminal::{ExitStatus, Terminal};

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// Print at most so many events, the newest ones
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: usize,
    /// Only events of this last time, such as 2h or 7d
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    since: Option<Duration>,
    /// Only events that this member caused
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |arguments| Command::Maintaining(Maintaining::Audit(arguments)))
}

pub(super) async fn run(arguments: Arguments, terminal: Terminal<'_>, desk: Desk<'_>) -> ExitStatus {
    let Arguments { last, since, member, json } = arguments;
    let from = since.map_or(0, |since| date::now().saturating_sub(since.as_secs()));
    let mut events = desk.records.audit.events();
    events.retain(|event| event.time >= from && (member.is_none() || event.member == member));
    events.drain(..events.len().saturating_sub(last));
    let text = match json {
        true => json_lines(&events),
        false => text(&events, &terminal),
    };
    terminal.print(&text, desk.agent.config.limits.client_stall).await
}

fn text(events: &[Event], terminal: &Terminal<'_>) -> String {
    if events.is_empty() {
        return "no such event is kept\n".to_owned();
    }
    let mut table = Table::new(vec![
        ("time", table::Kind::Text),
        ("event", table::Kind::Text),
        ("member", table::Kind::Text),
        ("connection", table::Kind::Number),
        ("address", table::Kind::Text),
        ("detail", table::Kind::Prose),
    ]);
    for event in events {
        table.row(vec![
            date::shown(event.time),
            event.event.name().to_owned(),
            event.member.clone().unwrap_or_default(),
            event.connection.map_or(String::new(), |id| id.to_string()),
            event.address.map_or(String::new(), |address| address.to_string()),
            event.detail.clone().unwrap_or_default(),
        ]);
    }
    table.text(terminal.screen)
}
