//! Logs: text for a terminal, one JSON object per line for everything else (the journal, a file, a test).
//!
//! A thread of its own writes the lines. If the reader of the log stops reading (a journal that hangs, a full pipe), lines
//! are lost and counted; the agent does not wait, because every task and thread logs, and all of them would wait.

use std::io::IsTerminal;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that may wait for the thread that writes: some megabytes.
const WAITING: usize = 16_384;
/// Pause between two reports of lost lines.
const REPORT: Duration = Duration::from_secs(60);

/// The running log.
pub struct Log {
    lost: ErrorCounter,
    /// Writes the waiting lines when it is dropped, for at most about a second.
    _writing: WorkerGuard,
}

/// Starts logging to stderr. `BARNRAISER_LOG` chooses what is logged, in the syntax of `tracing`'s `EnvFilter`.
#[must_use]
pub fn start() -> Log {
    // The agent gets russh's errors as values. Besides, russh logs packets, rekeys and bad certificates, as often as a
    // stranger sends them.
    let default = "info,russh=off";
    let filter = EnvFilter::try_from_env("BARNRAISER_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let (writer, writing) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    let lost = writer.error_counter();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_target(false)
            .with_current_span(false)
            .with_span_list(false)
            .init();
    }
    Log { lost, _writing: writing }
}

impl Log {
    /// Reports lost lines from time to time; never ends.
    pub fn report_losses(&self) -> impl Future<Output = ()> + use<> {
        let lost = self.lost.clone();
        async move {
            let mut reported = 0;
            let mut pause = tokio::time::interval(REPORT);
            loop {
                pause.tick().await;
                let now = lost.dropped_lines();
                if now > reported {
                    let lines = now - reported;
                    tracing::error!(lines, "log lines were lost: the log was not read fast enough");
                    reported = now;
                }
            }
        }
    }
}
