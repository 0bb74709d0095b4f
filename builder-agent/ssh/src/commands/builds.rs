//! `builds`: those that run or wait at this moment: a list, one of them with its log, their changes, and their end.
//!
//! A member sees and cancels the requests of that member only, also where another member waits for the same build.
//! Maintainers can name all members' with `--all`.

use std::sync::Arc;

use builds::Listed;
use daemon::Agent;
use members::Member;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use super::table::{Kind, Table};
use super::{Command, Row, Wrong, arguments, json_line, units, watching};
use crate::records::{Event, Records};
use crate::terminal::{ExitStatus, Screen, Terminal};
use changes::Changes;
use line::Line;

mod changes;
mod line;

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

/// Options of every action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
struct Options {
    /// Those of all members; for maintainers
    #[arg(long)]
    all: bool,
    /// Print JSON: one value on one line, or one object a line for `watch`
    #[arg(long)]
    json: bool,
}

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
enum Action {
    /// List your builds that run or wait
    List {
        #[command(flatten)]
        options: Options,
    },
    /// What is known about one build
    Show {
        /// The number of the build in `builds list`
        id: u64,
        #[command(flatten)]
        options: Options,
    },
    /// The log of a build from its start, and on until it ends; `log PATH` has the logs of builds that have ended
    Log {
        /// The number of the build in `builds list`
        id: u64,
        /// Also of another member's build; for maintainers
        #[arg(long)]
        all: bool,
    },
    /// Print each change of your builds until you hang up or press Ctrl-C, or of one build until it ends; status 1 if it was
    /// not built
    Watch {
        /// The number of the build in `builds list`
        id: Option<u64>,
        #[command(flatten)]
        options: Options,
    },
    /// End your requests for a build, as if your clients had disconnected
    Cancel {
        /// The number of the build in `builds list`
        id: u64,
        #[command(flatten)]
        options: Options,
    },
}

impl Action {
    fn wants_all(&self) -> bool {
        match self {
            Self::List { options } | Self::Show { options, .. } => options.all,
            Self::Watch { options, .. } | Self::Cancel { options, .. } => options.all,
            Self::Log { all, .. } => *all,
        }
    }
}

/// What `builds show` prints.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    line: Line,
    /// Seconds since the build was accepted.
    age_seconds: u64,
    inputs: usize,
    processors: u32,
    memory_mib: u32,
    log_bytes: u64,
}

impl Shown {
    fn of(listed: &Listed) -> Self {
        Self {
            line: Line::of(listed),
            age_seconds: listed.age.as_secs(),
            inputs: listed.inputs,
            processors: listed.vcpus.into(),
            memory_mib: listed.memory_mib,
            log_bytes: listed.log_bytes,
        }
    }

    fn text(&self) -> String {
        let Self { line, age_seconds, inputs, processors, memory_mib, log_bytes } = self;
        let Line { id, drv, member, state, seconds, requests } = line;
        format!(
            "build        {id}\n\
             derivation   {drv}\n\
             member       {member}\n\
             state        {state} for {}\n\
             accepted     {} ago\n\
             requests     {requests}\n\
             inputs       {inputs} store paths\n\
             sandbox      {processors} processors, {memory_mib} MiB of memory\n\
             log          {}; `builds log {id}` prints it\n",
            units::seconds(*seconds),
            units::seconds(*age_seconds),
            units::bytes(*log_bytes),
        )
    }
}

/// `all`: the table names the members.
fn table(lines: &[Line], all: bool, screen: Screen) -> String {
    if lines.is_empty() {
        return "no builds run or wait\n".to_owned();
    }
    let member = all.then_some(("member", Kind::Text));
    let head = [("id", Kind::Number), ("state", Kind::State), ("for", Kind::Number)];
    let tail = [("requests", Kind::Number), ("derivation", Kind::Path)];
    let mut table = Table::new(head.into_iter().chain(member).chain(tail).collect());
    for Line { id, drv, member, state, seconds, requests } in lines {
        let head = [id.to_string(), (*state).to_owned(), units::seconds(*seconds)];
        let member = all.then(|| member.clone());
        let tail = [requests.to_string(), drv.clone()];
        table.row(head.into_iter().chain(member).chain(tail).collect());
    }
    table.text(screen)
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Builds)
}

