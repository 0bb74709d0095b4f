//! Base systems: Debian trees made by mmdebstrap, of the box (here) and of homes (`home`), each kept as one tar per
//! state of the archive.
//!
//! mmdebstrap gets the packages that `archive` has obtained, with its lists and its preferences, so that it
//! also uses an older version of a file that the mirror lacks. apt checks each package once more inside.
//!
//! Not here: the files of this repository (`release`), and the kernel, which comes directly from its package so that
//! neither its install scripts nor initramfs-tools have to run (`kernel_package`).

use crate::archive::{Archive, ArchiveError, Listed, SUITE, Wish};
use crate::progress::Progress;
use crate::tool::{self, ToolError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages of the box, besides those that Debian calls essential. Each is started, linked or called by a program in the
/// box.
pub const PACKAGES: [&str; 15] = [
    "systemd",
    "systemd-sysv",
    // Writes the DNS servers from DHCP to resolv.conf.
    "systemd-resolved",
    "udev",
    "kmod",
    "iproute2",
    "ca-certificates",
    "bubblewrap",
    // The network of builders of fixed outputs, and the firewall around it.
    "passt",
    "nftables",
    // Verifies OpenPGP signatures of the roster's commits.
    "gpgv",
    // Linked by this repository's programs.
    "libssl3t64",
    "libgcc-s1",
    "zlib1g",
    "libzstd1",
];

/// apt's pattern for the packages that Debian calls essential.
const ESSENTIAL: &str = "?essential";

/// Not unpacked for the box: files for documentation and translation.
const EXCLUDED: [&str; 6] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/i18n/*",
    "/usr/share/bash-completion/*",
];

/// mmdebstrap stamps files it makes with this time, so that two runs agree.
const SOURCE_DATE_EPOCH: &str = "1735689600";

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error("making the base system needs root (files of many owners)\nhint:  run it with sudo")]
    NotRoot,
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// What a base system is made of.
pub struct Recipe<'a> {
    /// For messages.
    pub what: &'static str,
    /// The folder of the cache that keeps one base: two recipes must not replace each other's.
    pub folder: &'static str,
    /// Packages besides those that Debian calls essential.
    pub packages: Vec<&'a str>,
    /// Patterns of paths that are not unpacked.
    pub excluded: &'static [&'static str],
    /// Patterns of paths that are unpacked although `excluded` matches them.
    pub included: &'static [&'static str],
}

impl<'a> Recipe<'a> {
    /// The box's own system: [`PACKAGES`] and `extra`.
    pub fn of_the_box(extra: &'a [String]) -> Self {
        Recipe {
            what: "base system",
            // A box with extra packages must not replace the plain base, which every other build needs.
            folder: if extra.is_empty() { "base" } else { "base-with-extras" },
            packages: PACKAGES.into_iter().chain(extra.iter().map(String::as_str)).collect(),
            excluded: &EXCLUDED,
            included: &[],
        }
    }

    /// The part of the key that does not depend on the archive: packages, exclusions, times.
    fn choice(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(SOURCE_DATE_EPOCH);
        for part in self.packages.iter().chain(self.excluded).chain(self.included) {
            hash.update(part);
            hash.update([0]);
        }
        hex::encode(hash.finalize())[..8].to_owned()
    }
}

/// A finished base system.
pub struct Base {
    pub tar: PathBuf,
    /// Changes with the archive's indexes and with our choice of packages.
    pub key: String,
}

/// Makes the base system of a recipe, or finds the one made from the same package lists. If the archive lacks the needed
/// files, returns the base that an earlier run made of the same packages.
pub fn make(archive: &mut Archive, cache: &Path, recipe: &Recipe) -> Result<Base, BaseError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BaseError::NotRoot);
    }
    let Recipe { what, packages, .. } = recipe;
    let dir = cache.join(recipe.folder);
    std::fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
    let choice = recipe.choice();
    if let Some(base) = at_hand(archive, &dir, &choice, what)? {
        return Ok(base);
    }
    let wanted: Vec<&str> = [ESSENTIAL].into_iter().chain(packages.iter().copied()).collect();
    let wish = Wish { what, packages: &wanted, keep: &|_| true };
    let files = match archive.obtain(&wish) {
        Ok(files) => files,
        Err(error) => {
            let Some(base) = left(&dir, &choice) else { return Err(error.into()) };
            tracing::warn!(%error, base = %base.tar.display(), "the packages of the {what} cannot be had; taking the base that an earlier run made");
            return Ok(base);
        }
    };
    // The lists may have been refreshed, and versions excluded, since the first check.
    if let Some(base) = at_hand(archive, &dir, &choice, what)? {
        return Ok(base);
    }
    let key = format!("{choice}-{}", state(archive)?);
    let tar = dir.join(format!("{SUITE}-{key}.tar"));
    tracing::info!(packages = files.len(), "making the {what} (about {} s on two cores)", files.len() / 4);
    let handed = hand_over(archive, &files)?;
    let sources = dir.join("sources.list");
    std::fs::write(&sources, archive.sources()).map_err(failed("write", &sources))?;
    let staging = dir.join(format!("partial-{}.tar", std::process::id()));
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--verbose", "--variant=essential", "--mode=root", "--format=tar", "--architectures=amd64"])
        .arg(format!("--include={}", packages.join(",")))
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""])
        .args(recipe.excluded.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        // dpkg goes by the last pattern that matches.
        .args(recipe.included.iter().map(|path| format!("--dpkgopt=path-include={path}")))
        .args(["--skip=update", SETUP_HOOK])
        // mmdebstrap does not remove files that existed before.
        .arg("--customize-hook=rm -f \"$1\"/var/cache/apt/archives/*.deb \"$1/etc/apt/preferences\"")
        .args([SUITE.as_ref(), staging.as_os_str(), sources.as_os_str()])
        .env("HANDED", handed.path())
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .env("LC_ALL", "C.UTF-8");
    let counted = format!("{what}: packages set up");
    let mut progress = Progress::count(&counted, files.len() as u64);
    let mut set_up = 0;
    let made = tool::watch(&mut command, &format!("make the {what}"), &mut |line| {
        set_up += u64::from(line.starts_with("Setting up "));
        progress.at(set_up);
    });
    if let Err(error) = made {
        drop(std::fs::remove_file(&staging));
        return Err(error.into());
    }
    progress.end(files.len() as u64);
    remove_others(&dir, &staging);
    std::fs::rename(&staging, &tar).map_err(failed("move into place", &tar))?;
    Ok(Base { tar, key })
}

/// Copies the files of [`hand_over`] to the places where mmdebstrap's apt looks for them.
const SETUP_HOOK: &str = concat!(
    r#"--setup-hook=mkdir -p "$1/var/cache/apt/archives" && cp "$HANDED"/lists/* "$1/var/lib/apt/lists/""#,
    r#" && cp "$HANDED"/archives/*.deb "$1/var/cache/apt/archives/" && cp "$HANDED/preferences" "$1/etc/apt/preferences""#
);

/// A folder with the lists, packages and preferences for mmdebstrap.
fn hand_over(archive: &Archive, files: &[Listed]) -> Result<tempfile::TempDir, BaseError> {
    // On the file system of the downloads, so that links replace copies; the hook copies once.
    let handed = archive.scratch()?;
    let [lists, debs] = ["lists", "archives"].map(|dir| handed.path().join(dir));
    for dir in [&lists, &debs] {
        std::fs::create_dir_all(dir).map_err(failed("make", dir))?;
    }
    let link = |from: &Path, to: PathBuf| {
        let linked = std::fs::hard_link(from, &to).or_else(|_| std::fs::copy(from, &to).map(drop));
        linked.map_err(failed("copy", from))
    };
    for entry in std::fs::read_dir(archive.lists()).map_err(failed("read", &archive.lists()))? {
        let entry = entry.map_err(failed("read", &archive.lists()))?;
        if entry.path().is_file() && entry.file_name() != "lock" {
            link(&entry.path(), lists.join(entry.file_name()))?;
        }
    }
    for file in files {
        link(&archive.path(file), debs.join(&file.name))?;
    }
    link(&archive.preferences(), handed.path().join("preferences"))?;
    Ok(handed)
}

/// The base for this choice and the current state of the archive.
fn at_hand(archive: &Archive, dir: &Path, choice: &str, what: &str) -> Result<Option<Base>, BaseError> {
    let key = format!("{choice}-{}", state(archive)?);
    let tar = dir.join(format!("{SUITE}-{key}.tar"));
    if !tar.exists() {
        return Ok(None);
    }
    tracing::info!(key, "{what} is at hand");
    Ok(Some(Base { tar, key }))
}

/// The base for this choice and any state of the archive.
fn left(dir: &Path, choice: &str) -> Option<Base> {
    let prefix = format!("{SUITE}-{choice}-");
    std::fs::read_dir(dir).ok()?.find_map(|entry| {
        let tar = entry.ok()?.path();
        let name = tar.file_name()?.to_str()?.strip_suffix(".tar")?;
        let key = name.starts_with(&prefix).then(|| name[SUITE.len() + 1..].to_owned())?;
        Some(Base { tar, key })
    })
}

/// Unpacks a base into an empty folder.
pub fn unpack(base: &Base, tree: &Path) -> Result<(), BaseError> {
    let mut command = Command::new("tar");
    // Devices come from devtmpfs, and tar must not need the right to create them.
    command.args(["-x", "--numeric-owner", "--same-permissions", "--exclude=./dev/*", "-f"]);
    tool::output(command.arg(&base.tar).arg("-C").arg(tree), "unpack the base system")?;
    Ok(())
}

/// Installed packages and their versions, from a tree's dpkg status.
pub fn packages(tree: &Path) -> Result<BTreeMap<String, String>, BaseError> {
    let path = tree.join("var/lib/dpkg/status");
    let status = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
    Ok(parse_status(&status))
}

fn parse_status(status: &str) -> BTreeMap<String, String> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    };
    status
        .split("\n\n")
        .filter_map(|paragraph| Some((field(paragraph, "Package")?, field(paragraph, "Version")?)))
        .collect()
}

/// The signed index of each source has the hash of every package file, so it stands for the whole archive;
/// the preferences say which versions the mirror lacks.
fn state(archive: &Archive) -> Result<String, BaseError> {
    let lists = archive.lists();
    let mut indexes: Vec<PathBuf> = std::fs::read_dir(&lists)
        .map_err(failed("read", &lists))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with("Release"))
        .collect();
    indexes.sort();
    indexes.push(archive.preferences());
    let mut hash = Sha256::new();
    for index in indexes {
        hash.update(std::fs::read(&index).map_err(failed("read", &index))?);
    }
    Ok(hex::encode(hash.finalize())[..16].to_owned())
}

/// Bases for older states of the archive are large and will not be needed again.
fn remove_others(dir: &Path, keep: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != keep && path.extension().is_some_and(|ext| ext == "tar") {
            drop(std::fs::remove_file(path));
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BaseError + use<> {
    let path = path.to_path_buf();
    move |source| BaseError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_versions_are_read_from_dpkgs_status() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\n\nPackage: b\nVersion: 4\nDepends: a\n";
        let packages = parse_status(status);
        assert_eq!(packages["a"], "1:2-3");
        assert_eq!(packages["b"], "4");
        assert_eq!(packages.len(), 2);
    }
}
