//! Debian's archive, as it is: a moving thing whose index may name a file that the mirror does not have.
//!
//! A mirror is honest or it is found out: every list is signed by a key of the keyring, and every file is one of a list,
//! by SHA-256. But files may be missing, cut short or damaged at any moment, because an archive is copied while it
//! changes. So the newest version that can be had is taken (`obtain`), and what was downloaded once is kept.
//!
//! apt does the work, in a private folder: the machine's own apt configuration decides where packages come from (mirror,
//! proxy; `sources`), its own package lists are neither used nor changed. Not here: what an earlier run left in unpacked
//! form (`base`, `kernel_package`, `fetch`), which is what a caller falls back to.

mod download;
mod obtain;
mod plan;
mod sources;

use crate::tool::{self, ToolError};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

pub use obtain::Wish;
pub use plan::Listed;
pub use sources::Kind;

/// The Debian release boxes and guests are made of.
pub const SUITE: &str = "trixie";
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists younger than this are not fetched again; a build straight after a build should not wait for the network.
const LISTS_STAY_FRESH: Duration = Duration::from_secs(3600);
/// How the names of folders begin that hold half-done things.
const SCRATCH: &str = "partial-";
/// Tries of apt for each file, with growing pauses between them. A mirror that is being updated is whole again within seconds.
const RETRIES: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(
        "apt's configuration names no Debian mirror\nhint:  name one in /etc/apt/sources.list and run apt-get update, or pass it with --mirror"
    )]
    NoMirror,
    #[error(
        "the Debian keyring {0} is missing, so packages cannot be checked\nhint:  apt-get install debian-archive-keyring"
    )]
    NoKeyring(PathBuf),
    /// Without any list there is nothing that a file could be checked against.
    #[error(
        "cannot read the package lists of {place}: {source}\nhint:  is the mirror reachable from here, and does it have that suite? name another one with --mirror or in /etc/apt/sources.list"
    )]
    NoLists { place: String, source: ToolError },
    #[error(
        "cannot download {file}: {mirror} does not answer\n{reason}\nhint:  is the network up? what was downloaded is kept, so run this again; or name another mirror with --mirror"
    )]
    Unreachable { file: String, mirror: String, reason: String },
    #[error(
        "{place} has no package that can be had for: {wanted}{}\n{reason}\nhint:  {}",
        lacking_files(lacking),
        if lacking.is_empty() { "is the name right? try --update, or another mirror with --mirror" }
        else { "mirrors mend themselves within hours: run this again later, or name another mirror with --mirror" }
    )]
    NothingLeft { place: String, wanted: String, lacking: Vec<String>, reason: String },
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

fn lacking_files(lacking: &[String]) -> String {
    if lacking.is_empty() {
        return String::new();
    }
    format!("\nthe mirror does not have these as its index describes them: {}", lacking.join(", "))
}

/// How to open an archive.
pub struct Options<'a> {
    /// Lists and downloads of all suites live below it, kept between runs.
    pub cache: &'a Path,
    pub suite: &'a str,
    pub kind: Kind,
    /// In place of the mirrors this machine's apt is set up with.
    pub mirror: Option<&'a str>,
    pub keyring: &'a Path,
    /// Fetch the lists even when those at hand are fresh.
    pub update: bool,
}

/// apt pointed at one suite, its state below one private folder.
pub struct Archive {
    root: PathBuf,
    files: PathBuf,
    suite: String,
    mirror: String,
    sources: String,
    /// Lists were fetched by this process: what they name and the mirror lacks will not come by asking again.
    refreshed: bool,
    /// Versions that the mirror lacks, as paragraphs of apt's preferences.
    pins: Vec<String>,
    /// The files those are about, for the error that ends it all.
    lacking: Vec<String>,
    /// Two programs would change lists and preferences under each other. Freed when dropped.
    _lock: File,
}

