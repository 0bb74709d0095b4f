//! A Debian kernel package, unpacked: one `vmlinuz`, one tree of modules. Box and guests run the same one.

use crate::apt::{Apt, AptError};
use crate::tool::{self, ToolError};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum KernelPackageError {
    #[error(
        "{root} holds no kernel: {missing} is missing\nhint:  unpack a linux-image package there with `dpkg-deb -x`"
    )]
    NoKernel { root: PathBuf, missing: &'static str },
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Apt(#[from] AptError),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Which of Debian's kernels: `cloud` is small and knows virtual machines only, `generic` knows real hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavour {
    Cloud,
    Generic,
}

impl Flavour {
    fn package(self) -> &'static str {
        match self {
            Flavour::Cloud => "linux-image-cloud-amd64",
            Flavour::Generic => "linux-image-amd64",
        }
    }
}

#[derive(Clone)]
pub struct KernelPackage {
    /// As `uname -r` says it, e.g. `6.12.107+deb13-cloud-amd64`.
    pub version: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// `/usr/lib/modules/<version>` inside the unpacked package.
    pub modules: PathBuf,
}

impl KernelPackage {
    /// Fetches the newest kernel of a flavour; unpacked once per version below `cache`.
    pub fn fetch(apt: &Apt, cache: &Path, flavour: Flavour) -> Result<Self, KernelPackageError> {
        // The flavour's own package is empty and depends on the real one.
        let depends = apt.field(flavour.package(), "Depends")?;
        let package = depends
            .split([',', ' '])
            .find(|word| word.starts_with("linux-image-"))
            .ok_or_else(|| AptError::NoSuchPackage(format!("{} (its kernel)", flavour.package())))?;
        let version = apt.field(package, "Version")?;
        let dir = cache.join("kernels").join(format!("{package}_{version}"));
        if !dir.is_dir() {
            tracing::info!(package, version, "fetching the kernel");
            let deb = apt.download(package)?;
            unpack(&deb, &dir)?;
        }
        Self::open(&dir)
    }

    /// A package someone else unpacked.
    pub fn open(root: &Path) -> Result<Self, KernelPackageError> {
        let missing = |missing| KernelPackageError::NoKernel { root: root.into(), missing };
        let vmlinuz = only_entry(&root.join("boot"), "vmlinuz-").ok_or_else(|| missing("boot/vmlinuz-*"))?;
        let version = vmlinuz.file_name().unwrap_or_default().to_string_lossy();
        let version = version.trim_start_matches("vmlinuz-").to_string();
        let modules = ["usr/lib/modules", "lib/modules"]
            .iter()
            .map(|dir| root.join(dir).join(&version))
            .find(|dir| dir.is_dir())
            .ok_or_else(|| missing("usr/lib/modules/<version>"))?;
        Ok(Self { version, vmlinuz, modules })
    }
}

/// Unpacks a .deb so that `dir` is there whole or not at all.
fn unpack(deb: &Path, dir: &Path) -> Result<(), KernelPackageError> {
    let staging = dir.with_extension(format!("partial-{}", std::process::id()));
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| KernelPackageError::File { action, path, source }
    };
    std::fs::create_dir_all(&staging).map_err(failed("make", &staging))?;
    tool::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&staging), "unpack the kernel package")?;
    match std::fs::rename(&staging, dir) {
        // Someone unpacked the same version meanwhile; theirs is as good.
        Err(_) if dir.is_dir() => std::fs::remove_dir_all(&staging).map_err(failed("remove", &staging)),
        other => other.map_err(failed("move into place", dir)),
    }
}

fn only_entry(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found.pop()
}
