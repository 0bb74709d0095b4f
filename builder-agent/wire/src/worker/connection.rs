//! One connection: reads requests and writes answers, each exactly once and in order.

use std::future::Future;

use nix::PathInfo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::body::{Body, BodyState};
use super::log::{Failure, LogEvent};
use super::op::{Answer, Op};
use super::request::Request;
use super::response::Response;
use super::version::Protocol;
use super::{handshake, log_write, request_read, response_write};
use crate::error::WireError;
use crate::input::Input;
use crate::nar_body::NarOut;
use crate::output::Output;
use crate::read::next_number;
use crate::terms::Terms;

/// The server's name and version for the client, and its limits.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// Shown by `nix store info`.
    pub nix_version: String,
    pub terms: Terms,
    /// Why no session is opened; the client gets it as the error of the handshake.
    pub closed: Option<String>,
}

impl ServerInfo {
    pub fn new(nix_version: impl Into<String>) -> Self {
        Self { nix_version: nix_version.into(), terms: Terms::default(), closed: None }
    }
}

/// A connection after the handshake.
pub struct Connection<R, W> {
    pub(super) input: Input<R>,
    pub(super) output: Output<W>,
    pub(super) protocol: Protocol,
    pub(super) body: BodyState,
    pub(super) terms: Terms,
    /// The operation of the request that still waits for its answer.
    pending: Option<Op>,
    /// Set when the position in the stream is lost; holds the operation at which that happened.
    broken: Option<Op>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Performs the handshake. Clients before [`Version::OLDEST`](super::Version::OLDEST) get a message and
    /// are refused.
    pub async fn accept(reader: R, writer: W, info: ServerInfo) -> Result<Self, WireError> {
        let ServerInfo { nix_version, terms, closed } = info;
        let (mut input, mut output) = (Input::new(reader, terms.stall), Output::new(writer, terms.stall));
        let protocol = handshake::accept(&mut input, &mut output, &nix_version, closed).await?;
        Ok(Self::new(input, output, protocol, terms))
    }

    /// A connection for which this protocol was agreed on, without a handshake.
    #[cfg(feature = "client")]
    pub fn after_handshake(reader: R, writer: W, protocol: Protocol, max_body_bytes: u64) -> Self {
        let terms = Terms { max_body_bytes, ..Terms::default() };
        Self::new(Input::new(reader, None), Output::new(writer, None), protocol, terms)
    }

    fn new(input: Input<R>, output: Output<W>, protocol: Protocol, terms: Terms) -> Self {
        Self { input, output, protocol, body: BodyState::None, terms, pending: None, broken: None }
    }

    /// The agreed version and features.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The next request, or `None` if the client hung up between two. Sends the buffered answers before it
    /// waits, and only then, so that answers to pipelined requests travel together. Not cancel safe.
    pub async fn next_request(&mut self) -> Result<Option<Request>, WireError> {
        if let Some(op) = self.pending {
            return Err(WireError::Misuse { op: op.name(), what: "the last request was not answered" });
        }
        if let Some(op) = self.broken {
            return Err(WireError::OutOfStep { op: op.name(), why: "its body could not be skipped" });
        }
        self.terms.forget();
        let Some(number) = next_number(&mut self.input, &mut self.output).await? else { return Ok(None) };
        let Some(op) = Op::from_number(number) else { return Err(WireError::Unsupported { op: number }) };
        let meter = self.terms.meter.as_deref();
        let request = request_read::arguments(&mut self.input, meter, self.protocol, op).await?;
        self.body = BodyState::of(op, &request, self.protocol, self.terms.max_body_bytes);
        self.pending = Some(op);
        Ok(Some(request))
    }

    /// The operation of the request that waits for its answer.
    pub fn pending(&self) -> Option<Op> {
        self.pending
    }