impl Archive {
    /// Opens (or makes) the private state, and refreshes the lists when they are old or `update` asks.
    ///
    /// With lists at hand a failing refresh is only a warning: old lists still build a working box.
    pub fn open(options: &Options) -> Result<Self, ArchiveError> {
        let Options { suite, kind, keyring, .. } = options;
        if !keyring.exists() {
            return Err(ArchiveError::NoKeyring(keyring.to_path_buf()));
        }
        let sites = sources::sites(options.mirror)?;
        let sources = sources::lines(&sites, *kind, suite, keyring);
        let cache = std::path::absolute(options.cache.join("apt")).map_err(failed("find", options.cache))?;
        let root = cache.join(format!("{suite}{}", kind.suffix()));
        let files = cache.join("archives");
        for dir in [root.join("state/lists/partial"), files.clone()] {
            std::fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
        }
        let lock = lock(&root.join("lock"))?;
        let mut archive = Archive {
            root,
            files,
            suite: suite.to_string(),
            mirror: sites.mirror,
            sources,
            refreshed: false,
            pins: Vec::new(),
            lacking: Vec::new(),
            _lock: lock,
        };
        archive.sweep();
        archive.write_pins()?;
        let list = archive.root.join("sources.list");
        let same_sources = std::fs::read_to_string(&list).is_ok_and(|text| text == archive.sources);
        if !same_sources {
            drop(std::fs::remove_file(archive.stamp()));
            archive.write("sources.list", &archive.sources)?;
        }
        let fresh = std::fs::metadata(archive.stamp())
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < LISTS_STAY_FRESH));
        if !fresh || options.update {
            archive.refresh()?;
        }
        Ok(archive)
    }

    /// Fetches the lists. An index that cannot be had whole (a mirror in the middle of an update) leaves the one from
    /// before in place; only without any list of the suite itself is that an error.
    fn refresh(&mut self) -> Result<(), ArchiveError> {
        tracing::info!(suite = self.suite, mirror = self.mirror, "fetching package lists");
        let mut update = self.command("apt-get");
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        self.refreshed = true;
        match tool::output(&mut update, "fetch the package lists") {
            Ok(_) => self.write("updated", ""),
            Err(source @ ToolError::Failed { .. }) if self.has_lists()? => {
                tracing::warn!(%source, "cannot refresh the package lists; going on with the ones at hand");
                Ok(())
            }
            Err(source) => Err(ArchiveError::NoLists { place: self.place(), source }),
        }
    }

    /// Whether a list of the suite itself is here. apt moves a list here only after its signature and hash were checked.
    fn has_lists(&self) -> Result<bool, ArchiveError> {
        let format = "$(RELEASE) $(CREATED_BY) $(FILENAME)";
        let listed = tool::output(
            self.command("apt-get").args(["indextargets", "--format", format]),
            "ask apt for its package lists",
        )?;
        Ok(String::from_utf8_lossy(&listed).lines().any(|line| {
            let fields: Vec<&str> = line.splitn(3, ' ').collect();
            matches!(fields[..], [suite, "Packages" | "Sources", file]
                if suite == self.suite && Path::new(file).exists())
        }))
    }

    /// For errors.
    fn place(&self) -> String {
        format!("{} at {}", self.suite, self.mirror)
    }

    /// A folder for what is half there. Gone when dropped, or with the next [`Archive::open`].
    pub fn scratch(&self) -> Result<tempfile::TempDir, ArchiveError> {
        tempfile::Builder::new()
            .prefix(SCRATCH)
            .tempdir_in(&self.root)
            .map_err(failed("make a folder in", &self.root))
    }

    /// What a process that was killed left of [`Archive::scratch`]; the lock says that it is nobody's.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
                drop(std::fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// The lines of `sources.list` in use, for `mmdebstrap`.
    pub fn sources(&self) -> &str {
        &self.sources
    }

    /// The lists of all sources. Their signed indexes name every file by hash: "the archive as we know it".
    pub fn lists(&self) -> PathBuf {
        self.root.join("state/lists")
    }

    /// apt's preferences that keep it from versions the mirror lacks: empty on most days.
    pub fn preferences(&self) -> PathBuf {
        self.root.join("preferences")
    }

    fn stamp(&self) -> PathBuf {
        self.root.join("updated")
    }

    fn write_pins(&self) -> Result<(), ArchiveError> {
        self.write("preferences", &self.pins.concat())
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ArchiveError> {
        let path = self.root.join(name);
        atomic_file::write(&path, text.as_bytes(), 0o644).map_err(failed("write", &path))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let set = |name: &str, path: PathBuf| format!("{name}={}", path.display());
        for option in [
            set("Dir::State", self.root.join("state")),
            "Dir::State::status=/dev/null".into(),
            set("Dir::Cache", self.root.clone()),
            set("Dir::Etc::sourcelist", self.root.join("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".into(),
            set("Dir::Etc::preferences", self.preferences()),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            "Acquire::Languages=none".into(),
            format!("Acquire::Retries={RETRIES}"),
            // The strongest hash of the signed list is what a file is checked against.
            "Acquire::ForceHash=SHA256".into(),
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "APT::Install-Recommends=false".into(),
        ] {
            command.args(["-o", &option]);
        }
        // Mirrors may be frozen, and the lists of a suite that never is released expire within a week. Their date is
        // not checked; their signature is.
        if self.suite == "sid" {
            command.args(["-o", "Acquire::Check-Valid-Until=false"]);
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

/// Waits until no other process of ours works in the folder.
fn lock(path: &Path) -> Result<File, ArchiveError> {
    use rustix::fs::{FlockOperation, flock};
    use std::os::unix::fs::OpenOptionsExt;
    // For reading: the folder may have been made by root, and this be somebody else.
    let file = File::open(path)
        .or_else(|_| {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o644).open(path)
        })
        .map_err(failed("open", path))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(file);
    }
    tracing::info!(lock = %path.display(), "waiting for another netboot-image that downloads for the same suite");
    flock(&file, FlockOperation::LockExclusive).map_err(|error| failed("lock", path)(error.into()))?;
    Ok(file)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ArchiveError + use<> {
    let path = path.to_path_buf();
    move |source| ArchiveError::File { action, path, source }
}
