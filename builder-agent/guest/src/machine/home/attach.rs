//! Shows store paths in a home: those of an image are mounted one by one, and small files are written. What is no store path,
//! such as a repository, is shown in the root directory in the same way.
//!
//! A path that the home shows already stays as it is. If anything fails, everything that the request has made is taken back,
//! so that the host can say "none of it is there".

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use guest::protocol::{Attach, Range, StoreFile};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, linkat, openat, utimensat};

use super::disk::Disk;
use crate::stream::Stream;
use crate::sys;

/// As on every store path.
const STORE_TIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

/// /nix/store of a home.
pub struct Store {
    dir: PathBuf,
    /// Its root directory.
    root: PathBuf,
    /// Where an image is mounted while its paths are. Nobody but root can look into it.
    staging: PathBuf,
    disk: Disk,
}

/// Where the paths of a request are shown.
#[derive(Clone, Copy)]
struct Target<'a> {
    dir: &'a Path,
    /// For messages.
    called: &'static str,
    /// The image has no entry of the name: it is shown as a whole.
    whole: bool,
}

impl Target<'_> {
    fn place(self, name: &str) -> io::Result<PathBuf> {
        // The agent sends these names, so this would be a bug and no attack; but the path would be somewhere else.
        if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no name of a store path"));
        }
        Ok(self.dir.join(name))
    }

    fn cannot_show(self, name: &str, error: io::Error) -> io::Error {
        let hint = match error.raw_os_error() {
            Some(libc::ENOSPC) => "; the disk of this home is full: delete something",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot show {}{name}: {error}{hint}", self.called))
    }
}

/// What a request has made, to be taken back.
enum Made {
    Mount(PathBuf),
    Directory(PathBuf),
    /// Or a link.
    File(PathBuf),
}

impl Store {
    pub fn new([dir, root]: [PathBuf; 2], staging: PathBuf, disk: Disk) -> Store {
        Store { dir, root, staging, disk }
    }

    /// Shows what is asked for. The outer error is the stream's.
    pub fn attach(&mut self, request: &Attach, stream: &mut Stream) -> io::Result<io::Result<()>> {
        let (root, dir) = (self.root.clone(), self.dir.clone());
        let to = match request.in_root {
            true => Target { dir: &root, called: "/", whole: true },
            false => Target { dir: &dir, called: "/nix/store/", whole: false },
        };
        let mut made = Vec::new();
        let mut shown = Ok(());
        for file in &request.files {
            // Whatever fails, the contents of the others have to be read.
            let written = self.write(to, file, shown.is_ok(), stream, &mut made)?;
            shown = shown.and(written.map_err(|e| to.cannot_show(&file.name, e)));
        }
        let shown = shown.and_then(|()| match request.image {
            Some(range) => self.show_image(to, range, &request.paths, &mut made),
            None if request.paths.is_empty() => Ok(()),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "there are paths and no image")),
        });
        if shown.is_err() {
            made.into_iter().rev().for_each(take_back);
        }
        Ok(shown)
    }

    /// Reads the contents of a file, and shows it when it is complete. The outer error is the stream's.
    fn write(
        &self,
        to: Target<'_>,
        file: &StoreFile,
        wanted: bool,
        stream: &mut Stream,
        made: &mut Vec<Made>,
    ) -> io::Result<io::Result<()>> {
        let begun = to.place(&file.name).and_then(|path| {
            if !wanted || path.symlink_metadata().is_ok() {
                return Ok(None);
            }
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(Some((path, File::from(openat(CWD, to.dir, flags, Mode::RUSR)?))))
        });
        let mut sink = Sink { file: None, failed: None };
        let begun = match begun {
            Ok(Some((path, nameless))) => {
                sink.file = Some(nameless);
                Ok(Some(path))
            }
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        };
        stream.read_file(file.size, &mut sink)?;
        Ok(begun.and_then(|path| {
            let (Some(path), Some(nameless)) = (path, sink.finish()?) else { return Ok(()) };
            let mode = if file.executable { 0o555 } else { 0o444 };
            rustix::fs::fchmod(&nameless, Mode::from_raw_mode(mode))?;
            rustix::fs::futimens(&nameless, &STORE_TIME)?;
            linkat(nameless.as_fd(), "", CWD, &path, AtFlags::EMPTY_PATH)?;
            made.push(Made::File(path));
            Ok(())
        }))
    }

    fn show_image(
        &mut self,
        to: Target<'_>,
        range: Range,
        paths: &[String],
        made: &mut Vec<Made>,
    ) -> io::Result<()> {
        let missing = |name: &&String| to.place(name).is_ok_and(|path| path.symlink_metadata().is_err());
        let is_sound =
            paths.iter().try_for_each(|name| to.place(name).map(drop).map_err(|e| to.cannot_show(name, e)));
        is_sound?;
        let missing: Vec<&String> = paths.iter().filter(missing).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let part = self.disk.part(range)?;
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
        let mounted = sys::mount(&part.device.display().to_string(), &self.staging, "erofs", flags, "");
        let shown = mounted.and_then(|()| {
            let shown = missing
                .iter()
                .try_for_each(|name| self.show(to, name, made).map_err(|e| to.cannot_show(name, e)));
            // The mounts of the paths keep the image.
            shown.and(sys::unmount(&self.staging))
        });
        if shown.is_err() {
            // The image is busy until its last mount has gone.
            made.drain(..).rev().for_each(take_back);
            let _ = sys::unmount(&self.staging);
            self.disk.give_back(part);
        }
        shown
    }

    fn show(&self, to: Target<'_>, name: &str, made: &mut Vec<Made>) -> io::Result<()> {
        let source = if to.whole { self.staging.clone() } else { self.staging.join(name) };
        let target = to.place(name)?;
        let kind = source
            .symlink_metadata()
            .map_err(|e| io::Error::new(e.kind(), format!("the image does not have it: {e}")))?
            .file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            made.push(Made::File(target.clone()));
            utimensat(CWD, &target, &STORE_TIME, AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(());
        }
        if kind.is_dir() {
            fs::create_dir(&target)?;
            made.push(Made::Directory(target.clone()));
        } else if kind.is_file() {
            File::create_new(&target)?;
            made.push(Made::File(target.clone()));
        } else {
            return Err(io::Error::other("it is neither a file nor a directory nor a link"));
        }
        sys::mount(&source.display().to_string(), &target, "", libc::MS_BIND, "")?;
        made.push(Made::Mount(target));
        Ok(())
    }
}

fn take_back(made: Made) {
    let _ = match made {
        Made::Mount(path) => sys::unmount(&path),
        Made::Directory(path) => fs::remove_dir(path),
        Made::File(path) => fs::remove_file(path),
    };
}

/// Takes all bytes, and keeps the first error for the end.
struct Sink {
    /// `None`: nobody wants the bytes.
    file: Option<File>,
    failed: Option<io::Error>,
}

impl Sink {
    fn finish(self) -> io::Result<Option<File>> {
        self.failed.map_or(Ok(self.file), Err)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let (Some(file), None) = (&mut self.file, &self.failed)
            && let Err(e) = file.write_all(bytes)
        {
            self.failed = Some(e);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "attach_test.rs"]
mod tests;
