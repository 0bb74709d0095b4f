//! One synchronisation: fetch, accept only what follows the last accepted commit, evaluate, write `roster.json`.
//!
//! The remote is not trusted to keep its history: whoever can rewrite the branch could otherwise bring back a member
//! who was taken out. What was accepted last is remembered in the state directory, on stable storage, before the
//! roster changes.
//!
//! ```text
//! STATE/repo.git        bare repository, may be deleted at any time: it is fetched again
//! STATE/accepted.json   {"commit": "<40 hex>", "url": …, "branch": …}: deleting it accepts any history once
//! ```
//! Not here: when to run, and what to do about a failure (`main`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::roster::MAX_FILE;
use git2::Oid;
use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, quoted};
use crate::nix::Limits;
use crate::roster::{self, BAKED_IN, Mistake, Roster, Warning};
use crate::source::GitTree;

/// Most bytes one fetch may bring. Large infrastructure repositories with their whole history are a tenth of it.
const MAX_FETCH: usize = 1 << 30;
/// A fetch that takes longer is given up; the timer tries again.
const MAX_FETCH_TIME: Duration = Duration::from_secs(300);
/// Of the files that are written: the agent reads them as another user, and nothing in them is secret.
const MODE: u32 = 0o644;

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
    pub out: PathBuf,
    pub state_dir: PathBuf,
    /// `roster.json` format; written to `out` if no roster can be had otherwise.
    pub fallback: Option<PathBuf>,
    /// A commit to accept although it does not follow the last one: somebody looked at it.
    pub accept: Option<Oid>,
}

/// What a successful synchronisation did.
#[derive(Debug)]
pub struct Synced {
    pub commit: String,
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
    #[error("{diagnostic}\n    note: in commit {commit} of {repo}")]
    Refused { repo: String, commit: Oid, diagnostic: Box<Diagnostic> },
    #[error("cannot {action} {path}\n   cause: {cause}\n    hint: {hint}")]
    Local { action: &'static str, path: PathBuf, cause: String, hint: &'static str },
}

#[derive(Serialize, Deserialize)]
struct Accepted {
    commit: String,
    url: String,
    branch: String,
}

/// Runs one synchronisation. On error `out` is untouched, and so is what was accepted.
pub fn sync(options: &Options) -> Result<Synced, SyncError> {
    std::fs::create_dir_all(&options.state_dir)
        .map_err(|e| local("create", &options.state_dir, &e, "choose another --state-dir"))?;
    let _lock = lock(&options.state_dir)?;
    let accepted = read_accepted(&options.state_dir)?;
    let (repository, found) = fetch(options)?;

    if let Some(wanted) = options.accept
        && wanted != found
    {
        let (repo, branch) = (options.repo.clone(), options.branch.clone());
        return Err(SyncError::NotTheAccepted { repo, branch, wanted, found });
    }
    if let Some(accepted) = accepted
        && options.accept.is_none()
        && accepted != found
        // A commit we no longer have cannot be an ancestor of what was just fetched in full.
        && !repository.graph_descendant_of(found, accepted).unwrap_or(false)
    {
        let (repo, branch) = (options.repo.clone(), options.branch.clone());
        return Err(SyncError::NotDescendant { repo, branch, accepted, found });
    }

    let unreadable = |e: git2::Error| unreachable(options, e.message().to_owned());
    let tree = GitTree::new(repository, found).map_err(unreadable)?;
    let evaluated = roster::evaluate(tree, &options.file, Limits::default())
        .map_err(|d| SyncError::Refused { repo: options.repo.clone(), commit: found, diagnostic: d })?;
    let mut evaluated = evaluated.for_host(options.host.as_deref());
    let (warnings, mistakes) = (std::mem::take(&mut evaluated.warnings), evaluated.mistakes.clone());
    let roster = evaluated.roster(Some(found.to_string()), options.repo.clone());

    // First what we will insist on from now on, then the roster: a crash between the two costs one repetition,
    // the other order could forget a removal.
    if accepted != Some(found) {
        write_accepted(options, found)?;
    }
    let changed = write_roster(&options.out, &roster)?;
    Ok(Synced { commit: found.to_string(), members: roster.members.len(), changed, warnings, mistakes })
}

/// Puts the baked-in roster in place, unless there is a roster already. Returns whether it did.
pub fn fall_back(fallback: &Path, out: &Path) -> Result<bool, SyncError> {
    if read_roster(out).is_ok() {
        return Ok(false);
    }
    let mut roster = read_roster(fallback).map_err(|cause| SyncError::Local {
        action: "use the baked-in roster",
        path: fallback.to_owned(),
        cause,
        hint: "it must be a roster.json as `access-manager eval --json` prints",
    })?;
    roster.source = BAKED_IN.into();
    write_roster(out, &roster)?;
    Ok(true)
}

fn read_roster(path: &Path) -> Result<Roster, String> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
    ::roster::read(&text).map(Roster::from).map_err(|e| e.to_string())
}

fn write_roster(out: &Path, roster: &Roster) -> Result<bool, SyncError> {
    let text = roster.to_json();
    if std::fs::read(out).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    atomic_file::write(out, text.as_bytes(), MODE)
        .map_err(|e| local("write", out, &e, "its directory must exist and be writable"))?;
    Ok(true)
}

