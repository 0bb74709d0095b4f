//! Unpacks packages into a tree, from which their programs run without being installed.
//!
//! Nothing is configured and no script of a package runs, so neither root nor a chroot is needed; the effects
//! of these scripts (users, alternatives) are missing. Not here: a system that boots (`base`).

use crate::archive::{Archive, ArchiveError, Wish};
use crate::progress::Progress;
use crate::tool::{self, ToolError};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{0} is there already and not empty\nhint:  remove it, or name another folder with --out")]
    NotEmpty(PathBuf),
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Top folders that are links into `/usr` on every Debian since bookworm; older packages still have files in
/// them.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Unpacks `packages` and all their dependencies into the empty or new folder `out`. On error a part of them
/// is there.
pub fn make(archive: &mut Archive, packages: &[String], out: &Path) -> Result<usize, TreeError> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(TreeError::NotEmpty(out.into()));
    }
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let files = archive.obtain(&Wish { what: "packages", packages: &packages, keep: &|_| true })?;
    for name in MERGED {
        let dir = out.join("usr").join(name);
        std::fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
        let link = out.join(name);
        std::os::unix::fs::symlink(format!("usr/{name}"), &link).map_err(failed("make", &link))?;
    }
    let mut progress = Progress::count("packages unpacked", files.len() as u64);
    for (done, file) in files.iter().enumerate() {
        progress.at(done as u64);
        unpack(&archive.path(file), out)?;
    }
    progress.end(files.len() as u64);
    Ok(files.len())
}

/// Unpacks with `tar` instead of `dpkg-deb -x`, which would replace a link to a folder by the folder of the
/// package.
fn unpack(deb: &Path, out: &Path) -> Result<(), ToolError> {
    let contents = tool::output(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb), "read a package")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--keep-directory-symlink", "--no-same-owner", "-C"]).arg(out).args(["-f", "-"]);
    tool::output_with_input(&mut tar, &contents, "unpack a package").map(drop)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TreeError + use<> {
    let path = path.to_path_buf();
    move |source| TreeError::File { action, path, source }
}
