//! `who`: the connections of this moment. A member sees their own, a maintainer those of everybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::roster::date;
use builds::Load;
use daemon::Agent;
use members::Member;
use serde::Serialize;

use super::printing::Json;
use super::table::{Kind, Table};
use super::{Command, Row, Wrong, arguments, json_line};
use crate::records::{Open, Records};
use crate::terminal::{ExitStatus, Terminal};

#[derive(Serialize)]
struct Line {
    /// The number of the connection in the log, and for `kick`.
    connection: u64,
    member: String,
    address: String,
    /// The login, in seconds since 1970.
    since: u64,
    /// The commands that run, and how often each.
    commands: BTreeMap<&'static str, usize>,
    /// Builds of the member that run or wait, on whichever connection.
    builds: usize,
}

impl Line {
    fn of(open: &Open, builds: usize) -> Self {
        let mut commands = BTreeMap::new();
        for command in open.sessions.values() {
            *commands.entry(*command).or_default() += 1;
        }
        Self {
            connection: open.id,
            member: open.member.name.to_string(),
            address: open.address.to_string(),
            since: open.since,
            commands,
            builds,
        }
    }

    fn commands(&self) -> String {
        let each = |(name, count): (&&str, &usize)| match count {
            1 => (*name).to_owned(),
            count => format!("{name} ({count} times)"),
        };
        self.commands.iter().map(each).collect::<Vec<_>>().join(", ")
    }
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Who)
}

pub(super) async fn run(
    json: Json,
    terminal: Terminal<'_>,
    agent: &Agent,
    member: &Arc<Member>,
    records: &Records,
) -> ExitStatus {
    let all = super::is_maintainer(&agent.roster.borrow(), member);
    let of = |other: &Member| all || other.id == member.id;
    let open = records.connections.list(of);
    let mut builds: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for open in &open {
        let of_member = |other: &Member| other.id == open.member.id;
        let count = || {
            let Load { running, waiting } = agent.realiser.scheduler.load(&of_member);
            running + waiting
        };
        builds.entry(open.member.id.clone()).or_insert_with(count);
    }
    let lines: Vec<Line> = open.iter().map(|open| Line::of(open, builds[&open.member.id])).collect();
    let text = match json.json {
        true => json_line(&lines),
        false => {
            let mut table = Table::new(vec![
                ("connection", Kind::Number),
                ("member", Kind::Text),
                ("since", Kind::Text),
                ("address", Kind::Text),
                ("builds", Kind::Busy),
                ("runs", Kind::Prose),
            ]);
            for line in &lines {
                table.row(vec![
                    line.connection.to_string(),
                    line.member.clone(),
                    date::shown(line.since),
                    line.address.clone(),
                    line.builds.to_string(),
                    line.commands(),
                ]);
            }
            table.text(terminal.screen)
        }
    };
    terminal.print(&text, agent.config.limits.client_stall).await
}
