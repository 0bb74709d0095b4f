//! What a home sees of a mirror: an image of one moment, without a copy.
//!
//! The folder belongs to a user who runs `git` on data of strangers, and this runs as root. So nothing in the folder is trusted:
//! no link is followed, only plain files of the folder's owner are taken, only those names that git reads in a repository of
//! objects, and only so many. The configuration is ours, because git in a home would run what one names.
//! What is left to such a user: to show objects that no one else has, and to make a pack shorter while it is mapped, which ends
//! the VM of the home that reads it (SIGBUS), and nothing else.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};
use store::Composed;
use store::object::{FileTree, FilesError};

use crate::shown::{FOLDERS, SHOWN, is_read};

/// What the repository in the image says about itself.
pub(crate) const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n";
/// Most files of one mirror. Packs are as many as the logarithm of their size, each with three files.
const MAX_FILES: usize = 4096;
/// Longest `HEAD`.
const MAX_HEAD: u64 = 1024;
/// How often the folder may be replaced while its files are opened, which takes a millisecond.
const ATTEMPTS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the mirror in {} has not been fetched yet", .0.display())]
    NotYet(PathBuf),
    #[error("cannot open `{what}` of the mirror in {}", mirror.display())]
    Open { what: String, mirror: PathBuf, source: io::Error },
    /// A link, a pipe, or a file of somebody else would show a home something that is no part of the mirror.
    #[error("`{what}` of the mirror in {} is no plain file of the mirror's owner", mirror.display())]
    NoFile { what: String, mirror: PathBuf },
    #[error("the mirror in {} has more than {MAX_FILES} files", .0.display())]
    TooMany(PathBuf),
    #[error("`HEAD` of the mirror in {} names no branch", .0.display())]
    Head(PathBuf),
    #[error("the mirror in {} was replaced again and again while it was opened; try again", .0.display())]
    Restless(PathBuf),
    #[error("cannot make an image of the mirror in {}", mirror.display())]
    Image { mirror: PathBuf, source: FilesError },
}

/// Opens all files of the mirror in this folder and composes an image of them, a bare repository at one moment. A
/// synchronisation may go on at the same time. The image stays as it is, whatever becomes of the mirror, for as long as its
/// files are open or mapped.
pub fn snapshot(mirror: &Path) -> Result<Composed, SnapshotError> {
    for _ in 0..ATTEMPTS {
        let folder = Folder::open(mirror)?;
        let taken = folder.take();
        // A folder that was replaced is being removed: files may be missing. That of the next attempt is whole.
        if !folder.was_replaced()? {
            return taken;
        }
    }
    Err(SnapshotError::Restless(mirror.to_owned()))
}

/// The folder that readers see.
struct Folder<'a> {
    mirror: &'a Path,
    dir: OwnedFd,
    /// Number of the inode, which nobody else has for as long as the folder is open.
    inode: u64,
    owner: u32,
}

