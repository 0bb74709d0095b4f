//! Bodies: NARs, files and logs that are streamed, each read exactly to its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::PathInfo;
use nix_derivation::ContentAddressMethod;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::log_write::STDERR_READ;
use super::op::{BodyShape, Op};
use super::request::Request;
use super::version::Protocol;
use crate::error::{Problem, REFUSED_BODY, WireError};
use crate::input::{Fields, Input, padding_after};
use crate::limits::{MAX_DISCARD_BYTES, MAX_FRAME_BYTES, MAX_ITEMS, TUNNEL_CHUNK_BYTES};
use crate::nar_body::{BareNar, PollIo, SizedNar, nothing_with_an_error, poll_some, truncated};
use crate::output::{Encode, Output};
use crate::terms::Meter;

/// The unread part of the body of the current request.
pub(super) enum BodyState {
    None,
    /// Any bytes in frames.
    Framed(Frames),
    /// A bare NAR.
    Nar(BareNar),
    /// A NAR that the client sends in pieces, each after a request of the agent.
    Asked(Asked),
    /// Path infos and NARs in frames.
    Items(Items),
}

/// The frames of a framed body: a length and that many bytes, until a length of 0. (Nix: `FramedSource`.)
pub(super) struct Frames {
    op: &'static str,
    /// Unread bytes of the current frame.
    left: u64,
    length: [u8; 8],
    length_seen: usize,
    done: bool,
    /// Bytes that the whole body may still have.
    budget: u64,
    limit: u64,
}

/// State of [`BodyState::Asked`].
pub(super) struct Asked {
    op: &'static str,
    size: u64,
    /// Bytes of the NAR that have not been requested yet.
    unasked: u64,
    step: AskStep,
}

enum AskStep {
    Ask,
    Send { asked: u64 },
    Length { asked: u64, bytes: [u8; 8], seen: usize },
    Bytes { left: u64, pad: usize },
    Padding { left: usize },
}

/// State of [`BodyState::Items`].
pub(super) struct Items {
    frames: Frames,
    /// Number of items that follow; `None` before the count was read.
    left: Option<u64>,
    item: Option<SizedNar>,
    max_item_bytes: u64,
}

impl BodyState {
    pub fn of(op: Op, request: &Request, protocol: Protocol, limit: u64) -> Self {
        let name = op.name();
        match (op.info().body, request) {
            (BodyShape::None, _) => Self::None,
            (BodyShape::Dump, Request::AddToStore { method, .. }) if !protocol.at_least(25) => match method {
                ContentAddressMethod::Nar | ContentAddressMethod::Git => Self::Nar(BareNar::new(name, limit)),
                ContentAddressMethod::Flat | ContentAddressMethod::Text => {
                    Self::Nar(BareNar::flat(name, limit))
                }
            },
            (BodyShape::Nar, Request::AddToStoreNar { info, .. }) if !protocol.at_least(23) => {
                if protocol.at_least(21) {
                    let size = info.nar_size;
                    Self::Asked(Asked { op: name, size, unasked: size, step: AskStep::Ask })
                } else {
                    Self::Nar(BareNar::new(name, limit))
                }
            }
            // There is no limit for all items together: each has its own.
            (BodyShape::Items, _) => Self::Items(Items {
                frames: Frames::new(name, u64::MAX),
                left: None,
                item: None,
                max_item_bytes: limit,
            }),
            (BodyShape::Dump | BodyShape::Nar | BodyShape::Framed, _) => {
                Self::Framed(Frames::new(name, limit))
            }
        }
    }

    /// Whether the whole body has been read.
    pub fn is_finished(&self) -> bool {
        match self {
            Self::None => true,
            Self::Framed(frames) => frames.done,
            Self::Nar(nar) => nar.is_finished(),
            Self::Asked(asked) => asked.unasked == 0 && matches!(asked.step, AskStep::Ask),
            Self::Items(items) => items.frames.done,
        }
    }
}

impl Frames {
    fn new(op: &'static str, limit: u64) -> Self {
        Self { op, left: 0, length: [0; 8], length_seen: 0, done: false, budget: limit, limit }
    }

    fn bad(&self, field: &'static str, problem: Problem) -> io::Error {
        WireError::Field { op: self.op, field, problem }.into_io()
    }

