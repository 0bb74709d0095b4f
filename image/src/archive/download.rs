//! Downloads files of the lists by apt (with its mirrors, proxies and retries), checks them, and keeps them.
//!
//! A file gets its final name only after its SHA-256 was compared with the list. On error all complete files
//! stay, and the next run downloads the others.

use super::plan::{Listed, megabytes};
use super::{Archive, ArchiveError, failed};
use crate::progress::Progress;
use crate::tool::{self, ToolError};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Not in PATH; a part of apt since 1.1.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
/// Interval between two updates of the progress.
const GLANCE: Duration = Duration::from_millis(200);

/// A file that the mirror lacks, or has with other contents than its index says.
pub(super) struct Missing {
    pub file: Listed,
    pub reason: String,
}

impl Archive {
    /// The place of a downloaded file.
    pub fn path(&self, file: &Listed) -> PathBuf {
        self.files.join(&file.name)
    }

    /// Downloads the missing files, and returns those that the mirror lacks. It is an error if the mirror has
    /// none at all.
    pub(super) fn download(&self, what: &str, files: &[Listed]) -> Result<Vec<Missing>, ArchiveError> {
        let wanted: Vec<&Listed> = files.iter().filter(|file| !is(&self.path(file), file)).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let total = wanted.iter().map(|file| file.size).sum();
        eprintln!("{what}: downloading {} files, {}, from {}", wanted.len(), megabytes(total), self.mirror);
        let partial = self.scratch()?;
        let words = self.fetch_into(partial.path(), what, &wanted, total)?;

        let mut missing = Vec::new();
        for file in wanted {
            let arrived = partial.path().join(&file.name);
            if is(&arrived, file) {
                let path = self.path(file);
                std::fs::rename(&arrived, &path).map_err(failed("move into place", &path))?;
            } else {
                missing.push(Missing { file: file.clone(), reason: reason(&words, file) });
            }
        }
        if let Some(first) = missing.first()
            && !self.answers(partial.path())?
        {
            return Err(ArchiveError::Unreachable {
                file: first.file.uri.clone(),
                mirror: self.mirror.clone(),
                reason: first.reason.clone(),
            });
        }
        Ok(missing)
    }

    /// Calls apt once for all files; returns its error messages.
    fn fetch_into(
        &self,
        dir: &Path,
        what: &str,
        wanted: &[&Listed],
        total: u64,
    ) -> Result<String, ArchiveError> {
        let mut command = self.command(APT_HELPER);
        command.arg("download-file");
        for file in wanted {
            command.arg(&file.uri).arg(dir.join(&file.name)).arg(format!("SHA256:{}", file.sha256));
        }
        let finished = std::thread::scope(|scope| {
            let (running, ended) = channel::<()>();
            scope.spawn(move || {
                let mut progress = Progress::bytes(what, total);
                while ended.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
                    progress.at(size_of(dir));
                }
                progress.end(size_of(dir));
            });
            let finished = tool::output(&mut command, "download packages");
            drop(running);
            finished
        });
        match finished {
            Ok(_) => Ok(String::new()),
            // The caller checks which files have arrived.
            Err(ToolError::Failed { stderr, .. }) => Ok(stderr),
            Err(other) => Err(other.into()),
        }
    }

    /// Whether the mirror answers at all: it must have the index of the suite, which is its first file.
    fn answers(&self, dir: &Path) -> Result<bool, ArchiveError> {
        let index = format!("{}/dists/{}/InRelease", self.mirror.trim_end_matches('/'), self.suite);
        let mut command = self.command(APT_HELPER);
        command.args(["download-file", &index]).arg(dir.join("InRelease"));
        match tool::output(&mut command, "ask the mirror for its index") {
            Ok(_) => Ok(true),
            Err(ToolError::Failed { .. }) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }
}

/// Whether the file at this path has the checksum of the list.
fn is(path: &Path, file: &Listed) -> bool {
    let Ok(mut opened) = std::fs::File::open(path) else { return false };
    opened.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == file.size)
        && crate::files::digest(&mut opened).is_ok_and(|(sha256, _)| sha256 == file.sha256)
}

fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

/// apt's message about a file: the line that names it and, for a wrong hash, the lines below.
fn reason(words: &str, file: &Listed) -> String {
    let mut lines = words.lines().skip_while(|line| !line.contains(&file.uri));
    let Some(first) = lines.next() else { return "it did not come as the index describes it".into() };
    let first = first.split_once(&file.uri).map_or(first, |(_, rest)| rest);
    // The server's IP address is of no use to the reader.
    let first = first.split(" [IP:").next().unwrap_or(first);
    first.trim().to_owned()
}
