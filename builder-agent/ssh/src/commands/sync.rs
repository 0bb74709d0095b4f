//! `sync`: has the synchroniser fetch the roster now, and tells what came of it.
//!
//! The agent cannot fetch the roster, and has no right to start a service. It replaces one empty file in its state
//! directory; a unit of systemd waits for that and starts the synchroniser (`barnraiser-sync.path`). The synchroniser reports
//! in `roster-status.json`, which the agent follows anyway.

use std::sync::Arc;
use std::time::Duration;

use ::roster::{Status, date};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep_until};
use wire::PatientWriter;

use super::maintainers::{Desk, Maintaining};
use super::printing::Json;
use super::{Command, Row, Wrong, arguments, json_line};
use crate::records::Kind;
use crate::terminal::{self, ExitStatus, Terminal};

/// The file in the state directory whose change asks for an attempt.
const REQUEST: &str = "sync-requested";
/// The synchroniser has 90 seconds for an attempt (`barnraiser-roster.service`).
const PATIENCE: Duration = Duration::from_secs(100);
/// Interval between looks at the report.
const GLANCE: Duration = Duration::from_millis(100);

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |json| Command::Maintaining(Maintaining::Sync(json)))
}

pub(super) async fn run(json: Json, terminal: Terminal<'_>, desk: Desk<'_>) -> ExitStatus {
    let Desk { agent, records, .. } = &desk;
    let stall = agent.config.limits.client_stall;
    let before = agent.checks.report();
    let path = agent.config.state_dir.join(REQUEST);
    // A file that is written and closed again is a change to systemd (PathChanged=), also without contents.
    if let Err(error) = tokio::fs::write(&path, b"").await {
        let why = format!("cannot ask for an attempt: writing {}: {error}", path.display());
        return terminal.fail(&why, stall).await;
    }
    records.audit.note(desk.event(Kind::Sync));
    let screen = terminal.screen;
    let (stdout, stderr, hung_up) = terminal.with_hung_up();
    let deadline = Instant::now() + PATIENCE;
    let report = tokio::select! {
        report = changed(&agent.checks, before.as_deref()) => report,
        () = hung_up => return ExitStatus::FAILED,
        () = sleep_until(deadline) => {
            let why = format!(
                "the synchroniser has reported nothing for {} seconds; is `barnraiser-sync.path` active on the box, and what \
                 does the journal of `barnraiser-roster.service` say? The timer goes on beside this",
                PATIENCE.as_secs()
            );
            return terminal::fail(stderr, screen, &why, stall).await;
        }
    };
    let failed = report.problem.is_some();
    let text = if json.json { json_line(&*report) } else { text(&report) };
    let mut stdout = PatientWriter::new(stdout, stall);
    let written =
        stdout.write_all(screen.lines(&text).as_bytes()).await.is_ok() && stdout.flush().await.is_ok();
    if written && !failed { ExitStatus::DONE } else { ExitStatus::FAILED }
}

/// Waits for a report that is not `before`.
async fn changed(checks: &members::Checks, before: Option<&Status>) -> Arc<Status> {
    loop {
        match checks.report() {
            Some(report) if Some(&*report) != before => return report,
            _ => tokio::time::sleep(GLANCE).await,
        }
    }
}

fn text(report: &Status) -> String {
    let accepted = match &report.accepted {
        Some(accepted) => {
            format!("commit {}, accepted {}", accepted.commit, date::shown(accepted.accepted))
        }
        None => "none was ever accepted".to_owned(),
    };
    match &report.problem {
        None => format!("the roster is up to date: {accepted}\n"),
        Some(problem) => {
            format!(
                "the roster stays as it was ({accepted}), because: {}\n",
                printable::lines(&problem.reason)
            )
        }
    }
}
