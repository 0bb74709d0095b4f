//! Whoever waits for builds: sees their log while they run, and may hang up.

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use wire::WireError;
use wire::worker::{ActivityKind, Connection, Field, LogEvent, ResultKind};

/// Bytes of log in one write. More than ssh packets hold, so that waiting lines travel together.
const MAX_WRITE: usize = 128 << 10;

/// A client that waits for the end of some work. Builds know no more of the protocol than this.
pub(super) trait Audience: Send {
    /// Does `work` and shows what arrives in `shown` at once, also what is left in it when `work` is done. When the
    /// client hangs up, `work` is dropped and this fails.
    fn run<F>(
        &mut self,
        work: F,
        shown: &mut mpsc::Receiver<LogEvent>,
    ) -> impl Future<Output = Result<F::Output, WireError>> + Send
    where
        F: Future + Send,
        F::Output: Send;
}

impl<R, W> Audience for Connection<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn run<F>(&mut self, work: F, shown: &mut mpsc::Receiver<LogEvent>) -> Result<F::Output, WireError>
    where
        F: Future + Send,
        F::Output: Send,
    {
        Connection::run(self, work, shown).await
    }
}

/// Does `work` and writes lines for what there is to show, at once.
///
/// `builds`: also one line for each build that starts.
pub(super) async fn shown_on<E, F>(
    stderr: &mut E,
    builds: bool,
    work: F,
    shown: &mut mpsc::Receiver<LogEvent>,
) -> Result<F::Output, WireError>
where
    E: AsyncWrite + Unpin,
    F: Future,
{
    let mut work = std::pin::pin!(work);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            event = shown.recv(), if open => match event {
                Some(event) => write_lines(stderr, builds, event, shown).await?,
                None => open = false,
            },
            output = &mut work => {
                while let Ok(event) = shown.try_recv() {
                    write_lines(stderr, builds, event, shown).await?;
                }
                return Ok(output);
            }
        }
    }
}

/// Writes what has arrived, the first of it included.
async fn write_lines<E: AsyncWrite + Unpin>(
    stderr: &mut E,
    builds: bool,
    first: LogEvent,
    shown: &mut mpsc::Receiver<LogEvent>,
) -> Result<(), WireError> {
    let mut text = Vec::new();
    let mut next = Some(first);
    while let Some(event) = next {
        if let Some(line) = line(&event, builds) {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        next = if text.len() < MAX_WRITE { shown.try_recv().ok() } else { None };
    }
    if !text.is_empty() {
        stderr.write_all(&text).await?;
        stderr.flush().await?;
    }
    Ok(())
}

/// What a person reads of an event. (Nix: `SimpleLogger` in logging.cc, as `nix-store` uses it.)
fn line(event: &LogEvent, builds: bool) -> Option<&[u8]> {
    match event {
        LogEvent::Message(text) => Some(text),
        LogEvent::StartActivity { kind: ActivityKind::Build, text, .. } if builds => Some(text.as_bytes()),
        LogEvent::Result {
            kind: ResultKind::BuildLogLine | ResultKind::PostBuildLogLine, fields, ..
        } => match fields.first() {
            Some(Field::Text(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}
