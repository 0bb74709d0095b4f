//! The reasons why a request gets no answer, and the messages of those that any request can have.
//!
//! Not here: how a protocol tells its client (`worker_protocol`, `serve_protocol`, `host_command`).

use nix_derivation::StorePath;
use shares::budget::OverBudget;
use shares::threads::Lost;
use store::ImportError;
use wire::WireError;

use super::upload_limit::TooLarge;

/// The reason why a request got no answer.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The client gets the message and may go on.
    Refused(String),
    /// The connection cannot be used any more.
    Wire(WireError),
}

impl RequestError {
    /// The request needs a path that its member cannot see as valid.
    pub fn not_valid(path: &StorePath) -> Self {
        Self::Refused(format!("path '{}' is not valid", path.to_absolute_path()))
    }
}

impl From<WireError> for RequestError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// The client gets the message. The status is for answers that have one.
impl From<builds::Failure> for RequestError {
    fn from(failure: builds::Failure) -> Self {
        Self::Refused(failure.message)
    }
}

/// The work for a request ended without a result; other requests are not affected.
pub(super) fn bug(error: Lost) -> RequestError {
    tracing::error!(%error, "work for a request was lost");
    RequestError::Refused(format!("the request failed because of the box: {error}"))
}

/// The member's memory budget has no room.
pub(super) fn over(why: OverBudget) -> RequestError {
    RequestError::Refused(why.to_string())
}

/// The reason why contents that a client sent are not in the store.
#[derive(Debug)]
pub(super) enum UploadError {
    Import(ImportError),
    TooLarge(TooLarge),
}

impl From<ImportError> for UploadError {
    fn from(error: ImportError) -> Self {
        Self::Import(error)
    }
}

impl From<TooLarge> for UploadError {
    fn from(why: TooLarge) -> Self {
        Self::TooLarge(why)
    }
}

/// The client gets the whole message; errors of the box itself are logged too.
pub(super) fn import_failed(error: impl Into<UploadError>) -> RequestError {
    let error = match error.into() {
        UploadError::TooLarge(TooLarge(why)) => return RequestError::Refused(why),
        UploadError::Import(error) => error,
    };
    if !error.is_callers_fault() {
        tracing::error!(%error, "the store cannot take an upload");
    }
    RequestError::Refused(error.to_string())
}
