//! The tip of the branch, with its whole history, in a bare repository of our own, which is only a cache.
//!
//! The other side is not trusted: what it sends has a limit, and so has the time that it takes while bytes move. A peer
//! that sends nothing is the caller's to end (`commands::watch`): the library cannot be interrupted.

use std::path::Path;
use std::time::{Duration, Instant};

use git2::Oid;

use super::ssh::{self, Server};
use super::transport::Transport;
use super::{Options, SyncError, local};
use crate::diag::quoted;

/// Most bytes one fetch may bring. Large infrastructure repositories with their whole history are a tenth of it.
const MAX_FETCH: usize = 1 << 30;
/// A fetch that takes longer is given up; the timer tries again.
const MAX_FETCH_TIME: Duration = Duration::from_secs(300);
/// Longest reason of the library or the server that is passed on.
const MAX_CAUSE: usize = 600;

/// Fetches the branch into `STATE/repo.git`.
pub(super) fn fetch(options: &Options) -> Result<(git2::Repository, Oid), SyncError> {
    let server = match Transport::of(&options.repo) {
        Transport::Ssh => Some(Server::find(&options.repo, &options.ssh)?),
        // The library would try ssh.
        Transport::Unknown => return Err(unreachable(options, "unsupported URL protocol".to_owned())),
        _ => None,
    };
    let path = options.state_dir.join("repo.git");
    match fetch_into(&path, options, server.as_ref()) {
        Ok(result) => Ok(result),
        // A half-written repository (power cut, full disk) must not stop every later attempt: it is only a cache.
        Err(e) if path.exists() && is_damage(&e) => {
            std::fs::remove_dir_all(&path)
                .map_err(|e| local("remove the damaged", &path, &e, "remove it by hand"))?;
            fetch_into(&path, options, server.as_ref())
                .map_err(|e| unreachable(options, e.message().to_owned()))
        }
        Err(e) => {
            let refused = server.and_then(|server| server.refused());
            Err(unreachable(options, refused.unwrap_or_else(|| e.message().to_owned())))
        }
    }
}

fn fetch_into(
    path: &Path,
    options: &Options,
    server: Option<&Server>,
) -> Result<(git2::Repository, Oid), git2::Error> {
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
        match server {
            Some(server) => server.set(&mut callbacks),
            None => ssh::refuse_all(&mut callbacks),
        }
        // Returning false ends the transfer.
        callbacks.transfer_progress(move |p| p.received_bytes() < MAX_FETCH && Instant::now() < deadline);
        let mut proxy = git2::ProxyOptions::new();
        proxy.auto();
        let mut fetch = git2::FetchOptions::new();
        fetch.remote_callbacks(callbacks).proxy_options(proxy).download_tags(git2::AutotagOption::None);
        // `+`: the caller checks for descent, from the accepted commit and not from the one that was fetched last.
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

pub(super) fn unreachable(options: &Options, cause: String) -> SyncError {
    let repo = &options.repo;
    // It may be text of the server.
    let cause = printable::start(cause.trim(), MAX_CAUSE);
    let hint = if cause.contains("no such branch") {
        "check --branch".to_owned()
    } else if cause.contains("not owned by current user") {
        format!("run as its owner, or trust it: git config --global --add safe.directory {repo}")
    } else if repo.contains("://") && cause.contains("unsupported URL protocol") {
        "use an https:// url, an ssh:// url or a path".to_owned()
    } else if cause.contains("shows the host key") {
        "compare it with the keys that the host publishes; if it is one of them, add it to --known-hosts (ssh-keyscan)"
            .to_owned()
    } else if cause.contains("does not accept the key") {
        "let the host accept the public half of the key, for reading (forges call that a deploy key)"
            .to_owned()
    } else if !repo.contains("://") {
        format!("check --repo: is there a git repository at {}?", quoted(repo))
    } else {
        "check the network and --repo; the next attempt starts from here".to_owned()
    };
    SyncError::Unreachable { repo: repo.clone(), branch: options.branch.clone(), cause, hint }
}