    /// The body of this request, or of the item that [`next_item`](Self::next_item) just returned. Ends at
    /// its own end, which is checked; may be dropped and taken up again. Empty for requests without a body.
    pub fn body(&mut self) -> Body<'_, R, W> {
        Body { conn: self }
    }

    /// The next path of an `AddMultipleToStore`; its NAR is the [`body`](Self::body). Skips the rest of the
    /// previous NAR. `None` after the last path.
    pub async fn next_item(&mut self) -> Result<Option<PathInfo>, WireError> {
        super::body::next_item(self).await
    }

    /// Sends an event to the client. Buffered: call [`flush`](Self::flush) when no other event follows soon.
    pub async fn log(&mut self, event: &LogEvent) -> Result<(), WireError> {
        self.expect_pending("log event outside of a request")?;
        log_write::event(&mut self.output.buffer, self.protocol, event);
        Ok(self.output.relieve().await?)
    }

    pub async fn flush(&mut self) -> Result<(), WireError> {
        Ok(self.output.flush().await?)
    }

    /// Ready when the client has hung up. Cancel safe. (If a client pipelines more than a buffer while its
    /// request runs, the hang-up is noticed only at the next write.)
    pub async fn closed(&mut self) {
        std::future::poll_fn(|cx| self.input.poll_closed(cx)).await
    }

    /// Runs `work` and sends each event that arrives from `events` to the client at once. `render` makes zero
    /// or more log events of this protocol from an event. Drops `work` and fails with
    /// [`WireError::Truncated`] as soon as the client hangs up. When `work` is done, the remaining `events`
    /// are sent, too; senders may still exist. The request still has to be answered.
    pub async fn run<F: Future, E>(
        &mut self,
        work: F,
        events: &mut mpsc::Receiver<E>,
        mut render: impl FnMut(E, &mut Vec<LogEvent>),
    ) -> Result<F::Output, WireError> {
        let op = self.expect_pending("work outside of a request")?;
        let mut work = std::pin::pin!(work);
        // A hang-up can be watched for only after the client has sent the whole request.
        let watch = self.body.is_finished();
        let mut open = true;
        let mut rendered = Vec::new();
        loop {
            tokio::select! {
                biased;
                event = events.recv(), if open => match event {
                    Some(event) => {
                        render(event, &mut rendered);
                        self.log_all(&mut rendered, events, &mut render).await?;
                        self.flush().await?;
                    }
                    None => open = false,
                },
                output = &mut work => {
                    self.log_all(&mut rendered, events, &mut render).await?;
                    return Ok(output);
                }
                () = self.closed(), if watch => {
                    return Err(WireError::Truncated { op: op.name(), field: "the answer's reader" });
                }
            }
        }
    }

    /// Writes the rendered log events, and all events that have arrived.
    async fn log_all<E>(
        &mut self,
        rendered: &mut Vec<LogEvent>,
        events: &mut mpsc::Receiver<E>,
        render: &mut impl FnMut(E, &mut Vec<LogEvent>),
    ) -> Result<(), WireError> {
        loop {
            for event in rendered.drain(..) {
                self.log(&event).await?;
            }
            let Ok(event) = events.try_recv() else { return Ok(()) };
            render(event, rendered);
        }
    }

    /// Answers the request. Skips the rest of its body.
    pub async fn reply(&mut self, response: &Response) -> Result<(), WireError> {
        let op = self.expect_pending("answer without a request")?;
        response_write::check(op, response)?;
        // The time of the agent's own work does not count as the client's delay.
        self.input.begin();
        super::body::skip_rest(self).await?;
        log_write::last(&mut self.output.buffer);
        response_write::write(&mut self.output, self.protocol, op, response).await?;
        self.pending = None;
        Ok(())
    }

    /// Answers `NarFromPath`: write the NAR and call [`finish`](NarReply::finish). The caller must check for
    /// failures first: there is no way to report one in the middle of a NAR, and the caller can only drop the
    /// answer and the connection.
    pub async fn reply_nar(&mut self) -> Result<NarReply<'_, R, W>, WireError> {
        let op = self.expect_pending("answer without a request")?;
        if op.info().answer != Answer::Nar {
            return Err(WireError::Misuse { op: op.name(), what: "a NAR does not answer this operation" });
        }
        log_write::last(&mut self.output.buffer);
        self.pending = None;
        self.broken = Some(op);
        Ok(NarReply { conn: self, nar: NarOut::new(op.name()) })
    }

    /// Answers the request with an error. Sends the error at once, because the client may still be sending
    /// the body and stops when it reads the error; then skips the rest of the body. If that is impossible the
    /// error is still sent, and `OutOfStep` is returned.
    pub async fn fail(&mut self, failure: &Failure) -> Result<(), WireError> {
        let op = self.expect_pending("error without a request")?;
        self.pending = None;
        super::body::finish_asking(self).await?;
        log_write::error(&mut self.output.buffer, self.protocol, failure);
        self.output.flush().await?;
        self.input.begin();
        if let Err(error) = super::body::skip_rest(self).await {
            self.broken = Some(op);
            return Err(match error {
                error if error.is_disconnect() => error,
                _ => WireError::OutOfStep { op: op.name(), why: "the rest of its body could not be skipped" },
            });
        }
        Ok(())
    }

    /// Sends the client the reason for the end of the connection, in these words. For errors of this crate;
    /// the connection cannot be used afterwards.
    pub async fn refuse(&mut self, error: &WireError, message: String) -> Result<(), WireError> {
        self.pending = None;
        if error.is_disconnect() {
            return Ok(());
        }
        log_write::error(&mut self.output.buffer, self.protocol, &Failure::new(message));
        Ok(self.output.flush().await?)
    }

    fn expect_pending(&self, what: &'static str) -> Result<Op, WireError> {
        self.pending.ok_or(WireError::Misuse { op: "none", what })
    }
}

/// The NAR that answers a `NarFromPath`. Checked while it is sent, because the client finds its end by
/// parsing.
pub struct NarReply<'a, R, W> {
    conn: &'a mut Connection<R, W>,
    nar: NarOut,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> NarReply<'_, R, W> {
    /// Sends the next bytes of the NAR.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.nar.write(&mut self.conn.output, bytes).await
    }

    /// Ends the answer; the NAR must be complete.
    pub async fn finish(self) -> Result<(), WireError> {
        self.nar.finish()?;
        self.conn.broken = None;
        Ok(())
    }
}
