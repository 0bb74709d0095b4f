//! Brings one mirror up to date: from the seed if it is empty, from upstream, and into the form that readers see.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use crate::git::{GitError, size_of};
use crate::shown::{self, ShowError, show};
use crate::status::{Failure, Source, Status, StatusError};
use crate::work::{Work, WorkError};
use crate::{Repository, Settings};

/// How long another synchronisation of the same mirror, or a git that one has left, is waited for.
const WAIT: Duration = Duration::from_secs(60);
/// At these numbers of failures in a row, although upstream answers, the repository is made anew. A damage that no check sees
/// ends like that, and a mistake of upstream does not make us fetch everything again and again.
const ANEW: [u64; 3] = [3, 30, 300];

/// What a synchronisation has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    pub status: Status,
    /// Readers see something new.
    pub changed: bool,
    /// The repository was broken, and has been made anew.
    pub anew: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another process has synchronised `{name}` for {} s and does not end", WAIT.as_secs())]
    Busy { name: String },
    #[error("cannot fetch `{name}` from {url}")]
    Fetch { name: String, url: String, source: WorkError },
    /// The branches are there; readers see the ones before.
    #[error("cannot prepare `{name}` for readers")]
    Prepare { name: String, source: WorkError },
    #[error(transparent)]
    Show(#[from] ShowError),
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error("`{name}` takes {} MiB, more than {} MiB; raise `mirrors.max-mib` if it may", bytes >> 20, limit >> 20)]
    TooLarge { name: String, bytes: u64, limit: u64 },
}

/// Synchronises one mirror, and writes down how it went. What readers see becomes newer or stays as it is.
pub fn sync(settings: &Settings, repository: &Repository) -> Result<Synced, SyncError> {
    let mirror = settings.folder(repository.name());
    let failed = |what| {
        let path = mirror.clone();
        move |source| SyncError::File { what, path, source }
    };
    std::fs::create_dir_all(&mirror).map_err(failed("make"))?;
    let lock = lock(&mirror.join("lock"), repository.name())?;
    let before = Status::read(&settings.dir, repository.name()).ok().flatten().unwrap_or_default();
    let mut attempt = Attempt {
        settings,
        repository,
        mirror: &mirror,
        work: Work::new(settings, &mirror, &lock),
        status: Status {
            name: repository.name().to_owned(),
            url: repository.url().to_owned(),
            failure: None,
            seed_failure: None,
            ..before.clone()
        },
        reached: false,
        changed: false,
        anew: false,
    };
    let times = before.failure.map_or(0, |failure| failure.times) + 1;
    let result = attempt.run(times);
    if let Err(error) = &result {
        attempt.status.failure = Some(Failure { why: chain(error), at: now(), times });
    }
    attempt.status.write(&settings.dir)?;
    result.map(|()| Synced { status: attempt.status, changed: attempt.changed, anew: attempt.anew })
}

struct Attempt<'a> {
    settings: &'a Settings,
    repository: &'a Repository,
    mirror: &'a Path,
    work: Work<'a>,
    status: Status,
    /// Upstream has answered.
    reached: bool,
    changed: bool,
    anew: bool,
}

