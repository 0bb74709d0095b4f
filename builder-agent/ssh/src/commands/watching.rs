//! Commands that print what changes, until the client hangs up or, on a terminal, presses Ctrl-C.

use std::time::Duration;

use daemon::Agent;
use members::Member;
use shares::budget::Charge;
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use crate::terminal::{self, ExitStatus, Screen, Terminal};

/// Interval between looks. A look is a short lock and a few comparisons.
const GLANCE: Duration = Duration::from_millis(500);

/// Clears a terminal, and goes to its first line.
pub(super) const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What a look has found.
pub(super) enum Look {
    /// Nothing has changed.
    Same,
    New(String),
    /// Nothing will change any more.
    Last(String, ExitStatus),
}

/// The charge for a session that can last: the data that waits for it, and its tasks. Without it a member could have the
/// box hold much memory with sessions that do nothing.
pub(crate) fn charge(agent: &Agent, member: &Member) -> Result<Charge, String> {
    let budget = agent.budgets.of(&member.payer().id);
    budget.charge(daemon::SESSION_BYTES, "a session").map_err(|over| over.to_string())
}

/// Prints what `next` finds, again and again. Fails if the client reads nothing for as long as `limits.client-stall-seconds`.
pub(super) async fn watch(
    terminal: Terminal<'_>,
    agent: &Agent,
    member: &Member,
    mut next: impl FnMut(Screen) -> Look,
) -> ExitStatus {
    let (screen, stall) = (terminal.screen, agent.config.limits.client_stall);
    let _charge = match charge(agent, member) {
        Ok(charge) => charge,
        Err(over) => return terminal::fail(terminal.stderr, screen, &over, stall).await,
    };
    let (stdout, _, mut hung_up) = terminal.with_hung_up();
    let mut stdout = PatientWriter::new(stdout, stall);
    loop {
        let (text, last) = match next(screen) {
            Look::Same => (None, None),
            Look::New(text) => (Some(text), None),
            Look::Last(text, status) => (Some(text), Some(status)),
        };
        if let Some(text) = text {
            let text = screen.lines(&text);
            let writing =
                async { stdout.write_all(text.as_bytes()).await.is_ok() && stdout.flush().await.is_ok() };
            tokio::select! {
                written = writing => if !written { return ExitStatus::FAILED },
                () = &mut hung_up => return ExitStatus::DONE,
            }
        }
        if let Some(status) = last {
            return status;
        }
        tokio::select! {
            () = tokio::time::sleep(GLANCE) => {}
            () = &mut hung_up => return ExitStatus::DONE,
        }
    }
}
