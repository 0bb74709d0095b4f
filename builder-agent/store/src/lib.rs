//! Store paths as immutable objects, and who may see them.
//!
//! The contents of a path are one [object]: a file that is an uncompressed EROFS image, written in one
//! pass while the NAR arrives and named by the NAR's SHA-256. The [`View`] of a member is all that anybody can do
//! with the store: it answers from memory, and knows Verified paths, that member's own Claimed ones, and those of members
//! who share with them.
//!
//! Assumed of callers: nothing they pass in is believed. NAR bytes, announced hashes and content addresses are
//! checked here; only [`View::register`] takes the caller's word for `Provenance::Verified`, because whether a
//! build's result is verified is known to whoever ran it.
//!
//! Not here: ssh, protocols, builds, and who shares with whom.
//! `docs/design/store.md` has the format of an object, the argument for crash safety and the threat table.

mod error;
#[path = "format/format.rs"]
mod format;
#[path = "index/index.rs"]
mod index;
#[path = "objects/objects.rs"]
mod objects;
pub mod signing;
mod store;
#[path = "types/types.rs"]
mod types;
#[path = "upkeep/upkeep.rs"]
mod upkeep;
#[path = "views/views.rs"]
mod views;

pub use error::{
    CollectError, ComposeError, FileError, ImportError, MissingPath, NarError, OpenError, RegisterError,
    TreeError,
};
pub use format::nar::NarReader;
pub use format::{nar, object};
pub use objects::ingest::{Ingest, Ingested, Staged};
pub use objects::intake::{Intake, IntakeKind};
pub use store::Store;
pub use types::realisation::RealisationId;
pub use types::result::{BuildRecord, RecordEnd, RecordedOutput};
pub use types::{
    DEFAULT_MAX_ENTRIES, DEFAULT_MAX_NAR_BYTES, Durability, Member, PathInfo, Provenance, StoreConfig,
};
pub use upkeep::recovery::Recovery;
pub use views::closure::{Closure, Composed};
pub use views::collect::{Collect, CollectAction, Collected};
pub use views::view::View;
