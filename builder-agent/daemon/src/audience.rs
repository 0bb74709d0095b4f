//! A client that waits for builds and downloads: it gets their events, and may close the connection.

use std::future::Future;

use builds::events::Event;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use wire::WireError;
use wire::worker::Connection;

use super::render::lines::Lines;
use super::render::worker::{Ids, Renderer};

/// Bytes of log in one write. Larger than an ssh packet, so that waiting lines are sent together.
const MAX_WRITE: usize = 128 << 10;

/// A client that waits for the end of some work. Requests know nothing else of the protocol.
pub(super) trait Audience: Send {
    /// Does `work` and shows events as they arrive, also those that are left when `work` is done. If the client closes
    /// the connection, `work` is dropped and this fails.
    fn run<F>(
        &mut self,
        work: F,
        events: &mut mpsc::Receiver<Event>,
    ) -> impl Future<Output = Result<F::Output, WireError>> + Send
    where
        F: Future + Send,
        F::Output: Send;
}

/// The client of a worker session.
pub(super) struct WorkerClient<'a, R, W> {
    pub conn: &'a mut Connection<R, W>,
    pub ids: &'a Ids,
    /// The name of the box.
    pub machine: &'a str,
}

impl<R, W> Audience for WorkerClient<'_, R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn run<F>(&mut self, work: F, events: &mut mpsc::Receiver<Event>) -> Result<F::Output, WireError>
    where
        F: Future + Send,
        F::Output: Send,
    {
        let mut renderer = Renderer::new(self.ids, self.machine);
        self.conn.run(work, events, |event, to| renderer.render(event, to)).await
    }
}

/// Does `work` and writes the lines for its events as they arrive.
pub(super) async fn shown_on<E, F>(
    stderr: &mut E,
    mut lines: Lines<'_>,
    work: F,
    events: &mut mpsc::Receiver<Event>,
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
            event = events.recv(), if open => match event {
                Some(event) => write_lines(stderr, &mut lines, event, events).await?,
                None => open = false,
            },
            output = &mut work => {
                while let Ok(event) = events.try_recv() {
                    write_lines(stderr, &mut lines, event, events).await?;
                }
                return Ok(output);
            }
        }
    }
}

/// Writes the lines that have arrived, `first` included.
async fn write_lines<E: AsyncWrite + Unpin>(
    stderr: &mut E,
    lines: &mut Lines<'_>,
    first: Event,
    events: &mut mpsc::Receiver<Event>,
) -> Result<(), WireError> {
    let mut text = Vec::new();
    let mut next = Some(first);
    while let Some(event) = next {
        if let Some(line) = lines.line(event) {
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        next = if text.len() < MAX_WRITE { events.try_recv().ok() } else { None };
    }
    if !text.is_empty() {
        stderr.write_all(&text).await?;
        stderr.flush().await?;
    }
    Ok(())
}
