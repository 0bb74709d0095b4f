//! Replaces a file as a whole: a reader sees the old contents or the new ones, never a part, also after a power cut.
//!
//! Each write waits for the disk twice (file and folder). So this is for files that are small and change rarely.
//! Not here: objects of the store, which `builder-agent/store` makes durable.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Replaces `path` by a file with these contents and this mode (less the umask): a new file beside it, fsync, rename,
/// fsync of the folder.
///
/// On error `path` is unchanged and the new file is removed. Only a crash can leave the new file, as
/// `.NAME.RANDOM.new`.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".new")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("roster.json");
        // A rename cannot replace a folder with a file, not even for root.
        fs::create_dir(&path).expect("a folder");
        write(&path, b"new", 0o644).expect_err("a folder is in the way");
        assert!(path.is_dir());
        fs::remove_dir(&path).expect("removed");
        write(&path, b"old", 0o644).expect("written");
        write(&path, b"new", 0o644).expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn the_mode_is_that_of_the_new_contents_from_the_first_byte() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("secret");
        fs::write(&path, "public").expect("written");
        write(&path, b"secret", 0o600).expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
