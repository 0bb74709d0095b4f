//! The sinks of uploads: the store's intake, with the path info of the upload.

use std::collections::BTreeSet;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{ImportError, Ingested, Intake, IntakeKind, Staged, View};

use super::chunks::Sink;

/// The store's intake, and the step that follows when all of the contents are there.
pub(crate) struct Taking<F> {
    intake: Intake,
    end: F,
}

impl<T, F> Sink for Taking<F>
where
    T: Send + 'static,
    F: FnOnce(Ingested) -> Result<T, ImportError> + Send + 'static,
{
    type Done = T;
    type Error = ImportError;

    fn push(&mut self, bytes: &[u8]) -> Result<bool, ImportError> {
        self.intake.push(bytes)
    }

    fn memory(&self) -> u64 {
        self.intake.memory()
    }

    fn finish(self) -> Result<T, ImportError> {
        (self.end)(self.intake.finish()?)
    }
}

/// A NAR without path info: in an export stream, the path comes after it.
pub(crate) fn unknown(
    view: &View,
) -> Result<impl Sink<Done = Ingested, Error = ImportError> + use<>, ImportError> {
    Ok(Taking { intake: view.intake(IntakeKind::Nar, "an imported path")?, end: Ok })
}

/// A NAR with path info. It is staged at its end.
pub(super) fn announced(
    view: View,
    info: PathInfo,
) -> Result<impl Sink<Done = Staged, Error = ImportError>, ImportError> {
    let intake = view.intake(IntakeKind::Nar, &info.path.to_string())?;
    Ok(Taking { intake, end: move |contents| view.stage_ingested(contents, info) })
}

/// All that determines the path, besides the contents.
pub(super) struct Address {
    pub name: String,
    pub method: ContentAddressMethod,
    pub algorithm: HashAlgorithm,
    pub references: BTreeSet<StorePath>,
}

/// Contents whose path follows from them. They are staged at their end.
pub(super) fn addressed(
    view: View,
    what: Address,
) -> Result<impl Sink<Done = Staged, Error = ImportError>, ImportError> {
    let Address { name, method, algorithm, references } = what;
    let kind = match method {
        ContentAddressMethod::Flat | ContentAddressMethod::Text => IntakeKind::File,
        ContentAddressMethod::Nar | ContentAddressMethod::Git => IntakeKind::Nar,
    };
    let intake = view.intake(kind, &name)?;
    Ok(Taking {
        intake,
        end: move |contents| view.stage_addressed(contents, &name, method, algorithm, &references),
    })
}
