//! The errors of the store, one enum per operation.
//!
//! `is_callers_fault` tells the agent where an error belongs: a bad upload is reported to the client, a
//! failure of the box is also logged.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix_derivation::StorePath;
use thiserror::Error;

use crate::format::nar::ParseError;
use crate::types::Member;
use crate::types::charged::QuotaSetBy;

/// Input or output on the box failed. Names the action and the file.
#[derive(Debug, Error)]
#[error("cannot {what} {path}: {source}", path = path.display())]
pub struct FileError {
    /// The action, as a verb phrase.
    pub what: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The kernel's error.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { what, path: path.into(), source: source.into() }
    }
}

/// The database of the index failed, with the database's own message.
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
    /// Another process has the store open. Recovery removes temporary files, so two processes would remove
    /// each other's.
    #[error(
        "store {0} is in use by another process; stop the other builder-agent or choose another state-dir"
    )]
    InUse(PathBuf),
    /// A file of the store cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index cannot be opened although it is not damaged (a damaged index is moved aside).
    #[error("cannot use the path index {path}: {source}; move it away to start with an empty store", path = path.display())]
    Index {
        /// The database file.
        path: PathBuf,
        /// The database's error.
        source: DatabaseError,
    },
    /// A newer version wrote the index; guessing at its meaning could make Claimed paths public.
    #[error("the path index {path} has schema {found}, this version knows {known}; run the newer builder-agent", path = path.display())]
    Schema {
        /// The database file.
        path: PathBuf,
        /// `user_version` in the file.
        found: i64,
        /// The newest schema that this version knows.
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
    /// The path is not valid in this view (whether or not another member has it).
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// Reading the object failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The object is damaged: its bytes on disk are not those that the store wrote.
    #[error("object of '{path}' is damaged: {why}; the disk may be failing")]
    Damaged {
        /// The path with these contents.
        path: String,
        /// The check that failed.
        why: String,
    },
    /// The caller needs a single file. Also for a git hash, which does not say what kind of file its root is.
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

/// Bytes could not become an object, or do not match what the client announced.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Not a canonical NAR. No part of it is kept.
    #[error(transparent)]
    Nar(#[from] ParseError),
    /// The sender of the bytes failed.
    #[error("cannot read the contents of '{name}': {source}")]
    Source {
        /// Path or name of the upload.
        name: String,
        /// The reader's error.
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
    /// The NAR hash differs from the announced one.
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
    /// A path like this one cannot have this `ca` field.
    #[error("path '{path}' has the content address '{ca}', which is not valid: {why}")]
    BadContentAddress {
        /// Which path.
        path: StorePath,
        /// As sent.
        ca: String,
        /// The reason.
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
    /// The contents have the announced content address, but that address gives another path.
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
        /// The reason.
        why: String,
    },
    /// The object could not be read back after it was written.
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
    /// Every user of a path without its references would fail.
    #[error("cannot register '{path}': its reference '{reference}' is not valid; upload that first")]
    MissingReference {
        /// The path to be registered.
        path: StorePath,
        /// The missing reference.
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
        /// The member in the provenance.
        claimed: Member,
        /// The member of the view.
        view: Member,
    },
    /// Info is kept in memory for as long as the path is valid.
    #[error("cannot register '{path}': it has {count} {what}, at most {limit} are accepted")]
    TooMany {
        /// Which path.
        path: StorePath,
        /// References, signatures or signature bytes.
        what: &'static str,
        /// Their number.
        count: usize,
        /// The largest accepted number.
        limit: usize,
    },
    /// Not of the form `name:base64`. The signature would be shown to clients as it is.
    #[error("cannot register '{path}': {signature:?} is not a signature")]
    BadSignature {
        /// Which path.
        path: StorePath,
        /// As sent.
        signature: String,
    },
    /// A realisation or a root names a path that is not valid.
    #[error(transparent)]
    NotValid(#[from] MissingPath),
    /// An adopted path whose contents are gone: the caller has to make them again.
    #[error("cannot register '{path}': the store has no object with its contents")]
    NoObject {
        /// The path to be registered.
        path: StorePath,
    },
    /// A derivation cannot have an output of this name. The name would be signed and shown as it is.
    #[error("cannot register a realisation of output {output:?}: that is no output name")]
    BadOutput {
        /// As sent.
        output: String,
    },
    /// The names of roots are kept in memory.
    #[error("cannot make a root: {why}, at most {limit} are accepted")]
    RootLimit {
        /// The number or length that is too large.
        why: String,
        /// The largest accepted value.
        limit: usize,
    },
    /// Realisations are kept in memory, too.
    #[error(
        "cannot register a realisation: {member} has {limit} already, the most that are accepted; collect garbage \
         (`nix store gc`), which removes those of deleted paths"
    )]
    RealisationLimit {
        /// The member who claims them.
        member: Member,
        /// The largest accepted number.
        limit: usize,
    },
    /// Claims are kept in memory, and all of them are read at each start.
    #[error(
        "cannot register this: {member} would have {count} {what} of their own, at most {limit} are accepted; collect garbage (`nix store gc`)"
    )]
    ClaimLimit {
        /// The member who would own them.
        member: Member,
        /// Paths or references.
        what: &'static str,
        /// Their number with the new ones.
        count: usize,
        /// The largest accepted number.
        limit: usize,
    },
    /// One member's paths would take the room of the others'.
    #[error("cannot keep this: it needs {} MiB, {}", mib_up(*.more), quota_words(.member, .payer, (*.charged, *.limit), .set_by))]
    Quota {
        /// Whose request it is.
        member: Member,
        /// Who is charged: the member, or the maker of the member's ticket.
        payer: Member,
        /// Bytes that it would take.
        more: u64,
        /// Bytes that count for the limit, without what is not needed of the payer's.
        charged: u64,
        /// The most bytes.
        limit: u64,
        /// Who set the limit.
        set_by: QuotaSetBy,
    },
    /// Temporary roots are kept in memory for as long as the session lasts.
    #[error("cannot hold more paths for this session, at most {limit} are accepted; continue in a new one")]
    HoldLimit {
        /// The largest accepted number.
        limit: usize,
    },
    /// Making the object durable failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database failed. The object stays on disk, invisible, until the next start.
    #[error("cannot write the path index: {0}")]
    Index(#[from] DatabaseError),
    /// A flush has failed, so nothing is removed until the next start: to evict paths would free nothing.
    #[error(
        "the store removes nothing any more, because its disk has failed to take what was written; restart the agent, which \
         checks everything newer than the last flush"
    )]
    Stuck,
    /// The commit that included this change failed.
    #[error(transparent)]
    Shared(Arc<RegisterError>),
    /// The thread that was writing the index panicked. The change may be there after a restart.
    #[error("the store gave up this registration because of a bug of the box; try again")]
    Abandoned,
}

