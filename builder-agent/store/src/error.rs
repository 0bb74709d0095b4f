//! What can go wrong, one enum per operation.
//!
//! `is_callers_fault` draws the line the agent needs: a bad upload is answered to the client, trouble of the
//! box is also logged.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix_derivation::StorePath;
use thiserror::Error;

use crate::format::nar::ParseError;
use crate::types::Member;

/// Input or output on the box failed: says what was tried on which file.
#[derive(Debug, Error)]
#[error("cannot {what} {path}: {source}", path = path.display())]
pub struct FileError {
    /// The action, as a verb phrase.
    pub what: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { what, path: path.into(), source: source.into() }
    }
}

/// The database of the index failed, in words of its own.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct DatabaseError(Box<dyn std::error::Error + Send + Sync>);

impl DatabaseError {
    pub(crate) fn new(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(source))
    }
}

/// The store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it. Recovery removes temporary files, so two at once would eat each other's.
    #[error(
        "store {0} is in use by another process; stop the other builder-agent or choose another state-dir"
    )]
    InUse(PathBuf),
    /// A file of the store cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index cannot be opened, and not because it is damaged (then it is moved aside).
    #[error("cannot use the path index {path}: {source}; move it away to start with an empty store", path = path.display())]
    Index {
        /// The database file.
        path: PathBuf,
        /// What the database said.
        source: DatabaseError,
    },
    /// Written by a newer version; guessing at its meaning could make Claimed paths public.
    #[error("the path index {path} has schema {found}, this version knows {known}; run the newer builder-agent", path = path.display())]
    Schema {
        /// The database file.
        path: PathBuf,
        /// `user_version` in the file.
        found: i64,
        /// Ours.
        known: i64,
    },
}

/// A path that was asked for is not valid in this view.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("path '{0}' is not valid")]
pub struct MissingPath(pub StorePath);

/// The contents of a valid path cannot be read.
#[derive(Debug, Error)]
pub enum NarError {
    /// Not in this view (whether or not somebody else has it).
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// Reading the object failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The object is damaged: bytes that we wrote are not what we wrote.
    #[error("object of '{path}' is damaged: {why}; the disk may be failing")]
    Damaged {
        /// Whose contents.
        path: String,
        /// What does not fit.
        why: String,
    },
    /// A single file was wanted. Also for a git hash, which does not say what kind of file its root is.
    #[error(
        "'{path}' is a {found}, not a plain file; flat, text and git hashes exist only for a single non-executable file, git hashes also for a directory"
    )]
    NotAFile {
        /// Which path.
        path: String,
        /// `directory`, `symlink` or `executable file`.
        found: &'static str,
    },
    /// Larger than the caller allowed.
    #[error("'{path}' has {size} bytes, at most {max} are allowed here")]
    TooLarge {
        /// Which path.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit.
        max: u64,
    },
}

