//! The base system: a Debian tree made by mmdebstrap, kept as one tar per state of the archive.
//!
//! Not here: what is ours (`release`), and the kernel, which comes from its package directly so that neither its
//! install scripts nor initramfs-tools have to run (`kernel_package`).

use crate::apt::{Apt, AptError, SUITE};
use crate::tool::{self, ToolError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// On top of the packages Debian calls essential. Each is started, linked or called by something in the box.
const PACKAGES: [&str; 12] = [
    "systemd",
    "systemd-sysv",
    // DNS servers from DHCP end up in resolv.conf through it.
    "systemd-resolved",
    "udev",
    "kmod",
    "iproute2",
    "ca-certificates",
    "bubblewrap",
    // Linked by our binaries.
    "libssl3t64",
    "libgcc-s1",
    "zlib1g",
    "libzstd1",
];

/// Left out while unpacking: what only people reading or translating need.
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
    Apt(#[from] AptError),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// A finished base system.
pub struct Base {
    pub tar: PathBuf,
    /// Changes when the archive's indexes or our choice of packages do.
    pub key: String,
}

/// Makes the base system, or finds the one made from the same package lists. `extra` packages come on top of ours.
pub fn make(apt: &Apt, cache: &Path, extra: &[String]) -> Result<Base, BaseError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BaseError::NotRoot);
    }
    // A folder keeps one base. A box with extra packages must not push out the plain one, which every build wants.
    let dir = cache.join(if extra.is_empty() { "base" } else { "base-with-extras" });
    std::fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
    let packages: Vec<&str> = PACKAGES.into_iter().chain(extra.iter().map(String::as_str)).collect();
    let key = key(apt, &packages)?;
    let tar = dir.join(format!("{SUITE}-{key}.tar"));
    if tar.exists() {
        tracing::info!(key, "base system is at hand");
        return Ok(Base { tar, key });
    }
    tracing::info!(
        key,
        packages = packages.len(),
        "making the base system (about half a minute on two cores)"
    );
    let sources = dir.join("sources.list");
    std::fs::write(&sources, apt.sources()).map_err(failed("write", &sources))?;
    let staging = dir.join(format!("partial-{}.tar", std::process::id()));
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=essential", "--mode=root", "--format=tar", "--architectures=amd64"])
        .arg(format!("--include={}", packages.join(",")))
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""])
        .args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .args([SUITE.as_ref(), staging.as_os_str(), sources.as_os_str()])
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .env("LC_ALL", "C.UTF-8");
    if let Err(error) = tool::output(&mut command, "make the base system") {
        drop(std::fs::remove_file(&staging));
        return Err(error.into());
    }
    remove_others(&dir, &staging);
    std::fs::rename(&staging, &tar).map_err(failed("move into place", &tar))?;
    Ok(Base { tar, key })
}

/// Unpacks a base into an empty folder.
pub fn unpack(base: &Base, tree: &Path) -> Result<(), BaseError> {
    let mut command = Command::new("tar");
    // Devices come from devtmpfs, and tar must not need the right to make them.
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

/// The signed index of each source names every package file by hash, so it stands for the whole archive.
fn key(apt: &Apt, packages: &[&str]) -> Result<String, BaseError> {
    let lists = apt.lists();
    let mut indexes: Vec<PathBuf> = std::fs::read_dir(&lists)
        .map_err(failed("read", &lists))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with("Release"))
        .collect();
    indexes.sort();
    let mut hash = Sha256::new();
    for index in indexes {
        hash.update(std::fs::read(&index).map_err(failed("read", &index))?);
    }
    hash.update(SOURCE_DATE_EPOCH);
    for part in packages.iter().chain(&EXCLUDED) {
        hash.update(part);
        hash.update([0]);
    }
    Ok(crate::files::hex(&hash.finalize())[..16].to_owned())
}

/// Bases of older archive states are large and will not be asked for again.
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
