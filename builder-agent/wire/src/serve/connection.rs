//! One connection: reads requests and writes answers, each exactly once and in order.

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{self, Body, BodyState};
use super::op::{Answer, Op};
use super::reply::{self, ExportReply, InfosReply, NarReply, Response};
use super::request::{ImportedInfo, Request};
use super::{CLIENT_MAGIC, NEWEST, OLDEST, SERVER_MAGIC, request_read};
use crate::error::WireError;
use crate::input::{Fields, Input};
use crate::nar_body::NarOut;
use crate::output::{Encode, Output};
use crate::read::next_number;
use crate::terms::Terms;
use crate::worker::Version;

/// A connection after the handshake.
pub struct Connection<R, W> {
    pub(super) input: Input<R>,
    pub(super) output: Output<W>,
    pub(super) version: Version,
    pub(super) body: BodyState,
    pub(super) terms: Terms,
    /// The operation of the request that still waits for its answer.
    pending: Option<Op>,
    /// Set while an answer is only partly sent, and when the position in the stream is lost.
    pub(super) broken: Option<Op>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Performs the handshake. Clients before [`OLDEST`] are refused without a message, since the protocol
    /// has none.
    pub async fn accept(reader: R, writer: W, terms: Terms) -> Result<Self, WireError> {
        let (mut input, mut output) = (Input::new(reader, terms.stall), Output::new(writer, terms.stall));
        let fields = &mut Fields::new(&mut input, "the handshake");
        let magic = fields.u64("magic number").await?;
        if magic != CLIENT_MAGIC {
            return Err(WireError::NotNix { got: magic, expected: CLIENT_MAGIC });
        }
        output.buffer.u64(SERVER_MAGIC);
        output.buffer.u64(NEWEST.to_wire());
        output.flush().await?;
        let client = fields.u64("version").await?;
        let Some(client) = Version::from_wire(client) else {
            return Err(fields.unexpected(
                "version",
                format!("{client:#x}").as_bytes(),
                "a protocol version",
            ));
        };
        if client < OLDEST {
            return Err(WireError::TooOld { client, oldest: OLDEST });
        }
        Ok(Self::new(input, output, client.min(NEWEST), terms))
    }

    /// A connection for which this version was agreed on, without a handshake.
    #[cfg(feature = "test-client")]
    pub fn after_handshake(reader: R, writer: W, version: Version, max_nar_bytes: u64) -> Self {
        let terms = Terms { max_body_bytes: max_nar_bytes, ..Terms::default() };
        Self::new(Input::new(reader, None), Output::new(writer, None), version, terms)
    }

    fn new(input: Input<R>, output: Output<W>, version: Version, terms: Terms) -> Self {
        Self { input, output, version, body: BodyState::None, terms, pending: None, broken: None }
    }

    /// The agreed version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The next request, or `None` if the client hung up between two. Sends the buffered answers before it
    /// waits, and only then, so that answers to pipelined requests travel together. Not cancel safe.
    pub async fn next_request(&mut self) -> Result<Option<Request>, WireError> {
        if let Some(op) = self.pending {
            return Err(WireError::Misuse { op: op.name(), what: "the last request was not answered" });
        }
        if let Some(op) = self.broken {
            return Err(WireError::OutOfStep { op: op.name(), why: "its answer was not finished" });
        }
        self.terms.forget();
        let Some(number) = next_number(&mut self.input, &mut self.output).await? else { return Ok(None) };
        let Some(op) = Op::from_number(number) else { return Err(WireError::Unsupported { op: number }) };
        let request = request_read::arguments(&mut self.input, &self.terms, self.version, op).await?;
        self.body = BodyState::of(op, &request);
        self.pending = Some(op);
        Ok(Some(request))
    }

    /// The command of the request that waits for its answer.
    pub fn pending(&self) -> Option<Op> {
        self.pending
    }

    /// The NAR of this request, or the one that [`next_nar`](Self::next_nar) just announced. Ends at the end
    /// of the NAR, which is checked; may be dropped and taken up again. Empty for requests without a body.
    pub fn body(&mut self) -> Body<'_, R, W> {
        Body { conn: self }
    }

    /// Whether another NAR follows in an `ImportPaths`. The caller reads it as the [`body`](Self::body) to
    /// its end, before [`trailer`](Self::trailer) returns its path info.
    pub async fn next_nar(&mut self) -> Result<bool, WireError> {
        let op = self.expect_pending("a NAR outside of a request")?;
        body::next_nar(self, op).await
    }

    /// The path info of the NAR that has just been read.
    pub async fn trailer(&mut self) -> Result<ImportedInfo, WireError> {
        let op = self.expect_pending("a NAR outside of a request")?;
        body::trailer(self, op).await
    }

    /// Sends the buffered answers.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        Ok(self.output.flush().await?)
    }

    /// Ready when the client has hung up. Cancel safe. (If a client pipelines more than a buffer while its
    /// request runs, the hang-up is noticed only at the next write.)
    pub async fn closed(&mut self) {
        std::future::poll_fn(|cx| self.input.poll_closed(cx)).await
    }

    /// Runs `work`; drops it and fails with [`WireError::Truncated`] as soon as the client hangs up. Sends
    /// buffered answers first. The request still has to be answered.
    pub async fn run<F: Future>(&mut self, work: F) -> Result<F::Output, WireError> {
        let op = self.expect_pending("work outside of a request")?;
        self.output.flush().await?;
        // A hang-up can be watched for only after the client has sent the whole request.
        let watch = self.body.is_finished();
        tokio::select! {
            biased;
            output = work => Ok(output),
            () = self.closed(), if watch => {
                Err(WireError::Truncated { op: op.name(), field: "the answer's reader" })
            }
        }
    }

    /// Answers the request. Skips the rest of its body first: clients send all of it before they read the
    /// answer.
    pub async fn reply(&mut self, response: &Response) -> Result<(), WireError> {
        let op = self.expect_pending("answer without a request")?;
        reply::check(op, response)?;
        // The time of the agent's own work does not count as the client's delay.
        self.input.begin();
        body::skip_rest(self, op).await?;
        reply::write(&mut self.output, self.version, response).await?;
        self.pending = None;
        Ok(())
    }

    /// Answers `QueryPathInfos`.
    pub async fn reply_infos(&mut self) -> Result<InfosReply<'_, R, W>, WireError> {
        self.begin(Answer::PathInfos)?;
        Ok(InfosReply { conn: self })
    }

    /// Answers `DumpStorePath`. The caller must check for failures first: there is no way to report one in
    /// the middle of a NAR, and the caller can only drop the answer and the connection.
    pub async fn reply_nar(&mut self) -> Result<NarReply<'_, R, W>, WireError> {
        let op = self.begin(Answer::Nar)?;
        Ok(NarReply { conn: self, nar: NarOut::new(op.name()) })
    }

    /// Answers `ExportPaths`. Failures as for `DumpStorePath`.
    pub async fn reply_export(&mut self) -> Result<ExportReply<'_, R, W>, WireError> {
        let op = self.begin(Answer::Export)?;
        Ok(ExportReply { conn: self, op, nar: None })
    }

    fn begin(&mut self, answer: Answer) -> Result<Op, WireError> {
        let op = self.expect_pending("answer without a request")?;
        if op.info().answer != answer {
            return Err(WireError::Misuse { op: op.name(), what: "an answer of the wrong shape" });
        }
        self.pending = None;
        self.broken = Some(op);
        Ok(op)
    }

    fn expect_pending(&self, what: &'static str) -> Result<Op, WireError> {
        self.pending.ok_or(WireError::Misuse { op: "none", what })
    }
}
