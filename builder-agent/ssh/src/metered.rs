//! The bytes that the holder of a ticket sends in a session, counted as they are read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use daemon::Reader;
use tickets::Ticket;
use tokio::io::{AsyncRead, ReadBuf};
use wire::WireError;

/// A client's bytes, until they are more than its ticket allows. What was read before counts also if it is refused later.
pub(crate) struct Metered<'a> {
    inner: Reader<'a>,
    ticket: Arc<Ticket>,
}

impl<'a> Metered<'a> {
    pub fn new(inner: Reader<'a>, ticket: Arc<Ticket>) -> Self {
        Self { inner, ticket }
    }
}

impl AsyncRead for Metered<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        let counted = self.ticket.uploads(read as u64);
        Poll::Ready(counted.map_err(|over| WireError::Refused(over.to_string()).into_io()))
    }
}
