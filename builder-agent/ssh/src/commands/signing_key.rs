//! `signing-key`: the public half of the key that signs Verified paths, as `trusted-public-keys` wants it.

use daemon::Agent;
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use crate::terminal::{ExitStatus, Terminal};

pub(super) async fn run(terminal: Terminal<'_>, agent: &Agent) -> ExitStatus {
    let mut stdout = PatientWriter::new(terminal.stdout, agent.config.limits.client_stall);
    let line = format!("{}\n", agent.signing_key);
    let written = stdout.write_all(line.as_bytes()).await.is_ok() && stdout.flush().await.is_ok();
    if written { ExitStatus::DONE } else { ExitStatus::FAILED }
}
