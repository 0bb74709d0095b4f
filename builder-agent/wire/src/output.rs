//! The bytes to the client: one buffer, sent when it is full or when the connection is about to wait.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;

use crate::input::padding_after;
use crate::limits::BUFFER_BYTES;
use crate::patience::Patience;

/// A buffer to encode into. Fields are appended at once; only `relieve` and `flush` use the transport.
pub(crate) struct Output<W> {
    inner: W,
    pub buffer: Vec<u8>,
    sent: usize,
    /// The time limit for the client to take the bytes.
    patience: Patience,
}

impl<W: AsyncWrite + Unpin> Output<W> {
    pub fn new(inner: W, stall: Option<Duration>) -> Self {
        Self { inner, buffer: Vec::new(), sent: 0, patience: Patience::new(stall) }
    }

    /// Sends the buffer if it is large.
    pub async fn relieve(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER_BYTES { self.write_out().await } else { Ok(()) }
    }

    async fn write_out(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_write_out(cx)).await
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buffer.len() {
            let moving = Pin::new(&mut self.inner).poll_write(cx, &self.buffer[self.sent..]);
            let wrote = ready!(moved(&mut self.patience, cx, moving))?;
            self.sent += wrote;
        }
        self.patience.reset();
        self.sent = 0;
        self.buffer.clear();
        // The memory of one long answer must not stay for the rest of a long connection.
        self.buffer.shrink_to(2 * BUFFER_BYTES);
        Poll::Ready(Ok(()))
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        let moving = Pin::new(&mut self.inner).poll_flush(cx);
        self.patience.poll_write(cx, moving)
    }

    pub async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Bytes that are long enough to bypass the buffer.
    pub async fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < BUFFER_BYTES {
            self.buffer.extend_from_slice(bytes);
            return self.relieve().await;
        }
        self.write_out().await?;
        let Self { inner, patience, .. } = self;
        let mut sent = 0;
        std::future::poll_fn(|cx| {
            while sent < bytes.len() {
                let moving = Pin::new(&mut *inner).poll_write(cx, &bytes[sent..]);
                sent += ready!(moved(patience, cx, moving))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

/// The number of bytes that a write has moved; at least one.
fn moved(
    patience: &mut Patience,
    cx: &mut Context<'_>,
    moving: Poll<io::Result<usize>>,
) -> Poll<io::Result<usize>> {
    match ready!(patience.poll_write(cx, moving)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        Ok(wrote) => {
            patience.moved(wrote as u64);
            Poll::Ready(Ok(wrote))
        }
        Err(error) => Poll::Ready(Err(error)),
    }
}

/// Appends protocol values to a buffer; the mirror of `Fields`.
pub(crate) trait Encode {
    fn u64(&mut self, value: u64);
    fn bytes(&mut self, value: &[u8]);

    fn bool(&mut self, value: bool) {
        self.u64(value.into());
    }

    fn str(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    fn path(&mut self, path: &nix_derivation::StorePath) {
        self.str(&path.to_absolute_path());
    }

    fn maybe_path(&mut self, path: Option<&nix_derivation::StorePath>) {
        self.str(&path.map(|path| path.to_absolute_path()).unwrap_or_default());
    }

    fn strs<'a, I>(&mut self, values: I)
    where
        I: IntoIterator<Item = &'a str>,
        I::IntoIter: ExactSizeIterator,
    {
        let values = values.into_iter();
        self.u64(values.len() as u64);
        values.for_each(|value| self.str(value));
    }

    fn strings(&mut self, values: &[String]) {
        self.strs(values.iter().map(String::as_str));
    }

    fn paths<'a, I>(&mut self, paths: I)
    where
        I: IntoIterator<Item = &'a nix_derivation::StorePath>,
        I::IntoIter: ExactSizeIterator,
    {
        let paths = paths.into_iter();
        self.u64(paths.len() as u64);
        paths.for_each(|path| self.path(path));
    }
}

impl Encode for Vec<u8> {
    fn u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.extend_from_slice(value);
        self.resize(self.len() + padding_after(value.len() as u64), 0);
    }
}
