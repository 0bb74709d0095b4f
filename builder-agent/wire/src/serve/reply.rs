//! Answers that fit in memory, and answers that are streamed.

use nix::{BuildResult, BuildStatus, PathInfo};
use nix_derivation::StorePath;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::Connection;
use super::op::{Answer, Op};
use super::{EXPORT_MAGIC, version};
use crate::error::WireError;
use crate::nar_body::NarOut;
use crate::output::{Encode, Output};
use crate::worker::Version;
use crate::write::{built_outputs, built_outputs_json};

/// An answer, one variant per shape. See [`Connection::reply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// `AddToStoreNar`, `ImportPaths`: success.
    Done,
    /// `AddToStoreNar`, `ImportPaths`: failure. The client's message names the path and the host, but not the
    /// reason.
    Refused,
    /// `QueryValidPaths`, `QueryClosure`.
    Paths(Vec<StorePath>),
    /// `BuildPaths`. The message is only sent with the status of a failure.
    ///
    /// Clients before Nix 2.34 make the status their exit code; Nix's own servers send an exit code there (100 and
    /// more), which newer clients cannot read.
    Status(BuildStatus, String),
    /// `BuildDerivation`.
    BuildResult(BuildResult),
}

/// Whether an answer of this form fits this command.
pub(super) fn check(op: Op, response: &Response) -> Result<(), WireError> {
    match (op.info().answer, response) {
        (Answer::One, Response::Done | Response::Refused)
        | (Answer::Paths, Response::Paths(_))
        | (Answer::Status, Response::Status(..))
        | (Answer::BuildResult, Response::BuildResult(_)) => Ok(()),
        _ => Err(WireError::Misuse { op: op.name(), what: "an answer of the wrong shape" }),
    }
}

/// Writes an answer that [`check`] accepted.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    output: &mut Output<W>,
    client: Version,
    response: &Response,
) -> Result<(), WireError> {
    let out = &mut output.buffer;
    match response {
        Response::Done => out.u64(1),
        Response::Refused => out.u64(0),
        Response::Paths(paths) => {
            out.u64(paths.len() as u64);
            for path in paths {
                output.buffer.path(path);
                output.relieve().await?;
            }
        }
        Response::Status(status, message) => {
            out.u64(*status as u64);
            if !status.is_success() {
                out.str(message);
            }
        }
        Response::BuildResult(result) => build_result(out, client, result),
    }
    Ok(output.relieve().await?)
}

fn build_result(out: &mut Vec<u8>, client: Version, result: &BuildResult) {
    out.u64(result.status as u64);
    out.str(&result.error_msg);
    if client >= version(3) {
        out.u64(result.times_built.into());
        out.bool(result.is_non_deterministic);
        out.u64(result.start_time as u64);
        out.u64(result.stop_time as u64);
    }
    if client >= version(8) {
        built_outputs(out, result);
    } else if client >= version(6) {
        built_outputs_json(out, result);
    }
}

/// (Nix: `ServeProto::Serialise<UnkeyedValidPathInfo>::write`.)
fn path_info(out: &mut Vec<u8>, client: Version, info: &PathInfo) {
    out.path(&info.path);
    out.maybe_path(info.deriver.as_ref());
    out.paths(&info.references);
    // The size of a download; nothing is compressed here.
    out.u64(info.nar_size);
    out.u64(info.nar_size);
    if client >= version(4) {
        out.str(&format!("sha256:{}", nix_derivation::nixbase32::encode(&info.nar_hash)));
        out.str(&info.ca.as_ref().map(|ca| ca.to_nix_string()).unwrap_or_default());
        out.strings(&info.signatures);
    }
}

/// The infos that answer a `QueryPathInfos`: [`add`](Self::add) those of valid paths, then call
/// [`finish`](Self::finish).
pub struct InfosReply<'a, R, W> {
    pub(super) conn: &'a mut Connection<R, W>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> InfosReply<'_, R, W> {
    pub async fn add(&mut self, info: &PathInfo) -> Result<(), WireError> {
        path_info(&mut self.conn.output.buffer, self.conn.version, info);
        Ok(self.conn.output.relieve().await?)
    }

    pub async fn finish(self) -> Result<(), WireError> {
        self.conn.output.buffer.str("");
        self.conn.broken = None;
        Ok(())
    }
}

/// The NAR that answers a `DumpStorePath`. Checked while it is sent, because the client finds its end by
/// parsing.
pub struct NarReply<'a, R, W> {
    pub(super) conn: &'a mut Connection<R, W>,
    pub(super) nar: NarOut,
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

/// The export stream that answers an `ExportPaths`. For each path, references before referrers:
/// [`begin`](Self::begin), [`write`](Self::write) its NAR, [`end`](Self::end). Then [`finish`](Self::finish).
/// (Nix: `exportPaths` in export-import.cc.)
pub struct ExportReply<'a, R, W> {
    pub(super) conn: &'a mut Connection<R, W>,
    pub(super) op: Op,
    pub(super) nar: Option<NarOut>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> ExportReply<'_, R, W> {
    /// Begins the next NAR.
    pub async fn begin(&mut self) -> Result<(), WireError> {
        if self.nar.is_some() {
            return Err(self.misuse("a NAR inside another"));
        }
        self.nar = Some(NarOut::new(self.op.name()));
        self.conn.output.buffer.u64(1);
        Ok(())
    }

    /// Sends the next bytes of the NAR.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let Some(nar) = &mut self.nar else { return Err(self.misuse("bytes outside of a NAR")) };
        nar.write(&mut self.conn.output, bytes).await
    }

    /// Ends the NAR, and sends its path info.
    pub async fn end(&mut self, info: &PathInfo) -> Result<(), WireError> {
        let Some(nar) = self.nar.take() else { return Err(self.misuse("an end without a NAR")) };
        nar.finish()?;
        let out = &mut self.conn.output.buffer;
        out.u64(EXPORT_MAGIC);
        out.path(&info.path);
        out.paths(&info.references);
        out.maybe_path(info.deriver.as_ref());
        out.u64(0); // no signature
        Ok(self.conn.output.relieve().await?)
    }

    /// Ends the stream.
    pub async fn finish(self) -> Result<(), WireError> {
        if self.nar.is_some() {
            return Err(self.misuse("the NAR is not complete"));
        }
        self.conn.output.buffer.u64(0);
        self.conn.broken = None;
        Ok(())
    }

    fn misuse(&self, what: &'static str) -> WireError {
        WireError::Misuse { op: self.op.name(), what }
    }
}
