//! NARs in the middle of a stream: read exactly to their end, with or without an announced length, and
//! checked while they are sent, because the client finds their end by parsing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{Problem, WireError};
use crate::input::Input;
use crate::nar::NarScanner;
use crate::output::Output;

/// A NAR that is being sent.
pub(crate) struct NarOut {
    op: &'static str,
    scanner: NarScanner,
}

impl NarOut {
    pub fn new(op: &'static str) -> Self {
        Self { op, scanner: NarScanner::new() }
    }

    /// Sends its next bytes.
    pub async fn write<W: AsyncWrite + Unpin>(
        &mut self,
        output: &mut Output<W>,
        bytes: &[u8],
    ) -> Result<(), WireError> {
        let op = self.op;
        let used = self.scanner.push(bytes).map_err(|source| WireError::Nar { op, source })?;
        if used < bytes.len() {
            return Err(WireError::Misuse { op, what: "bytes after the end of the NAR" });
        }
        Ok(output.write_raw(bytes).await?)
    }

    /// Fails unless the NAR is complete.
    pub fn finish(self) -> Result<(), WireError> {
        match self.scanner.is_finished() {
            true => Ok(()),
            false => Err(WireError::Misuse { op: self.op, what: "the NAR is not complete" }),
        }
    }
}

pub(crate) type PollIo = Poll<io::Result<()>>;

/// A NAR without an announced length.
pub(crate) struct BareNar {
    op: &'static str,
    scanner: NarScanner,
    /// Set for a NAR of one plain file, of which the caller reads only the contents.
    only_contents: bool,
    /// Bytes that the NAR may still have; at first `limit`.
    left: u64,
    limit: u64,
}

impl BareNar {
    pub fn new(op: &'static str, limit: u64) -> Self {
        Self { op, scanner: NarScanner::new(), only_contents: false, left: limit, limit }
    }

    /// A NAR that must be a plain file, of which the caller reads only the contents.
    pub fn flat(op: &'static str, limit: u64) -> Self {
        Self { only_contents: true, scanner: NarScanner::flat(), ..Self::new(op, limit) }
    }

    pub fn is_finished(&self) -> bool {
        self.scanner.is_finished()
    }

    /// Reads on, at most as much as the scanner needs for its next step. Fills nothing after the end.
    pub fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        input: &mut Input<R>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> PollIo {
        let op = self.op;
        let nar = |source| WireError::Nar { op, source }.into_io();
        let started = buf.filled().len();
        while buf.remaining() > 0 && !self.scanner.is_finished() {
            // The bytes read so far are returned at once; the next call may wait for more.
            if buf.filled().len() > started && input.is_empty() {
                break;
            }
            let max = self.scanner.need().min(self.left);
            if max == 0 {
                let problem = Problem::BodyTooLarge { limit: self.limit };
                return Poll::Ready(Err(WireError::Field { op, field: "the NAR", problem }.into_io()));
            }
            if self.only_contents && !self.scanner.in_contents() {
                // Read into a buffer of its own: the caller gets the contents of the file and not the NAR
                // around them.
                let mut aside = [0; 64];
                let mut aside = ReadBuf::new(&mut aside);
                self.left -= ready!(poll_some(input, cx, &mut aside, max, op))?;
                self.scanner.push(aside.filled()).map_err(nar)?;
            } else {
                let before = buf.filled().len();
                self.left -= ready!(poll_some(input, cx, buf, max, op))?;
                self.scanner.push(&buf.filled()[before..]).map_err(nar)?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A NAR whose length was announced; it must end exactly there.
pub(crate) struct SizedNar {
    op: &'static str,
    size: u64,
    left: u64,
    scanner: NarScanner,
}

impl SizedNar {
    pub fn new(op: &'static str, size: u64) -> Self {
        Self { op, size, left: size, scanner: NarScanner::new() }
    }

    /// Bytes still missing.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The announced size.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Checks the bytes just read.
    pub fn took(&mut self, bytes: &[u8]) -> io::Result<()> {
        let op = self.op;
        let nar = |source| WireError::Nar { op, source }.into_io();
        let problem = |problem| WireError::Field { op, field: "the NAR", problem }.into_io();
        let used = self.scanner.push(bytes).map_err(nar)?;
        self.left -= bytes.len() as u64;
        if self.scanner.is_finished() && (used < bytes.len() || self.left > 0) {
            let left = self.left + (bytes.len() - used) as u64;
            return Err(problem(Problem::NarEndedEarly { left, size: self.size }));
        }
        if self.left == 0 && !self.scanner.is_finished() {
            return Err(problem(Problem::NarGoesOn { size: self.size }));
        }
        Ok(())
    }

    /// Reads on. Fills nothing after the end.
    pub fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        input: &mut Input<R>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> PollIo {
        let before = buf.filled().len();
        if ready!(poll_some(input, cx, buf, self.left, self.op))? == 0 {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(self.took(&buf.filled()[before..]))
    }
}

/// Removes bytes that were read before an error: `AsyncRead` promises that there are none with an error, and
/// tokio's `read_to_end` panics if there are.
pub(crate) fn nothing_with_an_error(read: PollIo, buf: &mut ReadBuf<'_>, before: usize) -> PollIo {
    if matches!(read, Poll::Ready(Err(_))) {
        buf.set_filled(before);
    }
    read
}

/// Reads at least one and at most `max` bytes; a hang-up is an error.
pub(crate) fn poll_some<R: AsyncRead + Unpin>(
    input: &mut Input<R>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
    max: u64,
    op: &'static str,
) -> Poll<io::Result<u64>> {
    let max = max.min(buf.remaining() as u64) as usize;
    if max == 0 {
        return Poll::Ready(Ok(0));
    }
    let mut part = ReadBuf::new(buf.initialize_unfilled_to(max));
    ready!(Pin::new(input).poll_read(cx, &mut part))?;
    let got = part.filled().len();
    if got == 0 {
        return Poll::Ready(Err(truncated(op, "the body")));
    }
    buf.advance(got);
    Poll::Ready(Ok(got as u64))
}

pub(crate) fn truncated(op: &'static str, field: &'static str) -> io::Error {
    WireError::Truncated { op, field }.into_io()
}
