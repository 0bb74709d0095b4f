//! Unpacks tarballs, plain or compressed, below a directory.
//!
//! The archive is hostile. Nothing is written through a link from the archive, names with `..` are refused,
//! and only files, directories and links are created. The sandbox limits the size.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::{Outcome, failed};

/// Buffer size in front of a decompressor.
const AHEAD: usize = 64 << 10;
/// Largest dictionary of an xz file, in KiB: that of `xz -9`, with room for the decoder itself.
const MAX_XZ_KIB: u32 = 80 << 10;

pub fn unpack(archive: &Path, to: &Path) -> Outcome {
    let broken = |error: io::Error| format!("cannot unpack '{}': {error}", archive.display());
    let file = File::open(archive).map_err(failed("open", archive))?;
    let bytes = decompressed(BufReader::with_capacity(AHEAD, file)).map_err(broken)?;
    let mut tar = tar::Archive::new(bytes);
    // A link to an earlier entry of the archive is made at once. A directory may come after its entries.
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&name).into_owned();
        let wrong = |why: &str| format!("cannot unpack '{}': its member '{shown}' {why}", archive.display());
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let Some(inner) = inner(&name) else { return Err(wrong("has '..' in its name")) };
        if inner.as_os_str().is_empty() {
            // The archive's own root directory, `./`.
            continue;
        }
        let place = to.join(&inner);
        if !real_parents(to, &inner).map_err(failed("create the directory of", &place))? {
            return Err(wrong("is below a symbolic link"));
        }
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        let found = fs::symlink_metadata(&place).ok().map(|found| found.file_type());
        if found.is_some_and(|found| !found.is_dir()) {
            fs::remove_file(&place).map_err(failed("replace", &place))?;
        }
        if kind.is_dir() {
            if !found.is_some_and(|found| found.is_dir()) {
                fs::create_dir(&place).map_err(failed("create", &place))?;
            }
        } else if kind.is_symlink() {
            let target = link.ok_or_else(|| wrong("is a link to nothing"))?;
            symlink(Path::new(std::ffi::OsStr::from_bytes(&target)), &place)
                .map_err(failed("create", &place))?;
        } else if kind.is_hard_link() {
            let target =
                link.and_then(|link| self::inner(&link)).ok_or_else(|| wrong("is a link to nothing"))?;
            if !real_parents(to, &target).map_err(failed("examine", to.join(&target)))? {
                return Err(wrong("links to what is below a symbolic link"));
            }
            fs::hard_link(to.join(&target), &place).map_err(failed("link", &place))?;
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let executable = entry.header().mode().map_err(broken)? & 0o100 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            let made = File::options().write(true).create_new(true).mode(mode).open(&place);
            let mut made = made.map_err(failed("create", &place))?;
            io::copy(&mut entry, &mut made).map_err(failed("write", &place))?;
        } else {
            return Err(wrong(&format!("is neither file, directory nor link, but of type {kind:?}")));
        }
    }
    Ok(())
}

/// The name relative to the directory; `None` if it leads out of it.
fn inner(name: &[u8]) -> Option<PathBuf> {
    let mut inner = PathBuf::new();
    for part in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => inner.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(inner)
}

/// Makes the directories above `inner`; false if one of them is a link.
fn real_parents(to: &Path, inner: &Path) -> io::Result<bool> {
    let mut at = to.to_owned();
    for part in inner.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match fs::symlink_metadata(&at) {
            Ok(found) if found.is_symlink() => return Ok(false),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir(&at)?,
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// The contents of a file, decompressed; the format is detected by the first bytes.
fn decompressed(mut file: impl BufRead + 'static) -> io::Result<Box<dyn Read>> {
    let start = file.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else if start.starts_with(b"\xfd7zXZ\0") {
        Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, MAX_XZ_KIB))
    } else if start.starts_with(b"BZh") {
        Box::new(bzip2::bufread::MultiBzDecoder::new(file))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd_frames::Frames::new(file))
    } else if start.starts_with(b"PK\x03\x04") {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it is a zip file, which this box does not unpack; use a tarball",
        ));
    } else {
        Box::new(file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_directory() {
        let inner = |name: &str| inner(name.as_bytes()).map(|path| path.display().to_string());
        assert_eq!(inner("./a//b/").as_deref(), Some("a/b"));
        assert_eq!(inner("/etc/passwd").as_deref(), Some("etc/passwd"));
        assert_eq!(inner("./").as_deref(), Some(""));
        assert_eq!(inner("a/../b"), None);
        assert_eq!(inner(".."), None);
    }
}
