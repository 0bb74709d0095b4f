//! `gc`: a maintainer makes room in the store now. Evicts what nobody needs, as the box does by itself when the store is
//! nearly full; what sessions, builds and roots need stays.

use serde::Serialize;

use super::maintainers::{Desk, Maintaining};
use super::{Command, Row, Wrong, arguments, units};
use crate::records::Kind;
use crate::terminal::{ExitStatus, Terminal};

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// How much to evict, such as 500M or 20G; without it, all that nobody needs
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    free: Option<u64>,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answer {
    paths: u64,
    objects: u64,
    bytes: u64,
    free_bytes: u64,
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |arguments| Command::Maintaining(Maintaining::Gc(arguments)))
}

/// Evicts on a thread of its own: the files of large objects take a while. If the client leaves, it goes on.
pub(super) async fn run(arguments: Arguments, terminal: Terminal<'_>, desk: Desk<'_>) -> ExitStatus {
    let Desk { agent, caller, records } = &desk;
    let stall = agent.config.limits.client_stall;
    let (store, name) = (agent.store.clone(), caller.member.name.clone());
    let event = desk.event(Kind::Command);
    let amount = arguments.free.map_or("everything".to_owned(), |free| format!("{free} bytes"));
    records.audit.note(event.saying(&format!("gc: {amount} that nobody needs")));
    let evicting = agent.threads.alone("gc", move || {
        let evicted = store.evict(arguments.free.unwrap_or(u64::MAX), &format!("{name} asked for it"));
        let evicted = evicted.map_err(|error| error.to_string())?;
        let free_bytes = store.space().map_err(|error| error.to_string())?.free;
        Ok(Answer { paths: evicted.paths, objects: evicted.objects, bytes: evicted.bytes, free_bytes })
    });
    let ended: Result<Answer, String> = match evicting.await {
        Ok(ended) => ended,
        Err(lost) => Err(format!("the eviction was lost because of the box: {lost}")),
    };
    match ended {
        Ok(answer) if arguments.json => terminal.print(&super::json_line(&answer), stall).await,
        Ok(answer) => terminal.print(&answer.text(), stall).await,
        Err(why) => {
            tracing::error!(error = why, "the store cannot make room");
            terminal.fail(&why, stall).await
        }
    }
}

impl Answer {
    fn text(&self) -> String {
        let Self { paths, objects, bytes, free_bytes } = self;
        let (bytes, free) = (bytes >> 20, free_bytes >> 20);
        format!("evicted {paths} paths with {objects} objects of {bytes} MiB; {free} MiB are free\n")
    }
}
