//! `home`: what is known of the member's home, and its end.
//!
//! To be in it is no command: `ssh box` on a terminal leads there, and so does every command that the box does not have.

use std::sync::Arc;

use ::roster::date;
use daemon::{Agent, Caller};
use serde::Serialize;

use super::{Command, Row, Wrong, arguments, json_line, units};
use crate::terminal::{ExitStatus, Terminal};

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
enum Action {
    /// Whether you have a home now, and what it is made with
    Show {
        /// Print one JSON object on one line
        #[arg(long)]
        json: bool,
    },
    /// Throw your home away now, with all its sessions and files; the next one is new
    End {
        /// Print one JSON object on one line
        #[arg(long)]
        json: bool,
    },
}

/// The member's home.
#[derive(Serialize)]
struct Shown {
    open: bool,
    /// Why the member has none on this box.
    #[serde(skip_serializing_if = "Option::is_none")]
    none_because: Option<String>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    /// Connections that lead into it.
    connections: usize,
    vcpus: u8,
    memory_mib: u32,
}

impl Shown {
    fn of(agent: &Agent, caller: &Caller) -> Self {
        let (none_because, settings) = (crate::home::closed_to(agent, caller), &agent.config.homes);
        match agent.homes.of(&caller.member) {
            Some(home) => Self {
                open: true,
                none_because,
                since: Some(home.since),
                connections: home.visits,
                vcpus: home.vcpus,
                memory_mib: home.memory_mib,
            },
            None => Self {
                open: false,
                none_because,
                since: None,
                connections: 0,
                vcpus: settings.vcpus,
                memory_mib: settings.memory_mib,
            },
        }
    }

    fn text(&self) -> String {
        if let Some(why) = &self.none_because {
            return format!("{why}\n");
        }
        let Some(since) = self.since else {
            return "you have no home now; `ssh box` on a terminal, or any command that is none of the box's, makes one\n"
                .to_owned();
        };
        format!(
            "your home is there since {}, with {} and {} MiB of memory; {} into it\n",
            date::shown(since),
            units::counted(self.vcpus.into(), "processor"),
            self.memory_mib,
            units::counted(self.connections, "connection"),
        )
    }
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Home)
}

pub(super) async fn run(
    Arguments { action }: Arguments,
    terminal: Terminal<'_>,
    agent: &Arc<Agent>,
    caller: &Caller,
) -> ExitStatus {
    let stall = agent.config.limits.client_stall;
    let text = match action {
        Action::Show { json } => {
            let shown = Shown::of(agent, caller);
            if json { json_line(&shown) } else { shown.text() }
        }
        Action::End { json } => {
            let ended = agent.homes.end(&caller.member, "you have thrown it away (`home end`)").await;
            match (json, ended) {
                (true, ended) => json_line(&serde_json::json!({ "ended": ended })),
                (false, true) => "your home is thrown away\n".to_owned(),
                (false, false) => "you had no home\n".to_owned(),
            }
        }
    };
    terminal.print(&text, stall).await
}