impl Attempt<'_> {
    fn run(&mut self, times: u64) -> Result<(), SyncError> {
        shown::tidy(self.mirror)?;
        match self.once() {
            Ok(()) => Ok(()),
            // The disk, or a change from outside; or, if nothing else helps, damage that is not seen.
            Err(_) if !self.work.is_sound() || (self.reached && ANEW.contains(&times)) => {
                self.anew = true;
                self.work.remove().map_err(self.prepare_failed())?;
                self.once()
            }
            Err(error) => Err(error),
        }
    }

    fn prepare_failed(&self) -> impl Fn(WorkError) -> SyncError + use<> {
        let name = self.repository.name().to_owned();
        move |source| SyncError::Prepare { name: name.clone(), source }
    }

    fn once(&mut self) -> Result<(), SyncError> {
        let prepare_failed = self.prepare_failed();
        let (name, url) = (self.repository.name(), self.repository.url());
        self.work.prepare().map_err(&prepare_failed)?;
        let mut first = self.work.is_empty().map_err(&prepare_failed)?;
        let seed = self.settings.seeds.iter().find(|seed| seed.name() == name);
        if let Some(seed) = seed.filter(|_| first) {
            match self.work.fetch_seed(seed).and_then(|said| self.work.choose_head(&said)) {
                Ok(()) => {
                    first = false;
                    self.show(Source::Seed)?;
                }
                Err(error) => self.status.seed_failure = Some(chain(&error)),
            }
        }
        let fetch_failed = |source| SyncError::Fetch { name: name.to_owned(), url: url.to_owned(), source };
        let said = self.work.reach(url).map_err(fetch_failed)?;
        self.reached = true;
        let too_large = |fetched: &Result<(), WorkError>| {
            matches!(fetched, Err(WorkError::Git(GitError::TooLarge { .. })))
        };
        let mut fetched = self.work.fetch(url, first);
        if too_large(&fetched) && !first {
            // Perhaps there is room after all. Readers have links to what was packed before, and get others.
            self.work.prepare().map_err(&prepare_failed)?;
            self.work.pack_all().map_err(&prepare_failed)?;
            self.show(self.status.source.unwrap_or(Source::Upstream))?;
            fetched = self.work.fetch(url, first);
        }
        if too_large(&fetched) {
            // Nothing of it is of use, and while it is there nothing can be fetched. Readers keep what they have.
            self.work.remove().map_err(&prepare_failed)?;
        }
        fetched.map_err(fetch_failed)?;
        self.work.choose_head(&said).map_err(fetch_failed)?;
        let checked = now();
        self.show(Source::Upstream)?;
        self.status.checked = Some(checked);
        Ok(())
    }

    /// Packs what was fetched, and lets readers see it.
    fn show(&mut self, source: Source) -> Result<(), SyncError> {
        let prepare_failed = self.prepare_failed();
        self.work.pack().map_err(&prepare_failed)?;
        self.keep_to_limit()?;
        let (commit, committed) = self.work.tip().map_err(&prepare_failed)?;
        let head = self.work.head().map_err(&prepare_failed)?;
        if self.status.commit.as_ref() != Some(&commit) || self.status.source != Some(source) {
            self.work.graph().map_err(&prepare_failed)?;
        }
        let (files, changed) = show(self.mirror, self.work.path(), &head)?;
        self.changed |= changed;
        self.status = Status {
            head: head.strip_prefix("ref: ").map(|branch| branch.trim_end().to_owned()),
            commit: Some(commit),
            committed: Some(committed),
            source: Some(source),
            bytes: files.bytes(),
            packs: files.packs(),
            ..self.status.clone()
        };
        Ok(())
    }

    /// Branches that were rewritten leave objects that nothing leads to. They go when the room is needed; and everything goes if
    /// that is not enough.
    fn keep_to_limit(&self) -> Result<(), SyncError> {
        let limit = self.settings.max_bytes;
        let objects = self.work.path().join("objects");
        let size = || {
            size_of(&objects).map_err(|source| SyncError::File {
                what: "measure",
                path: objects.clone(),
                source,
            })
        };
        // A fetch needs some room, too.
        if size()? <= limit / 8 * 7 {
            return Ok(());
        }
        self.work.pack_all().map_err(self.prepare_failed())?;
        match size()? {
            bytes if bytes > limit => {
                self.work.remove().map_err(self.prepare_failed())?;
                Err(SyncError::TooLarge { name: self.repository.name().to_owned(), bytes, limit })
            }
            _ => Ok(()),
        }
    }
}

/// The lock of a mirror. It ends with the last process that has it open: this one, and its git.
fn lock(path: &Path, name: &str) -> Result<File, SyncError> {
    let failed = |what| move |source| SyncError::File { what, path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(failed("open"))?;
    let started = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() > WAIT => {
                return Err(SyncError::Busy { name: name.to_owned() });
            }
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(failed("lock")(error.into())),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
