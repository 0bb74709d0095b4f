//! Store paths as immutable objects, and the rules for which member sees them.
//!
//! The path of the data, with the folder of each step:
//!
//! 1. A NAR arrives in pieces and is parsed (`format::nar`), hashed, searched for references, and written as an [object]:
//!    an uncompressed EROFS image in one file, named by the NAR's SHA-256 (`objects::ingest`).
//! 2. The [`View`] of a member checks the announced path info, and decides whether the path is Verified or
//!    that member's claim (`views`).
//! 3. A commit writes the row to the database, then shows it in the maps in memory (`index`).
//! 4. Views answer from these maps: Verified paths, the member's own claims, and those of members who share with them.
//!    A build takes a [`Closure`]: one image, composed of objects without a copy.
//! 5. Some seconds later the housekeeper makes all of it durable, and removes objects that no row names (`upkeep`).
//!
//! Each of these folders uses only those below it: `views`, `upkeep`, `index` and `objects` beside each other, `format`, and
//! `types`. Objects and database are each behind a trait, for a bucket or another database.
//!
//! Callers are not trusted: NAR bytes, announced hashes and content addresses are checked here. Only
//! [`View::register`] relies on the caller for `Provenance::Verified`, because only the code that ran a build
//! knows whether its result is verified.
//!
//! Not here: ssh, protocols, builds, and the list of who shares with whom.
//! `docs/design/store.md` has the format of an object, the argument for crash safety and the threat table.

mod config;
mod error;
mod format;
mod index;
mod long_work;
mod objects;
pub mod signing;
mod store;
#[cfg(test)]
mod store_test;
mod types;
mod upkeep;
mod views;

pub use config::{DEFAULT_MAX_ENTRIES, DEFAULT_MAX_NAR_BYTES, Durability, MinFree, StoreConfig};
pub use error::{
    CollectError, ComposeError, DatabaseError, FileError, ImportError, MissingPath, NarError, OpenError,
    RegisterError, TreeError,
};
pub use format::object::{Composed, NarReader};
pub use format::{nar, object};
pub use long_work::LongWork;
pub use objects::ingest::{Ingest, Ingested};
pub use objects::intake::{Intake, IntakeKind};
pub use objects::room::Leave;
pub use store::Store;
pub use types::charged::{Charged, Quota, QuotaSetBy};
pub use types::realisation::RealisationId;
pub use types::result::{BuildRecord, RecordEnd, RecordedOutput, TimeLimit};
pub use types::{Member, Provenance};
pub use upkeep::evict::Evicted;
pub use upkeep::recovery::Recovery;
pub use upkeep::room::Asking;
pub use upkeep::space::Space;
pub use views::closure::{Closure, ClosureInfo};
pub use views::collect::{Collect, CollectAction, Collected};
pub use views::quota::Payer;
pub use views::staged::Staged;
pub use views::view::View;
