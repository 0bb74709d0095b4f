//! Packages of the box's Debian release, fetched with apt into a private folder.
//!
//! The machine's own apt configuration decides where packages come from (mirror, proxy), its Debian keyring
//! whether they are believed; its own package lists are neither used nor changed. Signature checks stay on:
//! without the release's keys we stop. Not here: unpacking into a root file system (`base`).

use crate::tool::{self, ToolError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// The Debian release boxes and guests are made of.
pub const SUITE: &str = "trixie";
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Lists younger than this are not fetched again; a build straight after a build should not wait for the network.
const LISTS_STAY_FRESH: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum AptError {
    #[error(
        "apt's configuration names no Debian mirror\nhint:  pass one with --mirror, e.g. --mirror http://deb.debian.org/debian"
    )]
    NoMirror,
    #[error(
        "the Debian keyring {KEYRING} is missing, so packages cannot be checked\nhint:  apt-get install debian-archive-keyring"
    )]
    NoKeyring,
    #[error("Debian {SUITE} has no package `{0}`\nhint:  is the mirror complete? try --update")]
    NoSuchPackage(String),
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// apt pointed at [`SUITE`], its state below one private folder.
pub struct Apt {
    root: PathBuf,
    sources: String,
}

impl Apt {
    /// Opens (or makes) the private state below `cache`, and refreshes the lists when they are old or `update` asks.
    ///
    /// With lists at hand a failing refresh is only a warning: old lists still build a working box.
    pub fn open(cache: &Path, mirror: Option<&str>, update: bool) -> Result<Self, AptError> {
        if !Path::new(KEYRING).exists() {
            return Err(AptError::NoKeyring);
        }
        let sources = match mirror {
            Some(mirror) => format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n"),
            None => sources_like_the_hosts()?,
        };
        let root = std::path::absolute(cache.join("apt")).map_err(|source| AptError::File {
            action: "find",
            path: cache.into(),
            source,
        })?;
        for dir in ["state/lists/partial", "archives/partial"] {
            let path = root.join(dir);
            std::fs::create_dir_all(&path).map_err(|source| AptError::File {
                action: "make",
                path,
                source,
            })?;
        }
        let apt = Apt { root, sources };
        let list = apt.root.join("sources.list");
        let same_sources = std::fs::read_to_string(&list).is_ok_and(|text| text == apt.sources);
        let stamp = apt.root.join("updated");
        let fresh = std::fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < LISTS_STAY_FRESH));
        if same_sources && fresh && !update {
            return Ok(apt);
        }
        write(&list, &apt.sources)?;
        tracing::info!(suite = SUITE, "fetching package lists");
        match tool::output(apt.command("apt-get").arg("update"), "fetch the package lists") {
            Ok(_) => write(&stamp, "")?,
            Err(error) if same_sources && stamp.exists() => {
                tracing::warn!(%error, "cannot refresh the package lists; going on with the ones at hand");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(apt)
    }

    /// The lines of `sources.list` in use, for `mmdebstrap`.
    pub fn sources(&self) -> &str {
        &self.sources
    }

    /// The index files of all sources, whose hash says "the archive as we know it".
    pub fn lists(&self) -> PathBuf {
        self.root.join("state/lists")
    }

    /// One field of a package's newest entry.
    pub fn field(&self, package: &str, field: &str) -> Result<String, AptError> {
        let shown = tool::output(
            self.command("apt-cache").args(["show", "--no-all-versions", package]),
            "look up a package",
        );
        let text = match shown {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(ToolError::Failed { .. }) => return Err(AptError::NoSuchPackage(package.into())),
            Err(other) => return Err(other.into()),
        };
        let prefix = format!("{field}: ");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .map(str::to_owned)
            .ok_or_else(|| AptError::NoSuchPackage(format!("{package} (field {field})")))
    }

    /// Downloads the .deb of a package and returns its path; apt checks it against the signed lists.
    /// A file that is already there with the right hash is not fetched again.
    pub fn download(&self, package: &str) -> Result<PathBuf, AptError> {
        let dir = self.root.join("archives");
        let version = self.field(package, "Version")?.replace(':', "%3a");
        let architecture = self.field(package, "Architecture")?;
        tool::output(
            self.command("apt-get").args(["download", package]).current_dir(&dir),
            "download a package",
        )?;
        Ok(dir.join(format!("{package}_{version}_{architecture}.deb")))
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
            "Acquire::Languages=none".into(),
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

/// The host's Debian mirrors, with our release in place of the host's.
fn sources_like_the_hosts() -> Result<String, AptError> {
    let targets = tool::output(
        Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(CREATED_BY) $(SITE) $(RELEASE) $(COMPONENT)",
        ]),
        "ask apt for its mirror",
    )?;
    sources_from(&String::from_utf8_lossy(&targets)).ok_or(AptError::NoMirror)
}

/// Reads lines of "Packages <site> <suite> main". The first site with a plain suite is the mirror, the first with a
/// `-security` suite serves the security updates; sites of other projects have suites of other names.
fn sources_from(targets: &str) -> Option<String> {
    const RELEASES: [&str; 6] = ["bookworm", "trixie", "forky", "sid", "stable", "testing"];
    let mut mirror = None;
    let mut security = None;
    for line in targets.lines() {
        let ["Packages", site, suite, "main"] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let suite = suite.trim_end_matches('/');
        match suite.strip_suffix("-security") {
            Some(name) if RELEASES.contains(&name) => security = security.or(Some(site)),
            None if RELEASES.contains(&suite) => mirror = mirror.or(Some(site)),
            _ => {}
        }
    }
    let mirror = mirror?;
    let mut lines = format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n");
    lines += &format!("deb [signed-by={KEYRING}] {mirror} {SUITE}-updates main\n");
    if let Some(security) = security {
        lines += &format!("deb [signed-by={KEYRING}] {security} {SUITE}-security main\n");
    }
    Some(lines)
}

fn write(path: &Path, text: &str) -> Result<(), AptError> {
    std::fs::write(path, text).map_err(|source| AptError::File { action: "write", path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirrors_are_kept_and_its_release_replaced() {
        let targets = "Packages http://tools.example/apt nodistro main\n\
            Packages http://mirror.example/debian bookworm main\n\
            Translations http://mirror.example/debian bookworm main\n\
            Packages http://mirror.example/debian bookworm-updates main\n\
            Packages http://mirror.example/debian-security bookworm-security main\n";
        let sources = sources_from(targets).unwrap();
        let lines: Vec<&str> = sources.lines().map(|line| line.split("] ").nth(1).unwrap()).collect();
        assert_eq!(
            lines,
            [
                "http://mirror.example/debian trixie main",
                "http://mirror.example/debian trixie-updates main",
                "http://mirror.example/debian-security trixie-security main"
            ]
        );
        assert!(sources.lines().all(|line| line.starts_with("deb [signed-by=/usr/share/keyrings/debian-")));
    }

    #[test]
    fn a_host_without_debian_sources_is_told_to_name_a_mirror() {
        assert!(sources_from("Packages http://tools.example/apt nodistro main\n").is_none());
    }
}
