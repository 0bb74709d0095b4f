//! Bodies: one NAR, or an export stream of many, each read to exactly its own end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::op::{BodyShape, Op};
use super::request::{ImportedInfo, Request};
use super::request_read;
use crate::error::{Problem, REFUSED_BODY, WireError};
use crate::limits::MAX_DISCARD_BYTES;
use crate::nar_body::{BareNar, SizedNar, nothing_with_an_error};

/// The unread part of the body of the current request.
pub(super) enum BodyState {
    None,
    Nar(SizedNar),
    /// Before the mark that says whether a NAR follows.
    ExportMark,
    ExportNar(BareNar),
}

impl BodyState {
    pub fn of(op: Op, request: &Request) -> Self {
        match (op.info().body, request) {
            (BodyShape::Nar, Request::AddToStoreNar { info }) => {
                Self::Nar(SizedNar::new(op.name(), info.nar_size))
            }
            (BodyShape::Export, _) => Self::ExportMark,
            _ => Self::None,
        }
    }

    /// Whether the whole body has been read.
    pub fn is_finished(&self) -> bool {
        match self {
            Self::None => true,
            Self::Nar(nar) => nar.left() == 0,
            Self::ExportMark | Self::ExportNar(_) => false,
        }
    }
}

/// The NAR of a request, to be read to its end. See [`Connection::body`].
pub struct Body<'a, R, W> {
    pub(super) conn: &'a mut Connection<R, W>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> AsyncRead for Body<'_, R, W> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Connection { input, body, .. } = &mut *self.get_mut().conn;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = match body {
            BodyState::None | BodyState::ExportMark => Poll::Ready(Ok(())),
            BodyState::Nar(nar) => nar.poll_read(input, cx, buf),
            BodyState::ExportNar(nar) => nar.poll_read(input, cx, buf),
        };
        nothing_with_an_error(read, buf, before)
    }
}

/// See [`Connection::next_nar`].
pub(super) async fn next_nar<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
    op: Op,
) -> Result<bool, WireError> {
    match conn.body {
        BodyState::ExportMark => {}
        BodyState::None => return Ok(false),
        BodyState::Nar(_) | BodyState::ExportNar(_) => {
            let what = "the next NAR before the end of this one";
            return Err(WireError::Misuse { op: op.name(), what });
        }
    }
    let more = request_read::more(&mut conn.input, op.name()).await?;
    conn.body = match more {
        true => BodyState::ExportNar(BareNar::new(op.name(), conn.terms.max_body_bytes)),
        false => BodyState::None,
    };
    Ok(more)
}

/// See [`Connection::trailer`].
pub(super) async fn trailer<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
    op: Op,
) -> Result<ImportedInfo, WireError> {
    match &conn.body {
        BodyState::ExportNar(nar) if nar.is_finished() => {}
        _ => return Err(WireError::Misuse { op: op.name(), what: "what follows a NAR before its end" }),
    }
    conn.terms.forget();
    let meter = conn.terms.meter.as_deref();
    let info = request_read::trailer(&mut conn.input, meter, op.name()).await?;
    conn.body = BodyState::ExportMark;
    Ok(info)
}

/// Reads the body to its end, so that the next bytes are the next request.
pub(super) async fn skip_rest<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
    op: Op,
) -> Result<(), WireError> {
    let mut left = MAX_DISCARD_BYTES;
    loop {
        match conn.body {
            BodyState::None => return Ok(()),
            BodyState::Nar(_) => {
                skip_nar(conn, op, &mut left).await?;
                conn.body = BodyState::None;
            }
            BodyState::ExportNar(_) => {
                skip_nar(conn, op, &mut left).await?;
                trailer(conn, op).await?;
            }
            BodyState::ExportMark => {
                next_nar(conn, op).await?;
            }
        }
    }
}

async fn skip_nar<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
    op: Op,
    left: &mut u64,
) -> Result<(), WireError> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let got = Body { conn }.read(&mut buffer).await? as u64;
        if got == 0 {
            return Ok(());
        }
        *left = left.checked_sub(got).ok_or(WireError::Field {
            op: op.name(),
            field: REFUSED_BODY,
            problem: Problem::BodyTooLarge { limit: MAX_DISCARD_BYTES },
        })?;
    }
}
