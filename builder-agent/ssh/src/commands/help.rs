//! `help`: the commands that a person has a reason to type, from the table.

use daemon::Agent;
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use super::{COMMANDS, For};
use crate::terminal::{ExitStatus, Terminal};

pub(super) async fn run(terminal: Terminal<'_>, agent: &Agent) -> ExitStatus {
    let mut stdout = PatientWriter::new(terminal.stdout, agent.config.limits.client_stall);
    let written = stdout.write_all(text().as_bytes()).await.is_ok() && stdout.flush().await.is_ok();
    if written { ExitStatus::DONE } else { ExitStatus::FAILED }
}

/// One line for each command of the table that is not for tools alone.
pub fn text() -> String {
    let rows = || COMMANDS.iter().filter(|row| row.readers != For::Tools);
    let call = |row: &super::Row| format!("{} {}", row.name, row.usage).trim_end().to_owned();
    let width = rows().map(|row| call(row).len()).max().unwrap_or_default();
    rows().map(|row| format!("{:width$}  {}\n", call(row), row.help)).collect()
}