    /// Reads up to `max` bytes of the body. Fills nothing after the last frame.
    fn poll_read<R: AsyncRead + Unpin>(
        &mut self,
        input: &mut Input<R>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        max: u64,
    ) -> PollIo {
        while self.left == 0 {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            let mut length = ReadBuf::new(&mut self.length[self.length_seen..]);
            ready!(input.poll_bare(cx, &mut length))?;
            let got = length.filled().len();
            if got == 0 {
                return Poll::Ready(Err(truncated(self.op, "the length of a frame")));
            }
            self.length_seen += got;
            if self.length_seen < 8 {
                continue;
            }
            self.length_seen = 0;
            let len = u64::from_le_bytes(self.length);
            if len > MAX_FRAME_BYTES {
                let problem = Problem::TooLong { len, limit: MAX_FRAME_BYTES };
                return Poll::Ready(Err(self.bad("the length of a frame", problem)));
            }
            self.left = len;
            self.done = len == 0;
        }
        let max = max.min(self.left);
        if max > 0 && self.budget == 0 {
            let problem = Problem::BodyTooLarge { limit: self.limit };
            return Poll::Ready(Err(self.bad("the body", problem)));
        }
        let got = ready!(poll_some(input, cx, buf, max.min(self.budget), self.op))?;
        self.left -= got;
        self.budget -= got;
        Poll::Ready(Ok(()))
    }
}

impl Asked {
    fn poll_read<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        input: &mut Input<R>,
        output: &mut Output<W>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> PollIo {
        loop {
            match &mut self.step {
                AskStep::Ask if self.unasked == 0 || buf.remaining() == 0 => return Poll::Ready(Ok(())),
                AskStep::Ask => {
                    let asked = self.unasked.min(TUNNEL_CHUNK_BYTES);
                    output.buffer.u64(STDERR_READ);
                    output.buffer.u64(asked);
                    self.step = AskStep::Send { asked };
                }
                AskStep::Send { asked } => {
                    ready!(output.poll_flush(cx))?;
                    self.step = AskStep::Length { asked: *asked, bytes: [0; 8], seen: 0 };
                }
                AskStep::Length { asked, bytes, seen } => {
                    let mut length = ReadBuf::new(&mut bytes[*seen..]);
                    ready!(Pin::new(&mut *input).poll_read(cx, &mut length))?;
                    let got = length.filled().len();
                    if got == 0 {
                        return Poll::Ready(Err(truncated(self.op, "the length of a piece")));
                    }
                    *seen += got;
                    if *seen < 8 {
                        continue;
                    }
                    let len = u64::from_le_bytes(*bytes);
                    let problem = match len {
                        0 => Problem::BodyTooShort { left: self.unasked, size: self.size },
                        len if len > *asked => Problem::TooLong { len, limit: *asked },
                        len => {
                            self.unasked -= len;
                            self.step = AskStep::Bytes { left: len, pad: padding_after(len) };
                            continue;
                        }
                    };
                    let error = WireError::Field { op: self.op, field: "the length of a piece", problem };
                    return Poll::Ready(Err(error.into_io()));
                }
                AskStep::Bytes { left, pad } => {
                    let got = ready!(poll_some(input, cx, buf, *left, self.op))?;
                    *left -= got;
                    if *left == 0 {
                        self.step = AskStep::Padding { left: *pad };
                    }
                    if got > 0 || buf.remaining() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                AskStep::Padding { left: 0 } => self.step = AskStep::Ask,
                AskStep::Padding { left } => {
                    let mut bytes = [0; 8];
                    let mut padding = ReadBuf::new(&mut bytes[..*left]);
                    ready!(Pin::new(&mut *input).poll_read(cx, &mut padding))?;
                    let padding = padding.filled();
                    if padding.is_empty() {
                        return Poll::Ready(Err(truncated(self.op, "the body")));
                    }
                    if padding.iter().any(|byte| *byte != 0) {
                        let problem = Problem::Padding { len: self.size - self.unasked };
                        let error = WireError::Field { op: self.op, field: "the body", problem };
                        return Poll::Ready(Err(error.into_io()));
                    }
                    *left -= padding.len();
                }
            }
        }
    }
}

/// The body of a request, to be read to its end. See [`Connection::body`].
pub struct Body<'a, R, W> {
    pub(super) conn: &'a mut Connection<R, W>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> AsyncRead for Body<'_, R, W> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.get_mut().poll_some(cx, buf);
        nothing_with_an_error(read, buf, before)
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Body<'_, R, W> {
    fn poll_some(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> PollIo {
        let Connection { input, output, body, .. } = &mut *self.conn;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match body {
            BodyState::None => Poll::Ready(Ok(())),
            BodyState::Framed(frames) => frames.poll_read(input, cx, buf, u64::MAX),
            BodyState::Asked(asked) => asked.poll_read(input, output, cx, buf),
            BodyState::Nar(nar) => nar.poll_read(input, cx, buf),
            BodyState::Items(items) => {
                let Some(item) = items.item.as_mut().filter(|item| item.left() > 0) else {
                    return Poll::Ready(Ok(()));
                };
                let before = buf.filled().len();
                ready!(items.frames.poll_read(input, cx, buf, item.left()))?;
                let new = &buf.filled()[before..];
                if new.is_empty() {
                    let problem = Problem::BodyTooShort { left: item.left(), size: item.size() };
                    return Poll::Ready(Err(items.frames.bad("the NAR", problem)));
                }
                Poll::Ready(item.took(new))
            }
        }
    }
}

/// The body of an `AddMultipleToStore` as a source of fields.
struct ItemsReader<'a, R> {
    frames: &'a mut Frames,
    input: &'a mut Input<R>,
}

