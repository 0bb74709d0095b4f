//! The contents of store paths: one [object](crate::format::object) for each NAR hash.
//!
//! [`Objects`] is the seam: the embedded implementation is a [`directory`], and a bucket can stand behind the same eight
//! functions. Bytes come in by [`intake`] and [`ingest`], questions are answered by [`contents`], and unpacked copies are
//! in [`trees`].
//!
//! Not here: which objects rows name (`index`), and when one that no row names is removed (`upkeep`).

pub(crate) mod contents;
pub(crate) mod directory;
pub(crate) mod ingest;
pub(crate) mod intake;
pub(crate) mod pins;
pub(crate) mod recovery;
pub(crate) mod removal;
pub(crate) mod temporary;
pub(crate) mod trees;

use std::fs::File;

use crate::error::FileError;
use crate::format::object::Object;
use temporary::Temporary;

/// Where objects are kept. All functions are for any thread at any time, unless they say otherwise.
///
/// The life of an object: [`create`](Self::create), written by the caller, [`complete`](Self::complete),
/// [`keep`](Self::keep) when a row names it, [`settle`](Self::settle) when that row is durable, [`remove`](Self::remove)
/// when no row names it any more.
pub(crate) trait Objects: Send + Sync {
    /// A new, empty file on this machine for one object. Nobody else knows of it.
    fn create(&self) -> Result<(File, Temporary), FileError>;

    /// The file is an object, and a row may name it soon. A start finds it from now on.
    fn complete(&self, new: &mut Temporary) -> Result<(), FileError>;

    /// A row names it: [`Objects::open`] finds it from now on. Does the same whether or not there is such an object.
    fn keep(&self, new: Temporary, nar_hash: [u8; 32]) -> Option<Kept>;

    /// Puts it in its final place, instead of what may be there with the same contents. Called when the row that names it
    /// is durable, so that nothing durable is replaced by something that is not.
    fn settle(&self, kept: &Kept) -> Result<(), FileError>;

    /// An object that rows name. Its file is on this machine, because a build maps it: an implementation that keeps it
    /// elsewhere fetches it first.
    fn open(&self, nar_hash: &[u8; 32]) -> Result<Object, ObjectFailure>;

    /// How many bytes of memory an object takes once it is open.
    fn measure(&self, nar_hash: &[u8; 32]) -> Result<u64, ObjectFailure>;

    /// Removes an object that no row names and nobody uses. Returns before its space is free.
    fn remove(&self, nar_hash: &[u8; 32]);

    /// When this returns, all objects that were completed before survive a power loss; and so does what is written beside
    /// them on this machine.
    fn sync(&self) -> Result<(), FileError>;
}

/// An object that a row names and that is not in its final place yet.
pub(crate) struct Kept {
    nar_hash: [u8; 32],
    /// Which of possibly several with these contents.
    name: String,
}

/// Why an object cannot be used.
pub(crate) enum ObjectFailure {
    File(FileError),
    Damaged(String),
}

impl From<FileError> for ObjectFailure {
    fn from(e: FileError) -> Self {
        Self::File(e)
    }
}