/// Bytes could not become an object, or are not what was claimed about them.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Not a canonical NAR. Nothing of it is kept.
    #[error(transparent)]
    Nar(#[from] ParseError),
    /// The sender of the bytes failed.
    #[error("cannot read the contents of '{name}': {source}")]
    Source {
        /// Path or name of what was being read.
        name: String,
        /// What the reader said.
        source: io::Error,
    },
    /// A flat or text upload was longer than a NAR may be.
    #[error("'{name}' is larger than {limit} bytes, the most this box accepts")]
    TooLarge {
        /// The name given by the client.
        name: String,
        /// [`crate::StoreConfig::max_nar_bytes`].
        limit: u64,
    },
    /// The NAR is not the one announced.
    #[error("hash mismatch importing path '{path}': announced sha256:{announced}, got sha256:{got}")]
    HashMismatch {
        /// Which path.
        path: StorePath,
        /// nixbase32.
        announced: String,
        /// nixbase32.
        got: String,
    },
    /// The NAR has another length than announced.
    #[error("size mismatch importing path '{path}': announced {announced} bytes, got {got}")]
    SizeMismatch {
        /// Which path.
        path: StorePath,
        /// Bytes announced.
        announced: u64,
        /// Bytes received.
        got: u64,
    },
    /// The `ca` field cannot belong to a path like this one.
    #[error("path '{path}' has the content address '{ca}', which is not valid: {why}")]
    BadContentAddress {
        /// Which path.
        path: StorePath,
        /// As sent.
        ca: String,
        /// What is wrong with it.
        why: String,
    },
    /// The contents do not have the content address announced for them.
    #[error("path '{path}' announces content address '{announced}', but its contents have '{computed}'")]
    ContentMismatch {
        /// Which path.
        path: StorePath,
        /// As sent.
        announced: String,
        /// From the contents.
        computed: String,
    },
    /// The contents are right, but their path would be another one.
    #[error("contents and references of '{announced}' belong at '{computed}'")]
    PathMismatch {
        /// As sent.
        announced: StorePath,
        /// From content address, name and references.
        computed: StorePath,
    },
    /// Name, method, algorithm and references do not make a store path.
    #[error("cannot make a store path for '{name}': {why}")]
    BadName {
        /// The name given by the client.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Reading back what was just written failed.
    #[error(transparent)]
    ReadBack(#[from] NarError),
    /// The box cannot write.
    #[error(transparent)]
    File(#[from] FileError),
    /// The object is complete but could not be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// A complete object could not be made visible. Nothing became visible.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// A path without its references would break whoever uses it.
    #[error("cannot register '{path}': its reference '{reference}' is not valid; upload that first")]
    MissingReference {
        /// What was to be registered.
        path: StorePath,
        /// What it needs.
        reference: StorePath,
    },
    /// Info and object disagree.
    #[error(
        "cannot register '{path}': info says sha256:{announced} ({announced_size} bytes), the object is sha256:{got} ({got_size} bytes)"
    )]
    HashMismatch {
        /// Which path.
        path: StorePath,
        /// nixbase32.
        announced: String,
        /// Bytes.
        announced_size: u64,
        /// nixbase32.
        got: String,
        /// Bytes.
        got_size: u64,
    },
    /// A view registers for its own member only.
    #[error("cannot register a path claimed by {claimed} through the view of {view}")]
    ForeignMember {
        /// In the provenance.
        claimed: Member,
        /// Of the view.
        view: Member,
    },
    /// Info is kept in memory for as long as the path is valid.
    #[error("cannot register '{path}': it has {count} {what}, at most {limit} are accepted")]
    TooMany {
        /// Which path.
        path: StorePath,
        /// References, signatures or signature bytes.
        what: &'static str,
        /// How many came.
        count: usize,
        /// How many may.
        limit: usize,
    },
    /// Not of the form `name:base64`. It would be shown to clients as it is.
    #[error("cannot register '{path}': {signature:?} is not a signature")]
    BadSignature {
        /// Which path.
        path: StorePath,
        /// As sent.
        signature: String,
    },
    /// A realisation or a root of something that is not there.
    #[error(transparent)]
    NotValid(#[from] MissingPath),
    /// Adopted, but its contents are gone: whoever adopts has to make them again.
    #[error("cannot register '{path}': the store has no object with its contents")]
    NoObject {
        /// What was to be registered.
        path: StorePath,
    },
    /// A derivation has no such output. It would be signed and shown as it is.
    #[error("cannot register a realisation of output {output:?}: that is no output name")]
    BadOutput {
        /// As sent.
        output: String,
    },
    /// The names of roots are kept in memory.
    #[error("cannot make a root: {why}, at most {limit} are accepted")]
    RootLimit {
        /// What is too much, with its number.
        why: String,
        /// How much may be.
        limit: usize,
    },
    /// Realisations are kept in memory, too.
    #[error(
        "cannot register a realisation: {member} has {limit} already, the most that are accepted; collect garbage \
         (`nix store gc`), which removes those of deleted paths"
    )]
    RealisationLimit {
        /// Whose.
        member: Member,
        /// How many may be.
        limit: usize,
    },
    /// Claims are kept in memory, and all of them are read at each start.
    #[error(
        "cannot register this: {member} would have {count} {what} of their own, at most {limit} are accepted; collect garbage (`nix store gc`)"
    )]
    ClaimLimit {
        /// Whose.
        member: Member,
        /// Paths or references.
        what: &'static str,
        /// How many there would be.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// Temporary roots are kept in memory for as long as the session lasts.
    #[error("cannot hold more paths for this session, at most {limit} are accepted; continue in a new one")]
    HoldLimit {
        /// How many may be.
        limit: usize,
    },
    /// Making the object durable failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database failed. The object stays on disk, unseen, until the next start.
    #[error("cannot write the path index: {0}")]
    Index(#[from] DatabaseError),
    /// The commit failed that this was a part of.
    #[error(transparent)]
    Shared(Arc<RegisterError>),
    /// The thread that was writing the index panicked. What it wrote may be there after a restart.
    #[error("the store gave up this registration because of a bug of the box; try again")]
    Abandoned,
}

/// Paths could not be deleted. None was.
#[derive(Debug, Error)]
pub enum CollectError {
    /// A root or something in use needs it.
    #[error(
        "cannot delete path '{path}' since it is still alive; to find out why, use: nix-store --query --roots and nix-store --query --referrers"
    )]
    Alive {
        /// Which path.
        path: StorePath,
    },
    /// Everybody sees it, so it is not one member's to delete.
    #[error(
        "cannot delete path '{path}' since it is still alive: it is verified, and the box keeps it for all members"
    )]
    Verified {
        /// Which path.
        path: StorePath,
    },
    /// Seen only because its owner shares it.
    #[error(
        "cannot delete path '{path}' since it is still alive: it belongs to {owner}, who shares it with you"
    )]
    Foreign {
        /// Which path.
        path: StorePath,
        /// Whose it is.
        owner: Member,
    },
    /// Not in this view.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// The box cannot write.
    #[error(transparent)]
    Write(#[from] RegisterError),
}

