//! The errors of reading requests and writing answers.

use std::io;

use crate::limits::MAX_QUOTE_BYTES;
use crate::nar::NarError;

/// The reason why a connection cannot continue. After each of these errors the position in the stream is lost: tell
/// the client with [`Connection::refuse`](crate::worker::Connection::refuse) and close.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The client hung up during a message.
    #[error("the client hung up while we read {field} of {op}")]
    Truncated { op: &'static str, field: &'static str },

    /// The transport failed.
    #[error("the connection broke")]
    Io(#[source] io::Error),

    /// An unfinished message keeps a session, its memory and its unfinished file; without a limit a client
    /// could keep them for ever.
    #[error(
        "less than 64 KiB of a request came in {} seconds of waiting, which is the limit here; connect again and send it \
         anew",
        stall.as_secs()
    )]
    NothingSent { stall: std::time::Duration },

    /// The same for an answer, which the client does not read.
    #[error("the client took less than 64 KiB of an answer in {} seconds", stall.as_secs())]
    NothingTaken { stall: std::time::Duration },

    #[error(
        "this is no Nix client: it greeted with {got:#x} instead of {expected:#x}; is the remote command right?"
    )]
    NotNix { got: u64, expected: u64 },

    /// Older clients use forms that this crate cannot read.
    #[error(
        "the client speaks version {client} of the protocol and we need {oldest} or newer: use Nix 2.0 or newer"
    )]
    TooOld { client: crate::worker::Version, oldest: crate::worker::Version },

    /// The arguments of an unknown operation cannot be skipped, since nothing says how long they are.
    #[error(
        "operation {op} is not known here, so its arguments cannot be read; is the client's Nix newer than ours?"
    )]
    Unsupported { op: u64 },

    /// A field had an invalid value. Going on would read arguments as operations.
    #[error("bad {field} in {op}: {problem}")]
    Field { op: &'static str, field: &'static str, problem: Problem },

    /// The body is not the NAR it must be.
    #[error("bad NAR in {op}: {source}")]
    Nar { op: &'static str, source: NarError },

    /// The reader of the client's bytes takes no more of them, for a reason that the client may read.
    #[error("{0}")]
    Refused(String),

    /// An error was sent, but the rest of the refused body could not be skipped.
    /// The server opens no sessions now; the client got the reason.
    #[error("no session is opened: {why}")]
    Closed { why: String },

    #[error("cannot go on after the failed {op}: {why}")]
    OutOfStep { op: &'static str, why: &'static str },

    /// A bug in the agent: the client would misread this answer.
    #[error("bug: {what} (operation {op})")]
    Misuse { op: &'static str, what: &'static str },
}

/// The field that a refused body is; its rest is read up to a limit of its own.
pub(crate) const REFUSED_BODY: &str = "the rest of a refused body";

/// The defect of a field.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("{len} bytes, at most {limit} are accepted")]
    TooLong { len: u64, limit: u64 },
    #[error("{count} entries, at most {limit} are accepted")]
    TooMany { count: u64, limit: u64 },
    #[error("the fields of one message may have {limit} bytes together, and {len} more do not fit")]
    RequestTooLarge { len: u64, limit: u64 },
    #[error("the padding after {len} bytes is not zero")]
    Padding { len: u64 },
    #[error("{value} is not UTF-8")]
    NotUtf8 { value: String },
    #[error("{got} is out of range, at most {limit} is accepted")]
    OutOfRange { got: u64, limit: u64 },
    #[error("{value} is not a store path: {source}")]
    StorePath { value: String, source: nix_derivation::store_path::Error },
    #[error("{value} is not a hash: {source}")]
    Hash { value: String, source: nix_derivation::hash::Error },
    #[error("{value} is not {expected}")]
    Unexpected { value: String, expected: &'static str },
    #[error("more than {limit} bytes of body")]
    BodyTooLarge { limit: u64 },
    #[error("the body ended there")]
    BodyEnded,
    #[error("0 bytes are announced, and no NAR is empty")]
    EmptyNar,
    #[error("{0}")]
    NoMemory(String),
    #[error("{left} of {size} announced bytes are missing")]
    BodyTooShort { left: u64, size: u64 },
    #[error("the NAR ended {left} bytes before the announced {size}")]
    NarEndedEarly { left: u64, size: u64 },
    #[error("the NAR continues after the announced {size} bytes")]
    NarGoesOn { size: u64 },
}

impl WireError {
    /// The client is gone or the transport is broken: nobody can receive a message.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::Io(_) | Self::NothingTaken { .. })
    }

    /// The client sends, or announces, more than [`Terms::max_body_bytes`](crate::Terms).
    pub fn is_too_large_a_body(&self) -> bool {
        let Self::Field { field, problem: Problem::BodyTooLarge { .. }, .. } = self else { return false };
        *field != REFUSED_BODY
    }
}

impl From<io::Error> for WireError {
    /// Returns the error that [`into_io`](WireError::into_io) has wrapped.
    fn from(error: io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<WireError>()) {
            let inner = error.into_inner().and_then(|inner| inner.downcast::<WireError>().ok());
            return match inner {
                Some(wire) => *wire,
                None => Self::Io(io::Error::other("lost the cause of an error")),
            };
        }
        Self::Io(error)
    }
}

impl WireError {
    /// For `AsyncRead` implementations, whose errors are `io::Error`s.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// A value quoted in an error: limited in length, and safe to print.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(MAX_QUOTE_BYTES)];
    let dots = if shown.len() < bytes.len() { "..." } else { "" };
    format!("\"{}\"{dots}", shown.escape_ascii())
}