impl<R: AsyncRead + Unpin> AsyncRead for ItemsReader<'_, R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.frames.poll_read(this.input, cx, buf, u64::MAX)
    }
}

/// See [`Connection::next_item`].
pub(super) async fn next_item<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
) -> Result<Option<PathInfo>, WireError> {
    if !matches!(conn.body, BodyState::Items(_)) {
        return Err(WireError::Misuse { op: "none", what: "this request has no items" });
    }
    // No limit except the item's own, which was checked when it began.
    skip(conn, u64::MAX).await?;
    conn.terms.forget();
    let Connection { input, body: BodyState::Items(items), terms, .. } = conn else { return Ok(None) };
    items.item = None;
    let op = items.frames.op;
    let mut source = ItemsReader { frames: &mut items.frames, input };
    let read = item_info(&mut source, terms.meter.as_deref(), op, items.left, items.max_item_bytes).await;
    let (left, info) = match read {
        // The frames ended although the connection did not.
        Err(WireError::Truncated { op, field }) if items.frames.done => {
            return Err(WireError::Field { op, field, problem: Problem::BodyEnded });
        }
        read => read?,
    };
    items.left = Some(left);
    items.item = info.as_ref().map(|info| SizedNar::new(items.frames.op, info.nar_size));
    Ok(info)
}

/// Reads the path info of the next item; returns it with the number of items after it.
async fn item_info<S: AsyncRead + Unpin>(
    source: &mut S,
    meter: Option<&dyn Meter>,
    op: &'static str,
    left: Option<u64>,
    limit: u64,
) -> Result<(u64, Option<PathInfo>), WireError> {
    let mut fields = Fields::new(source, op).metered(meter);
    let left = match left {
        Some(left) => left,
        None => fields.count("the number of paths", MAX_ITEMS).await?,
    };
    if left == 0 {
        return Ok((0, None));
    }
    let info = crate::read::path_info(&mut fields).await?;
    match info.nar_size {
        0 => Err(fields.bad("the size of the NAR", Problem::EmptyNar)),
        size if size > limit => Err(fields.bad("the size of the NAR", Problem::BodyTooLarge { limit })),
        _ => Ok((left - 1, Some(info))),
    }
}

/// Reads and drops up to `limit` bytes of the current body or item.
async fn skip<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
    limit: u64,
) -> Result<(), WireError> {
    let mut dropped = 0;
    let mut buffer = vec![0; 16 << 10];
    loop {
        match conn.body().read(&mut buffer).await? {
            0 => return Ok(()),
            got => dropped += got as u64,
        }
        if dropped > limit {
            let op = conn.pending().map_or("none", Op::name);
            let problem = Problem::BodyTooLarge { limit };
            return Err(WireError::Field { op, field: REFUSED_BODY, problem });
        }
    }
}

/// After an answer: reads the body to its end, so that the next bytes are the next request.
pub(super) async fn skip_rest<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
) -> Result<(), WireError> {
    finish_asking(conn).await?;
    match std::mem::replace(&mut conn.body, BodyState::None) {
        BodyState::None => return Ok(()),
        // The items are not needed any more, and may be invalid; only the frames around them have to be read.
        BodyState::Items(items) => conn.body = BodyState::Framed(items.frames),
        // The client does not answer requests for data any more, and sends no data without them.
        BodyState::Asked(_) => return Ok(()),
        other => conn.body = other,
    }
    if let BodyState::Framed(frames) = &mut conn.body {
        frames.budget = u64::MAX;
    }
    skip(conn, MAX_DISCARD_BYTES).await?;
    conn.body = BodyState::None;
    Ok(())
}

/// Before an answer: if a piece of the body was requested, the client is sending it, and it has to be read.
pub(super) async fn finish_asking<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
) -> Result<(), WireError> {
    let BodyState::Asked(asked) = &mut conn.body else { return Ok(()) };
    // No further piece will be requested.
    match &asked.step {
        AskStep::Ask => return Ok(()),
        AskStep::Send { .. } | AskStep::Length { .. } | AskStep::Bytes { .. } | AskStep::Padding { .. } => {}
    }
    let mut buffer = vec![0; 16 << 10];
    loop {
        let BodyState::Asked(asked) = &mut conn.body else { return Ok(()) };
        if matches!(asked.step, AskStep::Ask) {
            return Ok(());
        }
        if matches!(asked.step, AskStep::Padding { .. }) {
            // With nothing left to request, reading stops after the padding.
            asked.unasked = 0;
        }
        if conn.body().read(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}
