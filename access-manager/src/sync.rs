//! One synchronisation: fetch, accept only what follows the last accepted commit, evaluate, write `roster.json`.
//!
//! The remote is not trusted to keep its history: whoever can rewrite the branch could otherwise bring back a member
//! who was taken out. What was accepted last is remembered, on stable storage where there is some, before the roster
//! changes.
//!
//! ```text
//! fetch.rs      the branch, into a bare repository: STATE/repo.git, which may be deleted at any time
//! kept.rs       what survives: the accepted commit, its roster, the status
//! signatures.rs who signed the new commits
//! ssh.rs        host keys and our own key
//! transport.rs  whether somebody on the line could change what arrives
//! ```
//! Not here: when to run, and what to do about a failure (`main`).

use std::path::{Path, PathBuf};

use ::roster::date;
use ::roster::status::Accepted;
use git2::Oid;

use crate::diag::Diagnostic;
use crate::nix::Limits;
use crate::roster::{self, Mistake, Warning};
use crate::source::GitTree;

use signatures::{Failure, Unchecked, Unsigned};
use transport::Transport;

mod fetch;
mod kept;
pub mod signatures;
pub mod ssh;
mod transport;

pub use kept::{Substitute, fall_back};
pub use signatures::Signing;
pub use ssh::Ssh;

/// What to synchronise, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// A url, or a path to a repository.
    pub repo: String,
    pub branch: String,
    /// The roster's path in the repository.
    pub file: String,
    /// The name of this box, for members who are for some boxes only.
    pub host: Option<String>,
    /// `roster.json`; the status is written beside it.
    pub out: PathBuf,
    pub state_dir: PathBuf,
    /// For the few files that should survive a reboot; may be the state directory.
    pub keep_dir: PathBuf,
    /// `roster.json` format; written to `out` if no roster can be had otherwise and none was ever accepted.
    pub fallback: Option<PathBuf>,
    /// For a repository over ssh.
    pub ssh: Ssh,
    /// Whose signatures the commits need, if any.
    pub signing: Signing,
    /// A commit to accept although it does not follow the last one, or is not signed: somebody looked at it.
    pub accept: Option<Oid>,
}

/// What a successful synchronisation did.
#[derive(Debug)]
pub struct Synced {
    pub commit: String,
    /// Seconds since 1970, by the commit itself.
    pub committed: u64,
    pub members: usize,
    /// Whether `out` has other bytes than before.
    pub changed: bool,
    pub warnings: Vec<Warning>,
    /// Of single members, who are left out.
    pub mistakes: Vec<Mistake>,
}

/// Why there is no new roster. In each case `out` is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("cannot fetch branch {branch} from {repo}\n   cause: {cause}\n    hint: {hint}")]
    Unreachable { repo: String, branch: String, cause: String, hint: String },
    /// Accepting it would let whoever rewrote the branch undo removals.
    #[error(
        "the history of branch {branch} at {repo} was rewritten\n   found: commit {found}\nexpected: a descendant of \
         the last accepted commit {accepted}\n    hint: if the rewrite was meant, look at the difference, then run once \
         with --accept {found}"
    )]
    NotDescendant { repo: String, branch: String, accepted: Oid, found: Oid },
    #[error("the commit given with --accept is {wanted}, but branch {branch} at {repo} is at {found}")]
    NotTheAccepted { repo: String, branch: String, wanted: Oid, found: Oid },
    /// Accepting it would let whoever can write to the branch, or answer in place of its host, decide who gets in.
    #[error(
        "commit {commit} of {repo} does not count: {reason}\n    hint: the keys are in the files given with \
         --allowed-signers, --gpg-keyring, --merge-signers and --merge-gpg-keyring; to accept what you looked at, run \
         once with --accept {tip}"
    )]
    Unsigned { repo: String, commit: Oid, tip: Oid, reason: String },
    /// Somebody on the line could bring in anybody.
    #[error(
        "{repo} is read over {scheme}://, where anybody on the line can change what arrives\n    hint: use an https:// \
         url, or ssh:// with --known-hosts, or require signed commits with --allowed-signers or --gpg-keyring"
    )]
    OpenTransport { repo: String, scheme: &'static str },
    #[error(
        "{repo} is read over ssh, which needs the server's host key and a key of our own\n    hint: give --known-hosts and \
         --ssh-key; or use an https:// url, if the repository can be read without login"
    )]
    NoHostKey { repo: String },
    #[error("{diagnostic}\n    note: in commit {commit} of {repo}")]
    Refused { repo: String, commit: Oid, diagnostic: Box<Diagnostic> },
    #[error("cannot {action} {path}\n   cause: {cause}\n    hint: {hint}")]
    Local { action: &'static str, path: PathBuf, cause: String, hint: &'static str },
}

