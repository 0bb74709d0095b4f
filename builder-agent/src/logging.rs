//! Logs: text for a terminal, one JSON object per line for everything else (the journal, a file, a test).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to stderr. `BARNRAISER_LOG` chooses what is logged, in the syntax of `tracing`'s `EnvFilter`.
pub fn start() {
    // The agent gets russh's errors as values. Besides, russh logs packets, rekeys and bad certificates, as often as a
    // stranger sends them.
    let default = "info,russh=off";
    let filter = EnvFilter::try_from_env("BARNRAISER_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
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
}