// --- what was accepted -------------------------------------------------------------------------------------------

fn read_accepted(state: &Path) -> Result<Option<Oid>, SyncError> {
    let path = state.join("accepted.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(local("read", &path, &e, "the state directory must be readable")),
    };
    // Not treated as "nothing accepted yet": that would accept any history.
    let parsed = serde_json::from_str::<Accepted>(&text).map_err(|e| e.to_string());
    let oid = parsed.and_then(|a| Oid::from_str(&a.commit).map_err(|e| e.message().to_owned()));
    oid.map(Some).map_err(|e| {
        local("understand", &path, &e, "if it was damaged, check the branch by hand, then delete this file")
    })
}

fn write_accepted(options: &Options, commit: Oid) -> Result<(), SyncError> {
    let path = options.state_dir.join("accepted.json");
    let accepted =
        Accepted { commit: commit.to_string(), url: options.repo.clone(), branch: options.branch.clone() };
    let text = serde_json::to_string_pretty(&accepted).expect("three strings");
    atomic_file::write(&path, format!("{text}\n").as_bytes(), MODE)
        .map_err(|e| local("write", &path, &e, "the state directory must be writable"))
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

// --- git ---------------------------------------------------------------------------------------------------------

/// The tip of the branch, with its whole history, in our bare repository.
fn fetch(options: &Options) -> Result<(git2::Repository, Oid), SyncError> {
    let path = options.state_dir.join("repo.git");
    match fetch_into(&path, options) {
        Ok(result) => Ok(result),
        // A half-written repository (power cut, full disk) must not stop every later attempt: it is only a cache.
        Err(e) if path.exists() && is_damage(&e) => {
            std::fs::remove_dir_all(&path)
                .map_err(|e| local("remove the damaged", &path, &e, "remove it by hand"))?;
            fetch_into(&path, options).map_err(|e| unreachable(options, e.message().to_owned()))
        }
        Err(e) => Err(unreachable(options, e.message().to_owned())),
    }
}

fn fetch_into(path: &Path, options: &Options) -> Result<(git2::Repository, Oid), git2::Error> {
    let repository = if path.exists() {
        git2::Repository::open_bare(path)?
    } else {
        let mut init = git2::RepositoryInitOptions::new();
        git2::Repository::init_opts(path, init.bare(true).external_template(false))?
    };
    // A repository given by path is looked up from where we were started, not from the bare repository.
    let local_path = Path::new(&options.repo);
    let url = match local_path.canonicalize() {
        Ok(full) if local_path.exists() => full.to_string_lossy().into_owned(),
        _ => options.repo.clone(),
    };
    let target = "refs/barnraiser/fetched";
    {
        let mut remote = repository.remote_anonymous(&url)?;
        let deadline = Instant::now() + MAX_FETCH_TIME;
        let mut callbacks = git2::RemoteCallbacks::new();
        // Returning false ends the transfer.
        callbacks.transfer_progress(move |p| p.received_bytes() < MAX_FETCH && Instant::now() < deadline);
        let mut proxy = git2::ProxyOptions::new();
        proxy.auto();
        let mut fetch = git2::FetchOptions::new();
        fetch.remote_callbacks(callbacks).proxy_options(proxy).download_tags(git2::AutotagOption::None);
        // `+`: the check for descent is ours, against what was accepted, not against what was fetched last.
        let refspec = format!("+refs/heads/{}:{target}", options.branch);
        // The old target goes first: a branch that vanished must not look unchanged.
        if let Ok(mut old) = repository.find_reference(target) {
            old.delete()?;
        }
        remote.fetch(&[refspec], Some(&mut fetch), None)?;
    }
    let tip = match repository.find_reference(target) {
        Ok(reference) => reference.peel_to_commit()?.id(),
        Err(_) => {
            return Err(git2::Error::new(
                git2::ErrorCode::NotFound,
                git2::ErrorClass::Reference,
                "the repository has no such branch",
            ));
        }
    };
    Ok((repository, tip))
}

/// Whether deleting our copy and fetching again could help.
fn is_damage(error: &git2::Error) -> bool {
    use git2::ErrorClass as C;
    matches!(
        error.class(),
        C::Odb | C::Object | C::Zlib | C::Index | C::Config | C::Indexer | C::Repository | C::Os | C::Tree
    )
}

fn unreachable(options: &Options, cause: String) -> SyncError {
    let repo = &options.repo;
    let hint = if cause.contains("no such branch") {
        "check --branch".to_owned()
    } else if cause.contains("not owned by current user") {
        format!("run as its owner, or trust it: git config --global --add safe.directory {repo}")
    } else if repo.starts_with("git@") || (repo.contains("://") && cause.contains("unsupported URL protocol"))
    {
        "use an https:// url or a path; the roster is public, so no login is needed".to_owned()
    } else if !repo.contains("://") {
        format!("check --repo: is there a git repository at {}?", quoted(repo))
    } else {
        "check the network and --repo; the next attempt starts from here".to_owned()
    };
    SyncError::Unreachable { repo: repo.clone(), branch: options.branch.clone(), cause, hint }
}

fn local(action: &'static str, path: &Path, cause: &dyn std::fmt::Display, hint: &'static str) -> SyncError {
    SyncError::Local { action, path: path.to_owned(), cause: cause.to_string(), hint }
}
