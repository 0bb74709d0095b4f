//! The longest wait for the client in the middle of a message, and the error after it.
//!
//! Only waiting counts, not the agent's own work: the clock runs while there is nothing to read, or no room
//! to write. After each [`PIECE`] that moves, the whole time is available again. So a slow connection is
//! served like a fast one, but a client that is silent, or sends a byte now and then, cannot keep a session,
//! its memory and its unfinished file for ever. Between two requests there is no limit.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};

use crate::error::WireError;

/// Number of bytes that have to move within the time, unless the message ends before.
pub const PIECE: u64 = 64 << 10;

/// The clock of one direction of one connection.
pub(crate) struct Patience {
    /// Time for one piece; `None` waits for ever.
    stall: Option<Duration>,
    /// Remaining time for the current piece.
    left: Duration,
    /// Bytes of the current piece that have moved.
    moved: u64,
    waiting_since: Option<Instant>,
    /// Made when it is first needed. May still be set for an earlier wait, and is set again before use.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub fn new(stall: Option<Duration>) -> Self {
        Self { stall, left: stall.unwrap_or_default(), moved: 0, waiting_since: None, alarm: None }
    }

    /// Starts the time anew, for a new message.
    pub fn reset(&mut self) {
        (self.left, self.moved, self.waiting_since) = (self.stall.unwrap_or_default(), 0, None);
    }

    /// Counts bytes that have moved.
    pub fn moved(&mut self, bytes: u64) {
        let Some(stall) = self.stall else { return };
        if let Some(since) = self.waiting_since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        self.moved += bytes;
        if self.moved >= PIECE {
            (self.left, self.moved) = (stall, 0);
        }
    }

    /// Called while no byte can move. Ready when that has lasted too long.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let Some(stall) = self.stall else { return Poll::Pending };
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let deadline = since + self.left;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        alarm.as_mut().poll(cx).map(|()| stall)
    }

    /// The result of `moving`, or an error if that waits too long.
    pub fn poll_read<T>(&mut self, cx: &mut Context<'_>, moving: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match moving {
            Poll::Pending => self.poll_lost(cx).map(|stall| Err(WireError::NothingSent { stall }.into_io())),
            ready => ready,
        }
    }

    /// The same for a write.
    pub fn poll_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        moving: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match moving {
            Poll::Pending => self.poll_lost(cx).map(|stall| Err(WireError::NothingTaken { stall }.into_io())),
            ready => ready,
        }
    }
}

/// A writer that fails if the other side does not take the bytes in time.
pub struct PatientWriter<W> {
    inner: W,
    patience: Patience,
}

impl<W> PatientWriter<W> {
    /// `stall`: the time for each [`PIECE`].
    pub fn new(inner: W, stall: Duration) -> Self {
        Self { inner, patience: Patience::new(Some(stall)) }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for PatientWriter<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let moving = Pin::new(&mut this.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = &moving {
            this.patience.moved(*bytes as u64);
        }
        this.patience.poll_write(cx, moving)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let moving = Pin::new(&mut this.inner).poll_flush(cx);
        if moving.is_ready() {
            this.patience.reset();
        }
        this.patience.poll_write(cx, moving)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let moving = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.patience.poll_write(cx, moving)
    }
}
