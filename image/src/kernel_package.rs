//! A Debian kernel package, unpacked: one `vmlinuz`, one tree of modules. Box and guests run the same one.

use crate::archive::{Archive, ArchiveError, Wish};
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
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Kind of Debian kernel: `cloud` is small and supports virtual machines only, `generic` supports real
/// hardware.
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
    /// The kernel's `uname -r`, e.g. `6.12.107+deb13-cloud-amd64`.
    pub version: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// `/usr/lib/modules/<version>` inside the unpacked package.
    pub modules: PathBuf,
}

impl KernelPackage {
    /// Fetches the newest available kernel of a flavour; it is unpacked once per version below `cache`. If
    /// none is available, returns one that an earlier run unpacked.
    pub fn fetch(archive: &mut Archive, cache: &Path, flavour: Flavour) -> Result<Self, KernelPackageError> {
        let kernels = cache.join("kernels");
        // The flavour's own package is empty and depends on the real one, whose name contains the kernel's
        // version.
        let is_kernel = |package: &str| package.starts_with("linux-image-") && package != flavour.package();
        let wish = Wish { what: "kernel", packages: &[flavour.package()], keep: &is_kernel };
        let deb = match archive.obtain(&wish) {
            Ok(files) => files.into_iter().next().ok_or_else(|| KernelPackageError::NoKernel {
                root: kernels.clone(),
                missing: "what the flavour's package depends on",
            })?,
            Err(error) => {
                let Some(left) = newest_left(&kernels, flavour) else { return Err(error.into()) };
                tracing::warn!(%error, kernel = %left.display(), "no kernel can be had; taking one that an earlier run left");
                return Self::open(&left);
            }
        };
        let dir = kernels.join(format!("{}_{}", deb.package(), deb.version()));
        if !dir.is_dir() {
            unpack(&archive.path(&deb), &dir)?;
        }
        Self::open(&dir)
    }

    /// Opens a package that is unpacked already.
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

/// The kernel of this flavour that was unpacked most recently.
fn newest_left(kernels: &Path, flavour: Flavour) -> Option<PathBuf> {
    let cloud = |name: &str| name.contains("-cloud-");
    std::fs::read_dir(kernels)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let whole = !name.contains(".partial-") && cloud(&name) == (flavour == Flavour::Cloud);
            whole.then_some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .max()
        .map(|(_, path)| path)
}

/// Unpacks a .deb so that `dir` is either complete or missing.
fn unpack(deb: &Path, dir: &Path) -> Result<(), KernelPackageError> {
    // Not `with_extension`: a version contains dots.
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let staging = dir.with_file_name(format!("{name}.partial-{}", std::process::id()));
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| KernelPackageError::File { action, path, source }
    };
    std::fs::create_dir_all(&staging).map_err(failed("make", &staging))?;
    tool::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&staging), "unpack the kernel package")?;
    match std::fs::rename(&staging, dir) {
        // Another process unpacked the same version meanwhile.
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