/// A closure image could not be put together.
#[derive(Debug, Error)]
pub enum ComposeError {
    /// Not in this view.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// Reading an object or creating the metadata failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// An object is damaged.
    #[error("object of '{path}' is damaged: {why}; the disk may be failing")]
    Damaged {
        /// Whose contents.
        path: StorePath,
        /// What does not fit.
        why: String,
    },
    /// EROFS block numbers have 32 bits.
    #[error("closure of {paths} paths has {blocks} blocks of 4 KiB, an image holds at most {limit}")]
    TooLarge {
        /// Paths asked for.
        paths: usize,
        /// Blocks needed.
        blocks: u64,
        /// Blocks possible.
        limit: u64,
    },
}

/// A path could not be unpacked for the namespace backend.
#[derive(Debug, Error)]
pub enum TreeError {
    /// Not in this view.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// Reading the object or writing the tree failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The object is damaged.
    #[error("object of '{path}' is damaged: {why}; the disk may be failing")]
    Damaged {
        /// Whose contents.
        path: StorePath,
        /// What does not fit.
        why: String,
    },
}

impl ImportError {
    /// Whether what was sent is to blame, rather than the box.
    #[must_use]
    pub fn is_callers_fault(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Register(e) => e.is_callers_fault(),
            Self::ReadBack(e) => !e.is_the_boxs_fault(),
            _ => true,
        }
    }
}

impl NarError {
    /// Whether the box is to blame, rather than what was asked or sent.
    #[must_use]
    pub fn is_the_boxs_fault(&self) -> bool {
        matches!(self, Self::File(_) | Self::Damaged { .. })
    }
}

impl RegisterError {
    /// Whether what was sent is to blame, rather than the box.
    #[must_use]
    pub fn is_callers_fault(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Index(_) | Self::Shared(_) | Self::Abandoned)
    }
}
