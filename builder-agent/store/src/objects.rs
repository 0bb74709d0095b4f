//! The contents of store paths: one [object](crate::format::object) for each NAR hash.
//!
//! [`Objects`] is the interface: the embedded implementation is a [`directory`], and a bucket could implement
//! the same eight functions. [`intake`] and [`ingest`] take bytes in, [`contents`] answers questions about
//! contents, and [`trees`] has the unpacked copies.
//!
//! Not here: which objects rows name (`index`), and when one that no row names is removed (`upkeep`).

pub(crate) mod contents;
pub(crate) mod directory;
pub(crate) mod ingest;
pub(crate) mod intake;
pub(crate) mod leftovers;
pub(crate) mod pins;
pub(crate) mod removal;
pub(crate) mod room;
pub(crate) mod temporary;
pub(crate) mod trees;

use std::fs::File;

use crate::error::FileError;
use crate::format::object::Object;
use temporary::Temporary;

/// A place for objects. Any thread may call any function at any time, unless its comment says otherwise.
///
/// The life of an object: [`create`](Self::create), written by the caller, [`complete`](Self::complete),
/// [`keep`](Self::keep) when a row names it, [`settle`](Self::settle) when that row is durable, [`remove`](Self::remove)
/// when no row names it any more.
pub(crate) trait Objects: Send + Sync {
    /// A new, empty file on this machine for one object. Only the caller knows of it.
    fn create(&self) -> Result<(File, Temporary), FileError>;

    /// The file has become an object, and a row may name it soon. From now on a start finds it.
    fn complete(&self, new: &mut Temporary) -> Result<(), FileError>;

    /// A row names the object: [`Objects::open`] finds it from now on. Does the same work whether or not such
    /// an object exists.
    fn keep(&self, new: Temporary, nar_hash: [u8; 32]) -> Option<Kept>;

    /// Moves the object to its final place, where it replaces an object with the same contents. Called when
    /// the row that names it is durable, so that nothing durable is replaced by something that is not.
    fn settle(&self, kept: &Kept) -> Result<(), FileError>;

    /// Opens an object that rows name. Its file is on this machine, because a build maps it: an
    /// implementation that keeps objects elsewhere fetches it first.
    fn open(&self, nar_hash: &[u8; 32]) -> Result<Object, ObjectFailure>;

    /// Memory of the object once it is open, in bytes.
    fn measure(&self, nar_hash: &[u8; 32]) -> Result<u64, ObjectFailure>;

    /// Removes an object that no row names and nobody uses. Returns before its space is free.
    fn remove(&self, nar_hash: &[u8; 32]);

    /// When this returns, all objects completed before survive a power loss, and so does the data that is
    /// written beside them on this machine.
    fn sync(&self) -> Result<(), FileError>;
}

/// An object that a row names and that is not in its final place yet.
pub(crate) struct Kept {
    nar_hash: [u8; 32],
    /// Distinguishes several files with the same contents.
    name: String,
}

/// An object cannot be used.
pub(crate) enum ObjectFailure {
    File(FileError),
    Damaged(String),
}

impl From<FileError> for ObjectFailure {
    fn from(e: FileError) -> Self {
        Self::File(e)
    }
}
