//! The sinks of uploads: the store's intake, with the path info of the upload.

use std::collections::BTreeSet;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{ImportError, Ingested, Intake, IntakeKind, Leave, Staged, View};

use super::chunks::Sink;
use crate::request_error::UploadError;
use crate::upload_limit::UploadLimit;

/// The store's intake, and the step that follows when all of the contents are there.
pub(crate) struct Taking<F> {
    intake: Intake,
    end: F,
    name: String,
    taken: u64,
    limit: UploadLimit,
}

impl<F> Taking<F> {
    fn begin(
        (view, kind, name): (&View, IntakeKind, String),
        limit: UploadLimit,
        end: F,
    ) -> Result<Self, UploadError> {
        Ok(Self { intake: view.intake(kind, &name)?, end, name, taken: 0, limit })
    }
}

impl<T, F> Sink for Taking<F>
where
    T: Send + 'static,
    F: FnOnce(Ingested) -> Result<T, ImportError> + Send + 'static,
{
    type Done = T;
    type Error = UploadError;
    const TAKES_ROOM: bool = true;

    fn allow(&mut self, leave: Leave) {
        self.intake.allow(leave);
    }

    fn no_room(error: ImportError) -> UploadError {
        error.into()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<bool, UploadError> {
        self.taken = self.taken.saturating_add(bytes.len() as u64);
        self.limit.check(&self.name, self.taken)?;
        Ok(self.intake.push(bytes)?)
    }

    fn memory(&self) -> u64 {
        self.intake.memory()
    }

    fn finish(self) -> Result<T, UploadError> {
        Ok((self.end)(self.intake.finish()?)?)
    }
}

/// A NAR without path info: in an export stream, the path comes after it.
pub(crate) fn unknown(
    view: &View,
    limit: UploadLimit,
) -> Result<impl Sink<Done = Ingested, Error = UploadError> + use<>, UploadError> {
    Taking::begin((view, IntakeKind::Nar, "an imported path".into()), limit, Ok)
}

/// A NAR with path info. It is staged at its end.
pub(super) fn announced(
    view: View,
    info: PathInfo,
    limit: UploadLimit,
) -> Result<impl Sink<Done = Staged, Error = UploadError>, UploadError> {
    if !view.is_valid(&info.path) {
        view.make_room(info.nar_size).map_err(ImportError::Register)?;
    }
    let name = info.path.to_string();
    let taker = view.clone();
    Taking::begin((&taker, IntakeKind::Nar, name), limit, move |contents| view.stage_ingested(contents, info))
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
    limit: UploadLimit,
) -> Result<impl Sink<Done = Staged, Error = UploadError>, UploadError> {
    let Address { name, method, algorithm, references } = what;
    let kind = match method {
        ContentAddressMethod::Flat | ContentAddressMethod::Text => IntakeKind::File,
        ContentAddressMethod::Nar | ContentAddressMethod::Git => IntakeKind::Nar,
    };
    let (taker, named) = (view.clone(), name.clone());
    Taking::begin((&taker, kind, named), limit, move |contents| {
        view.stage_addressed(contents, &name, method, algorithm, &references)
    })
}
