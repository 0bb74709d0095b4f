//! One connection: requests in, answers out, each exactly once and in order.

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

/// What a server says of itself, and what it accepts.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// Shown by `nix store info`.
    pub nix_version: String,
    pub terms: Terms,
}

impl ServerInfo {
    pub fn new(nix_version: impl Into<String>) -> Self {
        Self { nix_version: nix_version.into(), terms: Terms::default() }
    }
}

/// A client we shook hands with.
pub struct Connection<R, W> {
    pub(super) input: Input<R>,
    pub(super) output: Output<W>,
    pub(super) protocol: Protocol,
    pub(super) body: BodyState,
    pub(super) terms: Terms,
    /// The request that still waits for its answer.
    pending: Option<Op>,
    /// Set when the stream is no longer in step; holds the operation that did it.
    broken: Option<Op>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Shakes hands. Clients before [`Version::OLDEST`](super::Version::OLDEST) are told so and refused.
    pub async fn accept(reader: R, writer: W, info: ServerInfo) -> Result<Self, WireError> {
        let ServerInfo { nix_version, terms } = info;
        let (mut input, mut output) = (Input::new(reader, terms.stall), Output::new(writer, terms.stall));
        let protocol = handshake::accept(&mut input, &mut output, &nix_version).await?;
        Ok(Self::new(input, output, protocol, terms))
    }

    /// As if a handshake had agreed on this.
    #[cfg(feature = "client")]
    pub fn after_handshake(reader: R, writer: W, protocol: Protocol, max_body_bytes: u64) -> Self {
        let terms = Terms { max_body_bytes, ..Terms::default() };
        Self::new(Input::new(reader, None), Output::new(writer, None), protocol, terms)
    }

    fn new(input: Input<R>, output: Output<W>, protocol: Protocol, terms: Terms) -> Self {
        Self { input, output, protocol, body: BodyState::None, terms, pending: None, broken: None }
    }

    /// What was agreed on.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The next request, or `None` when the client hung up between two. Sends what is buffered before it waits,
    /// and only then, so that answers to pipelined requests travel together. Not cancel safe.
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

    /// The body of this request, or of the item [`next_item`](Self::next_item) just returned. Ends where it ends,
    /// checked; may be dropped and taken up again. Empty for requests without one.
    pub fn body(&mut self) -> Body<'_, R, W> {
        Body { conn: self }
    }

    /// The next path of an `AddMultipleToStore`; its NAR is the [`body`](Self::body), and what the caller did not
    /// read of the one before is skipped. `None` after the last.
    pub async fn next_item(&mut self) -> Result<Option<PathInfo>, WireError> {
        super::body::next_item(self).await
    }

    /// Shows the client something. Buffered: [`flush`](Self::flush) when there is nothing more to add for now.
    pub async fn log(&mut self, event: &LogEvent) -> Result<(), WireError> {
        self.expect_pending("log event outside of a request")?;
        log_write::event(&mut self.output.buffer, self.protocol, event);
        Ok(self.output.relieve().await?)
    }

    pub async fn flush(&mut self) -> Result<(), WireError> {
        Ok(self.output.flush().await?)
    }

    /// Ready when the client has hung up. Cancel safe. (A client that pipelines more than a buffer while its
    /// request runs is only noticed when we write.)
    pub async fn closed(&mut self) {
        std::future::poll_fn(|cx| self.input.poll_closed(cx)).await
    }

    /// Does `work` and shows the client what arrives from `events` at once. `render` says what each event is in this
    /// protocol: nothing, or some log events. Drops `work` and fails with [`WireError::Truncated`] as soon as the
    /// client hangs up. After `work` is done, what is left in `events` is shown, too; senders may live on. The request
    /// still has to be answered.
    pub async fn run<F: Future, E>(
        &mut self,
        work: F,
        events: &mut mpsc::Receiver<E>,
        mut render: impl FnMut(E, &mut Vec<LogEvent>),
    ) -> Result<F::Output, WireError> {
        let op = self.expect_pending("work outside of a request")?;
        let mut work = std::pin::pin!(work);
        // A hang-up is only watched for when the client has no more of this request to send.
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

    /// Writes what has been rendered, and all events that have arrived.
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

    /// Answers the request. What is left of its body is skipped.
    pub async fn reply(&mut self, response: &Response) -> Result<(), WireError> {
        let op = self.expect_pending("answer without a request")?;
        response_write::check(op, response)?;
        // What we did meanwhile was not the client's delay.
        self.input.begin();
        super::body::skip_rest(self).await?;
        log_write::last(&mut self.output.buffer);
        response_write::write(&mut self.output, self.protocol, op, response).await?;
        self.pending = None;
        Ok(())
    }

    /// Answers `NarFromPath`: write the NAR and [`finish`](NarReply::finish). Failures must be noticed before, since
    /// there is no way to report one in the middle: then drop the answer and the connection.
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

    /// Answers the request with an error. The error is sent at once, because the client may still be sending the
    /// body and stops when it hears of it; then the rest of the body is skipped. When that is impossible the
    /// error is still sent, and `OutOfStep` returned.
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

    /// Tells the client why the connection ends, in these words. For errors of this crate; the connection is of no use
    /// afterwards.
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

/// The NAR that answers a `NarFromPath`. Checked as it passes, because the client finds the end by parsing.
pub struct NarReply<'a, R, W> {
    conn: &'a mut Connection<R, W>,
    nar: NarOut,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> NarReply<'_, R, W> {
    /// The next bytes of the NAR.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.nar.write(&mut self.conn.output, bytes).await
    }

    /// The NAR is complete.
    pub async fn finish(self) -> Result<(), WireError> {
        self.nar.finish()?;
        self.conn.broken = None;
        Ok(())
    }
}
