//! How long we wait for the other side in the middle of a message, and what then.
//!
//! Only waiting counts, not what we do in between: the clock runs while there is nothing to read, or no room to write. Each
//! [`PIECE`] that moves buys the whole time again. So a slow line is as good as a fast one, and neither silence nor a byte
//! now and then keeps a session, its memory and its half-written file for ever. Between two requests nothing here runs.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};

use crate::error::WireError;

/// What has to move within the time, unless the message ends before.
pub const PIECE: u64 = 64 << 10;

/// The clock of one direction of one connection.
pub(crate) struct Patience {
    /// For one piece; `None` waits for ever.
    stall: Option<Duration>,
    /// Of the time for the current piece.
    left: Duration,
    /// Of the current piece, in bytes.
    moved: u64,
    waiting_since: Option<Instant>,
    /// Made when it is first needed. May ring for an earlier wait, and is set anew then.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub fn new(stall: Option<Duration>) -> Self {
        Self { stall, left: stall.unwrap_or_default(), moved: 0, waiting_since: None, alarm: None }
    }

    /// A new message begins.
    pub fn reset(&mut self) {
        (self.left, self.moved, self.waiting_since) = (self.stall.unwrap_or_default(), 0, None);
    }

    /// Bytes have moved.
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

    /// Nothing can move now. Ready when that has lasted too long.
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

    /// `moving`, unless that waits for too long.
    pub fn poll_read<T>(&mut self, cx: &mut Context<'_>, moving: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match moving {
            Poll::Pending => self.poll_lost(cx).map(|stall| Err(WireError::NothingSent { stall }.into_io())),
            ready => ready,
        }
    }

    /// The same for what we write.
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

/// A writer whose other side has to take what is written, as that of a connection.
pub struct PatientWriter<W> {
    inner: W,
    patience: Patience,
}

impl<W> PatientWriter<W> {
    /// `stall`: for each [`PIECE`].
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