/// Runs one synchronisation. On error the roster in force stays, and so does what was accepted; the status says why.
///
/// Calls `restored` when the last accepted roster took the place of a missing `roster.json`, before the network is used.
pub fn sync(options: &Options, restored: impl FnOnce(&Substitute)) -> Result<Synced, SyncError> {
    for dir in [&options.state_dir, &options.keep_dir] {
        std::fs::create_dir_all(dir).map_err(|e| local("create", dir, &e, "choose another directory"))?;
    }
    let _lock = lock(&options.state_dir)?;
    if let Some(substitute) = kept::restore(options)? {
        restored(&substitute);
    }
    match attempt(options) {
        Ok((synced, accepted)) => {
            kept::note(options, |status, now| status.succeeded(accepted, now))?;
            Ok(synced)
        }
        Err(error) => {
            let commit = error.commit().map(|commit| commit.to_string());
            // The error itself is more important than one about the status.
            let _ = kept::note(options, |status, now| status.failed(commit, &error.to_string(), now));
            Err(error)
        }
    }
}

fn attempt(options: &Options) -> Result<(Synced, Accepted), SyncError> {
    if let Transport::Open(scheme) = Transport::of(&options.repo)
        && !options.signing.required()
    {
        return Err(SyncError::OpenTransport { repo: options.repo.clone(), scheme });
    }
    let before = kept::accepted(&options.keep_dir)?;
    let (repository, found) = fetch::fetch(options)?;
    let last = before.as_ref().map(|(commit, _)| *commit);
    follows(options, &repository, last, found)?;
    signed(options, &repository, last, found)?;

    let unreadable = |e: git2::Error| fetch::unreachable(options, e.message().to_owned());
    let committed = repository.find_commit(found).map_err(unreadable)?.time().seconds();
    let committed = u64::try_from(committed).unwrap_or(0);
    let tree = GitTree::new(repository, found).map_err(unreadable)?;
    let evaluated = roster::evaluate(tree, &options.file, Limits::default())
        .map_err(|d| SyncError::Refused { repo: options.repo.clone(), commit: found, diagnostic: d })?;
    let mut evaluated = evaluated.for_host(options.host.as_deref());
    let (warnings, mistakes) = (std::mem::take(&mut evaluated.warnings), evaluated.mistakes.clone());
    let roster = evaluated.roster(Some(found.to_string()), options.repo.clone());

    let accepted = match before {
        Some((commit, accepted)) if commit == found => Accepted { committed, ..accepted },
        _ => Accepted { commit: found.to_string(), committed, accepted: date::now() },
    };
    // First what we will insist on from now on, then the roster: a crash between the two costs one repetition,
    // the other order could forget a removal.
    kept::accept(options, &accepted, &roster)?;
    let changed = kept::write(&options.out, &roster.to_json())?;
    let synced = Synced {
        commit: found.to_string(),
        committed,
        members: roster.members.len(),
        changed,
        warnings,
        mistakes,
    };
    Ok((synced, accepted))
}

/// Whether `found` is the accepted commit or comes after it, or was named by the operator.
fn follows(
    options: &Options,
    repository: &git2::Repository,
    accepted: Option<Oid>,
    found: Oid,
) -> Result<(), SyncError> {
    let (repo, branch) = (options.repo.clone(), options.branch.clone());
    match (options.accept, accepted) {
        (Some(wanted), _) if wanted != found => {
            Err(SyncError::NotTheAccepted { repo, branch, wanted, found })
        }
        (None, Some(accepted))
            if accepted != found
                // A commit we no longer have cannot be an ancestor of what was just fetched in full.
                && !repository.graph_descendant_of(found, accepted).unwrap_or(false) =>
        {
            Err(SyncError::NotDescendant { repo, branch, accepted, found })
        }
        _ => Ok(()),
    }
}

/// Whether the new commits are signed as the options ask for.
fn signed(
    options: &Options,
    repository: &git2::Repository,
    accepted: Option<Oid>,
    found: Oid,
) -> Result<(), SyncError> {
    if options.accept.is_some() {
        return Ok(());
    }
    options.signing.check(repository, accepted, found, &options.state_dir).map_err(|failure| match failure {
        Failure::Unsigned(Unsigned { commit, reason }) => {
            SyncError::Unsigned { repo: options.repo.clone(), commit, tip: found, reason }
        }
        Failure::Unchecked(Unchecked { action, path, cause, hint }) => {
            SyncError::Local { action, path, cause, hint }
        }
    })
}

impl SyncError {
    /// The commit that was refused.
    fn commit(&self) -> Option<Oid> {
        match self {
            SyncError::NotDescendant { found, .. } | SyncError::NotTheAccepted { found, .. } => Some(*found),
            SyncError::Refused { commit, .. } => Some(*commit),
            SyncError::Unsigned { tip, .. } => Some(*tip),
            SyncError::Unreachable { .. }
            | SyncError::OpenTransport { .. }
            | SyncError::NoHostKey { .. }
            | SyncError::Local { .. } => None,
        }
    }
}

/// Two synchronisations at once (timer and webhook) would race for the repository; the second waits.
fn lock(state: &Path) -> Result<std::fs::File, SyncError> {
    let path = state.join("lock");
    let locked = std::fs::File::create(&path).and_then(|file| {
        file.lock()?;
        Ok(file)
    });
    locked.map_err(|e| local("lock", &path, &e, "the state directory must be writable"))
}

fn local(action: &'static str, path: &Path, cause: &dyn std::fmt::Display, hint: &'static str) -> SyncError {
    SyncError::Local { action, path: path.to_owned(), cause: cause.to_string(), hint }
}