/// Paths could not be deleted. None was deleted.
#[derive(Debug, Error)]
pub enum CollectError {
    /// A root, or a path in use, needs this path.
    #[error(
        "cannot delete path '{path}' since it is still alive; to find out why, use: nix-store --query --roots and nix-store --query --referrers"
    )]
    Alive {
        /// Which path.
        path: StorePath,
    },
    /// The path is Verified: all members see it, so a single member may not delete it.
    #[error(
        "cannot delete path '{path}' since it is still alive: it is verified, and the box keeps it for all members"
    )]
    Verified {
        /// Which path.
        path: StorePath,
    },
    /// The view shows the path only because its owner shares it.
    #[error(
        "cannot delete path '{path}' since it is still alive: it belongs to {owner}, who shares it with you"
    )]
    Foreign {
        /// Which path.
        path: StorePath,
        /// The owner of the claim.
        owner: Member,
    },
    /// Not in this view.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// The box cannot write.
    #[error(transparent)]
    Write(#[from] RegisterError),
}

/// A closure image could not be composed.
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
        /// The path with these contents.
        path: StorePath,
        /// The check that failed.
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
        /// The path with these contents.
        path: StorePath,
        /// The check that failed.
        why: String,
    },
}

impl ImportError {
    /// Whether the uploaded data is to blame, rather than the box.
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
    /// Whether the box is to blame, rather than the request or the uploaded data.
    #[must_use]
    pub fn is_the_boxs_fault(&self) -> bool {
        matches!(self, Self::File(_) | Self::Damaged { .. })
    }
}

impl RegisterError {
    /// Whether the uploaded data is to blame, rather than the box.
    #[must_use]
    pub fn is_callers_fault(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Index(_) | Self::Stuck | Self::Shared(_) | Self::Abandoned)
    }
}

/// Rounded up, so that no message says 0 MiB of something.
fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Whose limit it is, how much is left of it, and what to do: the end of a sentence, and another one.
fn quota_words(member: &Member, payer: &Member, (charged, limit): (u64, u64), set_by: &QuotaSetBy) -> String {
    let (charged, limit) = (mib_up(charged), limit >> 20);
    let help = "Remove roots that you do not need any more, or end sessions that use old paths; or ask";
    let of_box = "the box's `limits.max-store-mib-per-member`";
    if member != payer {
        // How much its maker uses is not for the holder of a ticket to know.
        let origin = match set_by {
            QuotaSetBy::Box => of_box.to_owned(),
            QuotaSetBy::Member => format!("the `max-store-mib` of {payer} in the roster"),
            QuotaSetBy::Group(group) => format!("the `max-store-mib` of the group '{group}' in the roster"),
        };
        return format!(
            "and that is not left of the {limit} MiB that the paths of {payer}, who made the ticket, and of all with a ticket \
             of {payer} may take together ({origin}). {help} {payer} for room"
        );
    }
    match set_by {
        QuotaSetBy::Box => format!(
            "and your paths take {charged} of the {limit} MiB that they may take ({of_box}), without those that you do not \
             need. {help} the operator of the box for more"
        ),
        QuotaSetBy::Member => format!(
            "and your paths take {charged} of the {limit} MiB that they may take (your `max-store-mib` in the roster), without \
             those that you do not need. {help} a maintainer of the roster for more"
        ),
        QuotaSetBy::Group(group) => format!(
            "and the paths of all members of the group '{group}' take {charged} of the {limit} MiB that they may take together \
             (the `max-store-mib` of the group '{group}' in the roster), without those of yours that you do not need. {help} \
             the others to do so, or a maintainer of the roster for more"
        ),
    }
}
