//! `status`: the name of the box, its builds, its roster, and the members who are left out of that roster because of a
//! mistake. With `--watch` it is printed again whenever it changes.
//!
//! Every member may read it: rosters are public, and a member who is left out cannot log in to ask. With `--json` the
//! answer is one object on one line; fields are added, never renamed.

use std::fmt::Write as _;

use ::roster::date;
use builds::Load;
use builds::drain::Drained;
use daemon::Agent;
use members::Member;
use serde::Serialize;

use super::watching::{self, Look};
use super::{Command, Row, Wrong, arguments, units};
use crate::records::{Records, Removal};
use crate::terminal::{Colour, ExitStatus, Screen, Terminal};
use store::Room;

mod store;

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// Print it again whenever it changes, until you hang up or press Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Status {
    name: String,
    version: &'static str,
    systems: Vec<String>,
    sandbox: &'static str,
    /// The reason why the box is weaker than it could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    weaker: Option<String>,
    signing_key: String,
    builds: Builds,
    homes: Homes,
    /// The git repositories that homes show.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mirrors: Vec<Mirror>,
    /// Why the box starts no builds, if a maintainer has drained it.
    #[serde(skip_serializing_if = "Option::is_none")]
    drained: Option<Drained>,
    /// For maintainers.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Room>,
    roster: Roster,
}

/// How many homes of everybody there are, and how many there can be.
#[derive(Serialize)]
struct Homes {
    open: usize,
    most: usize,
    /// Why there are none on this box.
    #[serde(skip_serializing_if = "Option::is_none")]
    none_because: Option<String>,
}

/// One of them; `None`: it has not been fetched yet, or its status cannot be read.
#[derive(Serialize)]
struct Mirror {
    name: String,
    status: Option<mirrors::Status>,
}

impl Mirror {
    fn text(&self) -> String {
        let Some(status) = &self.status else { return "not fetched yet".into() };
        let mut text = match (&status.commit, status.committed) {
            (Some(commit), Some(committed)) => format!("commit {commit} of {}", date::shown(committed)),
            _ => "empty".to_owned(),
        };
        if let Some(checked) = status.checked {
            text.push_str(&format!(", checked {}", date::shown(checked)));
        }
        if let Some(failure) = &status.failure {
            text.push_str(&format!(
                "; failed at {}: {}",
                date::shown(failure.at),
                printable::start(&failure.why, 300)
            ));
        }
        text
    }
}

/// How many builds of everybody there are, and how many can run.
#[derive(Serialize)]
struct Builds {
    running: usize,
    waiting: usize,
    slots: usize,
}

#[derive(Serialize)]
struct Roster {
    source: String,
    commit: Option<String>,
    members: usize,
    /// When the agent began to use this roster, in seconds since 1970.
    loaded: u64,
    left_out: Vec<roster::LeftOut>,
    /// The last members who left it. For maintainers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    removed: Vec<Removal>,
    /// What the synchroniser reports; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    synchronisation: Option<roster::Status>,
    /// The reason why the box lets in maintainers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    closed: Option<String>,
}

impl Status {
    fn of(agent: &Agent, member: &Member, records: &Records) -> Self {
        let config = &agent.config;
        let now = agent.roster.borrow().clone();
        let Load { running, waiting } = agent.realiser.scheduler.load(&|_| true);
        Self {
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            systems: config.systems.clone(),
            sandbox: config.sandbox.backend.name(),
            weaker: builds::backend::weaker(&config.sandbox),
            signing_key: agent.signing_key.to_string(),
            builds: Builds { running, waiting, slots: config.limits.max_jobs },
            homes: Homes {
                open: agent.homes.list().len(),
                most: agent.homes.most(),
                none_because: agent.homes.none_because().map(str::to_owned),
            },
            mirrors: config
                .mirrors
                .repositories
                .iter()
                .map(|repository| Mirror {
                    name: repository.name().to_owned(),
                    status: mirrors::Status::read(&config.mirrors.dir, repository.name()).ok().flatten(),
                })
                .collect(),
            drained: agent.realiser.scheduler.drained().map(|drained| (*drained).clone()),
            store: super::is_maintainer(&now, member).then(|| Room::of(agent)).flatten(),
            roster: Roster {
                source: now.source.clone(),
                commit: now.commit.clone(),
                members: now.len(),
                loaded: now.loaded,
                left_out: now.left_out.clone(),
                removed: match super::is_maintainer(&now, member) {
                    true => records.removals.list(),
                    false => Vec::new(),
                },
                synchronisation: agent.checks.report().map(|report| (*report).clone()),
                closed: agent.checks.too_old(),
            },
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "box          {}, barnraiser {}\n\
             builds       {}, in sandboxes of kind {}\n\
             signing key  {}\n",
            self.name,
            self.version,
            self.systems.join(" "),
            self.sandbox,
            self.signing_key,
        );
        let Builds { running, waiting, slots } = self.builds;
        let _ = writeln!(text, "load         {running} of {slots} slots in use, {waiting} waiting");
        let Homes { open, most, none_because } = &self.homes;
        let _ = match none_because {
            Some(why) => writeln!(text, "homes        none: {why}"),
            None => writeln!(text, "homes        {open} of {most} in use"),
        };
        for mirror in &self.mirrors {
            let _ = writeln!(
                text,
                "mirror       /{}.git: {}",
                mirror.name,
                mirror.text().replace('\n', "\n             ")
            );
        }
        if let Some(drained) = &self.drained {
            let _ = writeln!(text, "drained      {drained}");
            if let Some(deadline) = drained.deadline {
                let _ = writeln!(text, "             what still runs is ended at {}", date::shown(deadline));
            }
        }
        if let Some(store) = &self.store {
            store.text(&mut text);
        }
        self.roster.text(&mut text);
        if let Some(weaker) = &self.weaker {
            text.push_str(&format!("warning      {weaker}\n"));
        }
        for roster::LeftOut { name, error } in &self.roster.left_out {
            text.push_str(&format!("left out     {name}: {error}\n"));
        }
        text
    }
}

