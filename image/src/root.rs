//! A root file system: folders laid over a Debian tree, packed as one read-only EROFS image.
//!
//! Equal trees give equal bytes: times, the id of the file system and the order of entries are fixed. Not here: which
//! packages and files a tree has (`base`, `release`, `home`).

use crate::tool::{self, ToolError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Time of all files of an image (2025-01-01); the file system's id is fixed, too.
const FIXED_TIME: &str = "1735689600";
const FIXED_UUID: &str = "62617261-6973-6572-8000-000000000001";

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// A folder for a tree: thousands of small files, so in memory if possible. Removed when dropped.
pub(crate) fn staging() -> Result<tempfile::TempDir, RootError> {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let mut builder = tempfile::Builder::new();
    builder.prefix("netboot-image-").tempdir_in(&parent).map_err(failed("make a folder in", &parent))
}

/// Packs a tree as an EROFS image. lz4hc: Debian bookworm's mkfs can write it, and slow machines read it quickly.
/// Without extended attributes, so no program has capabilities.
pub(crate) fn pack(tree: &Path, image: &Path, options: &[&str], action: &str) -> Result<(), RootError> {
    let mut command = Command::new("mkfs.erofs");
    command.args(["--quiet", "-zlz4hc,9", "-C65536", "-T", FIXED_TIME, "-U", FIXED_UUID, "-x-1"]);
    tool::output(command.args(options).arg(image).arg(tree), action)?;
    Ok(())
}

/// Copies `from` over `tree`: folders merge, links and files replace. Permissions are reduced to executable
/// or not, so that the umask of a checkout has no effect. `.keep` files stand for empty folders.
pub(crate) fn overlay(from: &Path, tree: &Path) -> Result<(), RootError> {
    for entry in sorted(from)? {
        let target = tree.join(entry.file_name().unwrap_or_default());
        let meta = entry.symlink_metadata().map_err(failed("read", &entry))?;
        if entry.file_name().is_some_and(|name| name == ".keep") {
            continue;
        } else if meta.is_dir() {
            if !target.is_dir() {
                std::fs::create_dir(&target).map_err(failed("make", &target))?;
                chmod(&target, 0o755)?;
            }
            overlay(&entry, &target)?;
        } else if meta.is_symlink() {
            remove(&target)?;
            let link = std::fs::read_link(&entry).map_err(failed("read", &entry))?;
            std::os::unix::fs::symlink(link, &target).map_err(failed("make", &target))?;
        } else {
            remove(&target)?;
            let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
            put(&target, &std::fs::read(&entry).map_err(failed("read", &entry))?, mode)?;
        }
    }
    Ok(())
}

/// Passes all that [`overlay`] would copy to `field`: names, kinds, contents.
pub(crate) fn hash_tree(dir: &Path, field: &mut dyn FnMut(&[u8])) -> Result<(), RootError> {
    for entry in sorted(dir)? {
        let meta = entry.symlink_metadata().map_err(failed("read", &entry))?;
        field(entry.file_name().unwrap_or_default().as_encoded_bytes());
        if meta.is_dir() {
            field(b"{");
            hash_tree(&entry, field)?;
            field(b"}");
        } else if meta.is_symlink() {
            let link = std::fs::read_link(&entry).map_err(failed("read", &entry))?;
            field(b"->");
            field(link.as_os_str().as_encoded_bytes());
        } else {
            field(if meta.permissions().mode() & 0o100 != 0 { b"x" } else { b"-" });
            field(&std::fs::read(&entry).map_err(failed("read", &entry))?);
        }
    }
    Ok(())
}

pub(crate) fn sorted(dir: &Path) -> Result<Vec<PathBuf>, RootError> {
    let entries = std::fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut entries: Vec<PathBuf> = entries.map_err(failed("read", dir))?;
    entries.sort();
    Ok(entries)
}

pub(crate) fn put(path: &Path, contents: &[u8], mode: u32) -> Result<(), RootError> {
    atomic_file::write(path, contents, mode).map_err(failed("write", path))?;
    chmod(path, mode)
}

pub(crate) fn chmod(path: &Path, mode: u32) -> Result<(), RootError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed("chmod", path))
}

/// Removes a file, link or whole folder; succeeds if there is none.
pub(crate) fn remove(path: &Path) -> Result<(), RootError> {
    let removed = match path.symlink_metadata() {
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RootError + use<> {
    let path = path.to_path_buf();
    move |source| RootError::File { action, path, source }
}