impl<'a> Folder<'a> {
    fn open(mirror: &'a Path) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Open { what: SHOWN.into(), mirror: mirror.to_owned(), source };
        // Only the folder of all mirrors is the operator's; what is below belongs to the user of `git`.
        let (above, name) = match (mirror.parent(), mirror.file_name()) {
            (Some(above), Some(name)) if !above.as_os_str().is_empty() => (above, name),
            _ => return Err(failed(io::Error::other("it must be an absolute path"))),
        };
        let above = match File::open(above) {
            Ok(above) => above,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SnapshotError::NotYet(mirror.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        };
        let dir = match open(&above, &Path::new(name).join(SHOWN), OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SnapshotError::NotYet(mirror.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        };
        let meta = rustix::fs::fstat(&dir).map_err(|error| failed(error.into()))?;
        Ok(Self { mirror, dir, inode: meta.st_ino, owner: meta.st_uid })
    }

    fn was_replaced(&self) -> Result<bool, SnapshotError> {
        Self::open(self.mirror).map(|now| now.inode != self.inode)
    }

    fn take(&self) -> Result<Composed, SnapshotError> {
        let image = |source| SnapshotError::Image { mirror: self.mirror.to_owned(), source };
        let mut tree = FileTree::new();
        for folder in ["refs", "objects/info", "objects/pack"] {
            tree.folder(folder).map_err(image)?;
        }
        tree.bytes("HEAD", self.head()?).map_err(image)?;
        tree.bytes("config", CONFIG.into()).map_err(image)?;
        for path in self.list()? {
            let (file, len) = self.file(&path)?;
            tree.open(&path, Arc::new(file), len).map_err(image)?;
        }
        tree.compose().map_err(image)
    }

    fn failed(&self, what: &str) -> impl Fn(io::Error) -> SnapshotError {
        move |source| SnapshotError::Open { what: what.to_owned(), mirror: self.mirror.to_owned(), source }
    }

    /// Paths of all files that git reads, in order.
    fn list(&self) -> Result<Vec<String>, SnapshotError> {
        let mut found = Vec::new();
        let mut seen = 0;
        for folder in FOLDERS {
            let failed = self.failed(folder);
            let path = if folder.is_empty() { "." } else { folder };
            let dir = match open(&self.dir, Path::new(path), OFlags::DIRECTORY) {
                Ok(dir) => dir,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            for entry in Dir::new(dir).map_err(|error| failed(error.into()))? {
                let entry = entry.map_err(|error| failed(error.into()))?;
                seen += 1;
                if seen > MAX_FILES {
                    return Err(SnapshotError::TooMany(self.mirror.to_owned()));
                }
                match entry.file_name().to_str() {
                    Ok(name) if is_read(folder, name) && folder.is_empty() => found.push(name.to_owned()),
                    Ok(name) if is_read(folder, name) => found.push(format!("{folder}/{name}")),
                    _ => {}
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// A file, open for reading, and its length.
    fn file(&self, path: &str) -> Result<(File, u64), SnapshotError> {
        let refused = || SnapshotError::NoFile { what: path.to_owned(), mirror: self.mirror.to_owned() };
        // A pipe would make an open without this wait.
        let file = open(&self.dir, Path::new(path), OFlags::NONBLOCK).map_err(|error| {
            match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => refused(),
                _ => self.failed(path)(error),
            }
        })?;
        let file = File::from(file);
        let meta = file.metadata().map_err(self.failed(path))?;
        // The owner check is for hard links: a user may have made one to a file of somebody else.
        if !meta.is_file() || meta.uid() != self.owner {
            return Err(refused());
        }
        Ok((file, meta.len()))
    }

    /// `HEAD` decides what a clone checks out, and nothing else is believed of it.
    fn head(&self) -> Result<Vec<u8>, SnapshotError> {
        let (file, _) = self.file("HEAD")?;
        let mut text = String::new();
        let read = file.take(MAX_HEAD).read_to_string(&mut text);
        let branch = text.strip_prefix("ref: refs/heads/").and_then(|rest| rest.strip_suffix('\n'));
        let good =
            |branch: &str| !branch.is_empty() && !branch.contains(|c: char| c.is_control() || c == ' ');
        match read {
            Err(error) if error.kind() != io::ErrorKind::InvalidData => Err(self.failed("HEAD")(error)),
            Ok(_) if branch.is_some_and(good) => Ok(text.into_bytes()),
            _ => Err(SnapshotError::Head(self.mirror.to_owned())),
        }
    }
}

/// Opens what is below `dir`, without following any link.
fn open(dir: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // The kernel gives up with EAGAIN when folders are moved meanwhile.
    for _ in 0..ATTEMPTS {
        match openat2(&dir, path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) => {}
            opened => return Ok(opened?),
        }
    }
    Err(rustix::io::Errno::AGAIN.into())
}
