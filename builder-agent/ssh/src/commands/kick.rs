//! `kick`: ends connections of a member. They can log in again; only the roster keeps somebody out.

use std::sync::Arc;

use super::maintainers::{Desk, Maintaining};
use super::{Command, Row, Wrong, arguments, json_line, shown, units};
use crate::records::{Kind, Open};
use crate::terminal::{ExitStatus, Terminal};

/// Longest reason, in characters.
const MAX_REASON: usize = 200;

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// The name of a member, or the number of one connection in `who`
    #[arg(value_name = "WHOM")]
    whom: String,
    /// What the client reads
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |arguments| Command::Maintaining(Maintaining::Kick(arguments)))
}

pub(super) async fn run(arguments: Arguments, terminal: Terminal<'_>, desk: Desk<'_>) -> ExitStatus {
    let Desk { agent, caller, records } = &desk;
    let stall = agent.config.limits.client_stall;
    let Arguments { whom, reason, json } = arguments;
    let reason = reason.map_or(String::new(), |text| format!(": {}", printable::start(&text, MAX_REASON)));
    let why: Arc<str> = format!(
        "{}, a maintainer, has ended this connection{reason}; you can log in again",
        caller.member.name
    )
    .into();
    // A member's name comes first: it may consist of digits.
    let mut kicked = records.connections.kick(&why, |open| *open.member.name == *whom);
    if kicked.is_empty()
        && let Ok(id) = whom.parse::<u64>()
    {
        kicked = records.connections.kick(&why, |open| open.id == id);
    }
    if kicked.is_empty() {
        let line = format!(
            "no member `{}` is logged in, and no connection has this number; see `who`",
            shown(&whom)
        );
        return terminal.fail(&line, stall).await;
    }
    let ids: Vec<u64> = kicked.iter().map(|open| open.id).collect();
    for Open { id, member, address, .. } in &kicked {
        tracing::warn!(connection = id, member = %member.name, by = %caller.member.name, "kicked");
        let text = format!("connection {id} of {}{reason}", member.name);
        let event = desk.event(Kind::Kick).from(*address);
        records.audit.note(event.saying(&text));
    }
    let text = match json {
        true => json_line(&serde_json::json!({ "connections": ids })),
        false => format!(
            "ended {}. Their builds end with them, and they can log in again: to keep somebody out, remove them from the \
             roster\n",
            units::counted(ids.len(), "connection")
        ),
    };
    terminal.print(&text, stall).await
}
