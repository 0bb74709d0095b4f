//! `builds list` and `builds cancel`: the builds that run or wait at this moment.
//!
//! A member sees and cancels the requests of that member only, also where another member waits for the same build.
//! Maintainers can name all members' with `--all`.

use std::sync::Arc;
use std::time::Duration;

use builds::Listed;
use daemon::Agent;
use members::Member;
use serde::Serialize;

use super::{Command, Row, Wrong, arguments, json_line};
use crate::terminal::{ExitStatus, Terminal};

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
enum Action {
    /// List your builds that run or wait
    List {
        /// Those of all members; for maintainers
        #[arg(long)]
        all: bool,
        /// Print one JSON array on one line
        #[arg(long)]
        json: bool,
    },
    /// End your requests for a build, as if your clients had disconnected
    Cancel {
        /// The number of the build in `builds list`
        id: u64,
        /// The requests of all members; for maintainers
        #[arg(long)]
        all: bool,
        /// Print one JSON object on one line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct Line {
    id: u64,
    drv: String,
    member: String,
    /// `running` or `waiting`.
    state: &'static str,
    /// Seconds since the builder was started, or since the build began to wait.
    seconds: u64,
    requests: usize,
}

impl Line {
    fn of(listed: &Listed) -> Self {
        let (state, time) = match listed.running {
            Some(time) => ("running", time),
            None => ("waiting", listed.age),
        };
        Self {
            id: listed.id,
            drv: listed.drv.to_absolute_path(),
            member: listed.member.to_string(),
            state,
            seconds: time.as_secs(),
            requests: listed.requests,
        }
    }

    /// `all`: the line names the member.
    fn text(&self, all: bool) -> String {
        let Self { id, drv, member, state, seconds, requests } = self;
        let time = time(Duration::from_secs(*seconds));
        let member = if all { format!("{member:<16}  ") } else { String::new() };
        let requests = if *requests > 1 { format!("  ({requests} requests)") } else { String::new() };
        format!("{id:<6}  {state}  {time:>8}  {member}{drv}{requests}\n")
    }
}

/// `2 h 05 m`, `3 m 07 s` or `12 s`.
fn time(time: Duration) -> String {
    let (seconds, minutes) = (time.as_secs() % 60, time.as_secs() / 60);
    match minutes {
        0 => format!("{seconds} s"),
        1..60 => format!("{minutes} m {seconds:02} s"),
        _ => format!("{} h {:02} m", minutes / 60, minutes % 60),
    }
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Builds)
}

pub(super) async fn run(
    arguments: Arguments,
    terminal: Terminal<'_>,
    agent: &Agent,
    member: &Arc<Member>,
) -> ExitStatus {
    let stall = agent.config.limits.client_stall;
    let wants_all =
        matches!(arguments.action, Action::List { all: true, .. } | Action::Cancel { all: true, .. });
    if wants_all && !super::is_maintainer(&agent.roster.borrow(), member) {
        return terminal
            .fail("`--all` is for maintainers; without it the command is about your builds", stall)
            .await;
    }
    let of = |other: &Member| wants_all || other.id == member.id;
    let scheduler = &agent.realiser.scheduler;
    match arguments.action {
        Action::List { all, json } => {
            let lines: Vec<Line> = scheduler.list(&of).iter().map(Line::of).collect();
            let text = match json {
                true => json_line(&lines),
                false => lines.iter().map(|line| line.text(all)).collect(),
            };
            terminal.print(&text, stall).await
        }
        Action::Cancel { id, json, .. } => match scheduler.cancel(id, &of) {
            0 => {
                let line = format!("no build {id} runs or waits for you; `builds list` has the numbers");
                terminal.fail(&line, stall).await
            }
            requests => {
                tracing::info!(build = id, member = %member.name, requests, "build cancelled by a command");
                let text = match json {
                    true => json_line(&serde_json::json!({ "id": id, "requests": requests })),
                    false => format!(
                        "build {id}: ended {requests} {}\n",
                        if requests == 1 { "request" } else { "requests" }
                    ),
                };
                terminal.print(&text, stall).await
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_exact_as_people_read_them() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (187, "3 m 07 s"), (7500, "2 h 05 m"), (360_000, "100 h 00 m")]
        {
            assert_eq!(time(Duration::from_secs(seconds)), text);
        }
    }
}
