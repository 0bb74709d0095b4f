//! Commands that print what changes, until the client hangs up or, on a terminal, presses Ctrl-C.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use crate::terminal::{ExitStatus, Screen, Terminal};

/// Interval between looks. A look is a short lock and a few comparisons.
const GLANCE: Duration = Duration::from_millis(500);

/// Clears a terminal, and goes to its first line.
pub(super) const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Prints what `next` returns, again and again. Fails if the client reads nothing for as long as `stall`.
pub(super) async fn watch(
    terminal: Terminal<'_>,
    stall: Duration,
    mut next: impl FnMut(Screen) -> Option<String>,
) -> ExitStatus {
    let screen = terminal.screen;
    let (stdout, _, mut hung_up) = terminal.with_hung_up();
    let mut stdout = PatientWriter::new(stdout, stall);
    loop {
        if let Some(text) = next(screen) {
            let text = screen.lines(&text);
            let writing =
                async { stdout.write_all(text.as_bytes()).await.is_ok() && stdout.flush().await.is_ok() };
            tokio::select! {
                written = writing => if !written { return ExitStatus::FAILED },
                () = &mut hung_up => return ExitStatus::DONE,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(GLANCE) => {}
            () = &mut hung_up => return ExitStatus::DONE,
        }
    }
}