impl Roster {
    fn text(&self, text: &mut String) {
        let Roster { source, commit, members, .. } = self;
        let commit = commit.as_ref().map(|commit| format!(", commit {commit}")).unwrap_or_default();
        let members = units::counted(*members, "member");
        let _ = writeln!(text, "roster       {source}{commit}, {members}");
        let report = self.synchronisation.as_ref();
        let loaded = date::shown(self.loaded);
        match report
            .and_then(|report| report.accepted.as_ref())
            .filter(|a| Some(&a.commit) == self.commit.as_ref())
        {
            Some(roster::status::Accepted { committed, accepted, .. }) => {
                let (committed, accepted) = (date::shown(*committed), date::shown(*accepted));
                let _ =
                    writeln!(text, "in force     since {loaded}; committed {committed}, accepted {accepted}");
            }
            None => {
                let _ = writeln!(text, "in force     since {loaded}");
            }
        }
        if let Some(report) = report {
            let checked = report.checked.map_or("never".to_owned(), date::shown);
            let _ = writeln!(text, "checked      {checked}");
        }
        if let Some(problem) = report.and_then(|report| report.problem.as_ref()) {
            let what = match &problem.commit {
                Some(commit) => format!("refused      commit {commit}"),
                None => "not checked ".to_owned(),
            };
            let (since, reason) =
                (date::shown(problem.since), problem.reason.replace('\n', "\n             "));
            let _ = writeln!(text, "{what} since {since}:\n             {reason}");
        }
        if let Some(closed) = &self.closed {
            let _ = writeln!(text, "closed       {closed}");
        }
        for Removal { member, removed, ended, .. } in &self.removed {
            let since = date::shown(*removed);
            let ended = match ended {
                Some(ended) => format!("ended {} s later", ended.saturating_sub(*removed)),
                None => "go on".to_owned(),
            };
            let _ = writeln!(text, "removed      {member} at {since}; sessions and builds {ended}");
        }
    }
}

/// The output of the command.
fn text(agent: &Agent, member: &Member, records: &Records, json: bool, screen: Screen) -> String {
    let status = Status::of(agent, member, records);
    match json {
        true => super::json_line(&status),
        false => painted(&status.text(), screen),
    }
}

/// The same text, in which the first words of lines about trouble have a colour.
fn painted(text: &str, screen: Screen) -> String {
    let paint = |line: &str| {
        let head = HEADS.iter().find(|(head, _)| line.starts_with(head));
        head.map_or(line.to_owned(), |(head, colour)| screen.paint(*colour, head) + &line[head.len()..])
    };
    text.split_inclusive('\n').map(paint).collect()
}

/// How lines about the state of the box begin, with the spaces behind: text of strangers is further to the right.
const HEADS: &[(&str, Colour)] = &[
    ("in force     ", Colour::Green),
    ("drained      ", Colour::Yellow),
    ("warning      ", Colour::Yellow),
    ("left out     ", Colour::Yellow),
    ("not checked  ", Colour::Red),
    ("refused      ", Colour::Red),
    ("closed       ", Colour::Red),
];

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Status)
}

pub(super) async fn run(
    arguments: Arguments,
    terminal: Terminal<'_>,
    agent: &Agent,
    member: &Member,
    records: &Records,
) -> ExitStatus {
    let Arguments { watch, json } = arguments;
    let stall = agent.config.limits.client_stall;
    if !watch {
        let text = text(agent, member, records, json, terminal.screen);
        return terminal.print(&text, stall).await;
    }
    let mut shown = String::new();
    let next = |screen: Screen| {
        let now = text(agent, member, records, json, screen);
        if now == shown {
            return Look::Same;
        }
        shown.clone_from(&now);
        // On a terminal in the same place, else one after the other.
        let place = match (screen.is_terminal(), json) {
            (true, false) => watching::CLEAR,
            (false, false) => "\n",
            (_, true) => "",
        };
        Look::New(format!("{place}{now}"))
    };
    watching::watch(terminal, agent, member, next).await
}
