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

mod address;
mod annotation;
mod change;
mod closure;
mod collect;
mod commit;
mod contents;
mod db;
mod error;
mod git;
mod hold;
mod index;
mod ingest;
mod intake;
mod keeper;
mod marker;
pub mod nar;
pub mod object;
mod origins;
mod realisation;
mod records;
mod recover;
mod register;
mod remove;
mod result;
pub mod signing;
mod store;
mod tree;
mod types;
mod view;

pub use closure::{Closure, Composed};
pub use collect::{Collect, CollectAction, Collected};
pub use error::{
    CollectError, ComposeError, FileError, ImportError, MissingPath, NarError, OpenError, RegisterError,
    TreeError,
};
pub use ingest::{Ingest, Ingested, Staged};
pub use intake::{Intake, IntakeKind};
pub use nar::NarReader;
pub use realisation::RealisationId;
pub use recover::Recovery;
pub use result::{BuildRecord, RecordEnd, RecordedOutput};
pub use store::Store;
pub use types::{
    DEFAULT_MAX_ENTRIES, DEFAULT_MAX_NAR_BYTES, Durability, Member, PathInfo, Provenance, StoreConfig,
};
pub use view::View;
