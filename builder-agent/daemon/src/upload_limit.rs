//! The size of one upload: a NAR or a file that a client sends.
//!
//! The box's limit is enforced by `wire`, as the bytes come, and by the store. A member's own is smaller and is enforced
//! here: an announced size before anything is read, and the bytes as they come. It is that of the roster at the moment when
//! the upload begins.

use std::fmt::Display;
use std::sync::Arc;

use members::{Effective, Member, Roster, SetBy};
use tokio::sync::watch;

/// Gives the limit of one member for the next upload.
#[derive(Clone, Debug)]
pub(super) struct UploadLimits {
    member: Arc<Member>,
    roster: watch::Receiver<Arc<Roster>>,
    /// The box's, in bytes.
    of_box: u64,
}

/// The limit of one upload, in bytes.
#[derive(Clone, Debug)]
pub(super) struct UploadLimit(Effective<u64>);

/// An upload is larger than its limit. The text is for the client.
#[derive(Debug)]
pub(super) struct TooLarge(pub String);

impl UploadLimits {
    pub fn new(member: Arc<Member>, roster: watch::Receiver<Arc<Roster>>, of_box: u64) -> Self {
        Self { member, roster, of_box }
    }

    pub fn now(&self) -> UploadLimit {
        let own = self.roster.borrow().current(&self.member).and_then(|member| member.limits.max_upload_mib);
        let of_box = Effective::of_box("limits.max-nar-mib", self.of_box);
        UploadLimit(of_box.and(own.map(|mib| mib << 20), SetBy::Member("max-upload-mib")))
    }
}

impl UploadLimit {
    /// Fails if `name` has more bytes than one upload may have. `bytes` may be those of its beginning.
    pub fn check(&self, name: &dyn Display, bytes: u64) -> Result<(), TooLarge> {
        let Effective { value, set_by } = &self.0;
        if bytes <= *value {
            return Ok(());
        }
        Err(TooLarge(format!(
            "'{name}' is too large: it needs at least {bytes} bytes, and one upload may have {value} ({set_by}); send smaller \
             paths, or {}",
            set_by.ask()
        )))
    }
}
