//! `nix-daemon --stdio` and `nix-store --serve`: sessions of Nix's own protocols with the member's view.

use std::sync::Arc;

use daemon::{Agent, Caller, SessionError};
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use crate::metered::Metered;
use crate::terminal::{ExitStatus, Terminal};

/// One of Nix's protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreSession {
    /// `nix-daemon --stdio`: the worker protocol.
    Worker,
    /// `nix-store --serve`: only reads, unless `--write` is set.
    Serve { write: bool },
}

/// Runs a session. Dropping the future ends it with its builds and unfinished uploads.
pub(super) async fn run(
    kind: StoreSession,
    terminal: Terminal<'_>,
    agent: Arc<Agent>,
    caller: Caller,
) -> ExitStatus {
    let (connection, member, stall) =
        (caller.connection, caller.member.clone(), agent.config.limits.client_stall);
    let (stdin, stdout, mut stderr) = terminal.with_stdin();
    let stdin = match &member.ticket {
        Some(bearer) => Box::new(Metered::new(stdin, bearer.ticket.clone())),
        None => stdin,
    };
    let result = match kind {
        StoreSession::Worker => daemon::serve(stdin, stdout, agent, caller).await,
        StoreSession::Serve { write } => {
            daemon::serve_store(stdin, stdout, Box::new(&mut stderr), write, agent, caller).await
        }
    };
    let Err(error) = result else { return ExitStatus::DONE };
    tracing::info!(connection, member = %member.name, %error, "session ended by an error");
    if let SessionError::Greeting(error) = &error
        && !error.is_disconnect()
    {
        let mut stderr = PatientWriter::new(stderr, stall);
        let _ = stderr.write_all(format!("error: {error}\n").as_bytes()).await;
    }
    ExitStatus::FAILED
}
