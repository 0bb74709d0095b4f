//! Whoever waits for builds: sees their log while they run, and may hang up.

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use wire::WireError;
use wire::worker::{Connection, LogEvent};

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
    fn run<F>(
        &mut self,
        work: F,
        shown: &mut mpsc::Receiver<LogEvent>,
    ) -> impl Future<Output = Result<F::Output, WireError>> + Send
    where
        F: Future + Send,
        F::Output: Send,
    {
        Connection::run(self, work, shown)
    }
}
