//! Sends the outputs. Runs after the last process of the build has ended, so no file changes meanwhile.
//!
//! A NAR has names, contents, one executable bit and symlink targets, but no owners, times, set-user-id bits or
//! extended attributes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guest::protocol::{FailureKind, Tag};
use nix_archive::nar::{CaseHack, Error as NarError, encode_path};

use crate::stream::{OutputWriter, Stream};
use crate::sys;

/// The archive writer refuses deeper trees with an error of its own, so this does not have to look deeper.
const MAX_DEPTH: usize = 64;

/// Streams every output below `root`, or one failure. Errors are those of the stream.
pub fn send(stream: &mut Stream, root: &Path, outputs: &BTreeMap<String, String>) -> io::Result<()> {
    // All outputs are checked before the first is sent: an incomplete result would waste time.
    for (name, path) in outputs {
        if let Err(e) = fs::symlink_metadata(inside(root, path)) {
            let kind = match e.kind() {
                io::ErrorKind::NotFound => FailureKind::OutputMissing { name: name.clone() },
                _ => blame(name, &e),
            };
            return stream.send_failure(kind, &format!("{path}: {e}"));
        }
    }
    for (name, path) in outputs {
        let inner = inside(root, path);
        if let Err(e) = make_readable(&inner, 0) {
            let kind = blame(name, &e);
            return stream.send_failure(kind, &format!("cannot make {path} readable: {e}"));
        }
        stream.send(Tag::OutputBegin, name.as_bytes())?;
        let mut writer = OutputWriter::new(stream);
        let written = encode_path(&mut writer, &inner, CaseHack::Disabled)
            .and_then(|()| writer.flush().map_err(NarError::from));
        if let Err(e) = written {
            if writer.broken {
                return Err(io::Error::other(e));
            }
            let kind = match &e {
                NarError::Io(e) => blame(name, e),
                _ => FailureKind::OutputInvalid { name: name.clone() },
            };
            return stream.send_failure(kind, &explain(root, &inner, e));
        }
        stream.send(Tag::OutputEnd, &[])?;
    }
    stream.send(Tag::Done, &[])
}

/// If an output cannot be read, the builder is to blame, unless the machine has run out of a resource.
fn blame(name: &str, error: &io::Error) -> FailureKind {
    match sys::is_of_the_machine(error) {
        true => FailureKind::Sandbox,
        false => FailureKind::OutputInvalid { name: name.to_owned() },
    }
}

fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A builder may leave files that it could not read itself; Nix reads them as root. A guest without root
/// rights owns them, and first gives itself the right to read. A NAR does not contain it.
fn make_readable(path: &Path, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    let metadata = fs::symlink_metadata(path)?;
    let mode = metadata.permissions().mode();
    if metadata.is_dir() {
        if mode & 0o500 != 0o500 {
            fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o500))?;
        }
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_symlink() {
                continue;
            }
            make_readable(&entry.path(), depth + 1)?;
        }
    } else if metadata.is_file() && mode & 0o400 == 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o400))?;
    }
    Ok(())
}

fn explain(root: &Path, output: &Path, error: NarError) -> String {
    let shown = |path: &Path| match path.strip_prefix(root) {
        Ok(rest) => Path::new("/").join(rest).display().to_string(),
        Err(_) => path.display().to_string(),
    };
    match error {
        NarError::UnsupportedFileType(path) => {
            // The error may have the path relative to the output, or the whole path.
            let path = if path.is_absolute() { path } else { output.join(path) };
            let kind = match fs::symlink_metadata(&path).map(|m| m.file_type()) {
                Ok(t) if t.is_fifo() => "a fifo",
                Ok(t) if t.is_socket() => "a socket",
                Ok(t) if t.is_char_device() || t.is_block_device() => "a device",
                _ => "of an unsupported type",
            };
            format!(
                "{} is {kind}; an output may hold only regular files, directories and symlinks",
                shown(&path)
            )
        }
        other => format!("{}: {other}", shown(output)),
    }
}
