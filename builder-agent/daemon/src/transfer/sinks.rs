//! What takes uploads in: the store's intake, with what is known of the upload.

use std::collections::BTreeSet;

use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{ImportError, Ingested, Intake, IntakeKind, PathInfo, Staged, View};

use super::chunks::Sink;

/// A NAR of which nothing is known yet: an export stream says behind it what it was.
pub(crate) struct Unknown(Intake);

impl Unknown {
    pub fn open(view: &View) -> Result<Self, ImportError> {
        view.intake(IntakeKind::Nar, "an imported path").map(Self)
    }
}

impl Sink for Unknown {
    type Done = Ingested;
    type Error = ImportError;

    fn push(&mut self, bytes: &[u8]) -> Result<bool, ImportError> {
        self.0.push(bytes)
    }

    fn memory(&self) -> u64 {
        self.0.memory()
    }

    fn finish(self) -> Result<Ingested, ImportError> {
        self.0.finish()
    }
}

/// A NAR that was announced; staged at its end.
pub(super) struct Announced {
    intake: Intake,
    view: View,
    info: PathInfo,
}

impl Announced {
    pub fn open(view: View, info: PathInfo) -> Result<Self, ImportError> {
        let intake = view.intake(IntakeKind::Nar, &info.path.to_string())?;
        Ok(Self { intake, view, info })
    }
}

impl Sink for Announced {
    type Done = Staged;
    type Error = ImportError;

    fn push(&mut self, bytes: &[u8]) -> Result<bool, ImportError> {
        self.intake.push(bytes)
    }

    fn memory(&self) -> u64 {
        self.intake.memory()
    }

    fn finish(self) -> Result<Staged, ImportError> {
        self.view.stage_ingested(self.intake.finish()?, self.info)
    }
}

/// Contents that say themselves where they belong.
pub(super) struct Addressed {
    intake: Intake,
    view: View,
    what: Address,
}

/// What decides the path, beside the contents.
pub(super) struct Address {
    pub name: String,
    pub method: ContentAddressMethod,
    pub algorithm: HashAlgorithm,
    pub references: BTreeSet<StorePath>,
}

impl Addressed {
    pub fn open(view: View, what: Address) -> Result<Self, ImportError> {
        let kind = match what.method {
            ContentAddressMethod::Flat | ContentAddressMethod::Text => IntakeKind::File,
            ContentAddressMethod::Nar | ContentAddressMethod::Git => IntakeKind::Nar,
        };
        let intake = view.intake(kind, &what.name)?;
        Ok(Self { intake, view, what })
    }
}

impl Sink for Addressed {
    type Done = Staged;
    type Error = ImportError;

    fn push(&mut self, bytes: &[u8]) -> Result<bool, ImportError> {
        self.intake.push(bytes)
    }

    fn memory(&self) -> u64 {
        self.intake.memory()
    }

    fn finish(self) -> Result<Staged, ImportError> {
        let Address { name, method, algorithm, references } = self.what;
        self.view.stage_addressed(self.intake.finish()?, &name, method, algorithm, &references)
    }
}
