//! `drain` and `undrain`: whether the box starts builds.
//!
//! Not here: what a drained box does with builds (`builds::drain`) and with sessions (`daemon::drained`).

use std::time::Duration;

use ::roster::date;
use builds::drain::{Drained, MAX_REASON};

use super::maintainers::{Desk, Maintaining};
use super::printing::Json;
use super::{Command, Row, Wrong, arguments, json_line, units};
use crate::records::Kind;
use crate::terminal::{ExitStatus, Terminal};

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// End builds that still run after this time, such as 30m or 2h; without it they run to their end
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    deadline: Option<Duration>,
    /// What members and their clients read, in a few words
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

fn reason(text: &str) -> Result<String, String> {
    match text.chars().count() {
        0 => Err("an empty reason".to_owned()),
        count if count > MAX_REASON => Err(format!("{count} characters, at most {MAX_REASON} are shown")),
        _ => Ok(printable::line(text)),
    }
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |arguments| Command::Maintaining(Maintaining::Drain(arguments)))
}

pub(super) fn parse_end(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |json| Command::Maintaining(Maintaining::Undrain(json)))
}

/// Drains the box, or gives a drained box another reason and deadline.
pub(super) async fn begin(arguments: Arguments, terminal: Terminal<'_>, desk: Desk<'_>) -> ExitStatus {
    let Desk { agent, caller, records } = &desk;
    let stall = agent.config.limits.client_stall;
    let Arguments { deadline, reason, json } = arguments;
    let (now, scheduler) = (date::now(), agent.realiser.scheduler.clone());
    let drained = Drained {
        by: caller.member.name.to_string(),
        since: scheduler.drained().map_or(now, |earlier| earlier.since),
        deadline: deadline.map(|deadline| now + deadline.as_secs()),
        reason,
    };
    let noted = drained.clone();
    let draining = tokio::task::spawn_blocking(move || scheduler.drain(noted)).await;
    let left = match draining.map_err(std::io::Error::other).and_then(|drained| drained) {
        Ok(left) => left,
        Err(error) => {
            tracing::error!(%error, "the box cannot be drained");
            let why =
                format!("the box is not drained, because that cannot be written down: {error}; see its disk");
            return terminal.fail(&why, stall).await;
        }
    };
    let until = drained.deadline.map_or("to their end".to_owned(), |at| format!("until {}", date::shown(at)));
    tracing::warn!(member = %caller.member.name, reason = drained.reason, running = left.running, ended = left.ended, "the box is drained");
    let said = format!("{until}: {}", drained.reason.as_deref().unwrap_or("no reason given"));
    let event = desk.event(Kind::Drain);
    records.audit.note(event.saying(&said));
    let text = match json {
        true => json_line(&serde_json::json!({
            "drained": drained, "running": left.running, "ended": left.ended,
        })),
        false => format!(
            "the box is drained: it starts no builds. {} still {}, {until}; {} waited and {} ended. `undrain` ends this\n",
            units::counted(left.running, "build"),
            if left.running == 1 { "runs" } else { "run" },
            units::counted(left.ended, "build"),
            if left.ended == 1 { "was" } else { "were" },
        ),
    };
    terminal.print(&text, stall).await
}

/// Lets the box start builds again.
pub(super) async fn end(json: Json, terminal: Terminal<'_>, desk: Desk<'_>) -> ExitStatus {
    let Desk { agent, caller, records } = &desk;
    let stall = agent.config.limits.client_stall;
    let scheduler = agent.realiser.scheduler.clone();
    let ended = tokio::task::spawn_blocking(move || scheduler.undrain()).await;
    let was = match ended.map_err(std::io::Error::other).and_then(|ended| ended) {
        Ok(was) => was,
        Err(error) => {
            tracing::error!(%error, "the drain cannot be ended");
            let why =
                format!("the box stays drained, because its file cannot be removed: {error}; see its disk");
            return terminal.fail(&why, stall).await;
        }
    };
    if was.is_some() {
        tracing::warn!(member = %caller.member.name, "the box is no longer drained");
        records.audit.note(desk.event(Kind::Undrain));
    }
    let text = match (json.json, &was) {
        (true, was) => json_line(&serde_json::json!({ "was_drained": was.as_deref() })),
        (false, Some(was)) => {
            format!("the box starts builds again; it was drained since {}\n", date::shown(was.since))
        }
        (false, None) => "the box was not drained; it starts builds\n".to_owned(),
    };
    terminal.print(&text, stall).await
}