pub(super) async fn run(
    arguments: Arguments,
    terminal: Terminal<'_>,
    agent: &Agent,
    member: &Arc<Member>,
    records: &Records,
) -> ExitStatus {
    let stall = agent.config.limits.client_stall;
    let Arguments { action } = arguments;
    let all = action.wants_all();
    let may = super::may_say_all(all, &agent.roster.borrow(), member, "builds");
    if let Err(why) = may {
        return terminal.fail(&why, stall).await;
    }
    // Whoever stops being a maintainer stops seeing the builds of others, also while a command runs.
    let of =
        |other: &Member| other.id == member.id || all && super::is_maintainer(&agent.roster.borrow(), member);
    let scheduler = &agent.realiser.scheduler;
    let find = |id: u64| scheduler.list(&of).into_iter().find(|listed| listed.id == id);
    match action {
        Action::List { options } => {
            let lines: Vec<Line> = scheduler.list(&of).iter().map(Line::of).collect();
            let text = if options.json { json_line(&lines) } else { table(&lines, all, terminal.screen) };
            terminal.print(&text, stall).await
        }
        Action::Show { id, options } => match find(id).as_ref().map(Shown::of) {
            None => terminal.fail(&nothing(id), stall).await,
            Some(shown) => {
                let text = if options.json { json_line(&shown) } else { shown.text() };
                terminal.print(&text, stall).await
            }
        },
        Action::Log { id, .. } => match scheduler.log(id, &of) {
            None => terminal.fail(&nothing(id), stall).await,
            Some(log) => match watching::charge(agent, member) {
                Ok(_charge) => follow_log(log, terminal, stall).await,
                Err(over) => terminal.fail(&over, stall).await,
            },
        },
        Action::Watch { id, options } => {
            if let Some(id) = id
                && find(id).is_none()
            {
                return terminal.fail(&nothing(id), stall).await;
            }
            let mut changes = Changes::of(id);
            let next = |_| changes.next(scheduler.list(&of), options.json);
            watching::watch(terminal, agent, member, next).await
        }
        Action::Cancel { id, options } => match scheduler.cancel(id, &of) {
            0 => terminal.fail(&nothing(id), stall).await,
            requests => {
                tracing::info!(build = id, member = %member.name, requests, "build cancelled by a command");
                if all {
                    let event = Event::now(crate::records::Kind::Cancel).by(&member.name);
                    let requests = units::counted(requests, "request");
                    records.audit.note(event.saying(&format!("build {id}, {requests}")));
                }
                terminal.print(&cancelled(id, requests, options.json), stall).await
            }
        },
    }
}

/// The same answer for a build that does not exist and for one that is not the caller's.
fn nothing(id: u64) -> String {
    format!("no build {id} runs or waits for you; `builds list` has the numbers")
}

fn cancelled(id: u64, requests: usize, json: bool) -> String {
    match json {
        true => json_line(&serde_json::json!({ "id": id, "requests": requests })),
        false => format!("build {id}: ended {}\n", units::counted(requests, "request")),
    }
}

/// Prints a log until its build has ended. On a terminal without control characters: the builder is a stranger.
async fn follow_log(
    mut log: builds::log::LogReader,
    terminal: Terminal<'_>,
    stall: std::time::Duration,
) -> ExitStatus {
    let screen = terminal.screen;
    let (stdout, _, mut hung_up) = terminal.with_hung_up();
    let mut stdout = PatientWriter::new(stdout, stall);
    let printing = async {
        while let Some(bytes) = log.next().await? {
            stdout.write_all(&screen.log(&bytes)).await?;
            stdout.flush().await?;
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        printed = printing => if printed.is_ok() { ExitStatus::DONE } else { ExitStatus::FAILED },
        () = &mut hung_up => ExitStatus::DONE,
    }
}
