//! Debian's archive, which changes all the time: its index may name a file that the mirror does not have.
//!
//! A mirror cannot forge a file: every list is signed by a key of the keyring, and every file is in a list, with its
//! SHA-256. But files may be missing, cut short or damaged at any moment, because an archive is copied while it
//! changes. So the newest available version is used (`obtain`), and each download is kept.
//!
//! apt does the work, in a private folder: the machine's own apt configuration decides where packages come from (mirror,
//! proxy; `sources`), its own package lists are neither used nor changed. Not here: the unpacked results of
//! earlier runs (`base`, `kernel_package`, `fetch`), to which a caller falls back.

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

/// The Debian release that boxes and guests are made of.
pub const SUITE: &str = "trixie";
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists younger than this are not fetched again; a build straight after a build should not wait for the network.
const LISTS_STAY_FRESH: Duration = Duration::from_secs(3600);
/// Prefix of the names of folders with unfinished contents.
const SCRATCH: &str = "partial-";
/// Number of apt's tries for each file, with growing pauses between them. An update of a mirror takes
/// seconds.
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
    /// Without any list there is no checksum for any file.
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

/// The settings of an archive.
pub struct Options<'a> {
    /// Folder for lists and downloads of all suites, kept between runs.
    pub cache: &'a Path,
    pub suite: &'a str,
    pub kind: Kind,
    /// Used instead of the mirrors in this machine's apt configuration.
    pub mirror: Option<&'a str>,
    pub keyring: &'a Path,
    /// Fetch the lists even when those at hand are fresh.
    pub update: bool,
}

/// apt with the configuration of one suite, and with its state below one private folder.
pub struct Archive {
    root: PathBuf,
    files: PathBuf,
    suite: String,
    mirror: String,
    sources: String,
    /// Whether this process has fetched the lists. Fetching them again would not find files that the mirror lacks.
    refreshed: bool,
    /// Versions that the mirror lacks, as paragraphs of apt's preferences.
    pins: Vec<String>,
    /// The files of these versions, for the final error.
    lacking: Vec<String>,
    /// Two programs would change each other's lists and preferences. Released when dropped.
    _lock: File,
}

impl Archive {
    /// Opens (or creates) the private state, and refreshes the lists if they are old or `update` is set.
    ///
    /// If there are lists already, a failed refresh is only a warning: a box built from old lists works.
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

    /// Fetches the lists. If an index is incomplete (a mirror during an update), the previous one stays in
    /// place; it is an error only if there is no list of the suite itself.
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

    /// The place of the packages, for errors.
    fn place(&self) -> String {
        format!("{} at {}", self.suite, self.mirror)
    }

    /// A folder for unfinished files. Removed when dropped, or by the next [`Archive::open`].
    pub fn scratch(&self) -> Result<tempfile::TempDir, ArchiveError> {
        tempfile::Builder::new()
            .prefix(SCRATCH)
            .tempdir_in(&self.root)
            .map_err(failed("make a folder in", &self.root))
    }

    /// Removes the [`Archive::scratch`] folders of killed processes; under the lock no other process uses
    /// them.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
                drop(std::fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// The lines of `sources.list` that are in use, for `mmdebstrap`.
    pub fn sources(&self) -> &str {
        &self.sources
    }

    /// The lists of all sources. Their signed indexes contain the hash of every file, so they stand for the
    /// archive's state.
    pub fn lists(&self) -> PathBuf {
        self.root.join("state/lists")
    }

    /// apt's preferences that exclude versions that the mirror lacks: empty on most days.
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
            // Files are checked against the strongest hash of the signed list.
            "Acquire::ForceHash=SHA256".into(),
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "APT::Install-Recommends=false".into(),
        ] {
            command.args(["-o", &option]);
        }
        // Mirrors may be frozen, and the lists of a suite that is never released expire within a week. So
        // their date is not checked; their signature is.
        if self.suite == "sid" {
            command.args(["-o", "Acquire::Check-Valid-Until=false"]);
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

/// Waits until no other process uses the folder.
fn lock(path: &Path) -> Result<File, ArchiveError> {
    use rustix::fs::{FlockOperation, flock};
    use std::os::unix::fs::OpenOptionsExt;
    // Opened for reading: root may have made the folder, and this process may run as another user.
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
