//! How fresh a mirror is, and what went wrong: a small file beside it.
//!
//! The writer may have been taken over by what it fetched, so the reader limits the size, follows no link, and makes all text
//! printable.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 10;
/// Most characters of one text.
const MAX_TEXT: usize = 2048;

/// Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    pub name: String,
    pub url: String,
    /// The branch that a clone checks out, such as `refs/heads/master`.
    #[serde(default)]
    pub head: Option<String>,
    /// Its newest commit, as readers see it.
    #[serde(default)]
    pub commit: Option<String>,
    /// The date of that commit.
    #[serde(default)]
    pub committed: Option<u64>,
    /// Where the branches came from.
    #[serde(default)]
    pub source: Option<Source>,
    /// When upstream was read completely for the last time.
    #[serde(default)]
    pub checked: Option<u64>,
    /// The last attempt, if it failed.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// Why the seed was not used.
    #[serde(default)]
    pub seed_failure: Option<String>,
    /// Of what readers see.
    #[serde(default)]
    pub bytes: u64,
    #[serde(default)]
    pub packs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Seed,
    Upstream,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub why: String,
    /// When it happened.
    pub at: u64,
    /// Failures since the last success, this one included.
    pub times: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("cannot read the status of a mirror from {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not the status of a mirror: {why}", path.display())]
    Shape { path: PathBuf, why: String },
    #[error("cannot write the status of a mirror to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Status {
    /// The status of the mirror `name` below `dir`; `None` if it was never attempted to make one.
    pub fn read(dir: &Path, name: &str) -> Result<Option<Self>, StatusError> {
        let path = place(dir, name);
        let text = match text(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StatusError::Read { path, source }),
        };
        let status: Self = serde_json::from_slice(&text)
            .map_err(|error| StatusError::Shape { path, why: printable::start(&error.to_string(), 200) })?;
        Ok(Some(status.printable()))
    }

    /// Replaces the file.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), StatusError> {
        let path = place(dir, &self.name);
        let json = serde_json::to_vec_pretty(&self.clone().printable()).map_err(io::Error::other);
        let written = json.and_then(|json| atomic_file::write(&path, &json, 0o644));
        written.map_err(|source| StatusError::Write { path, source })
    }

    fn printable(mut self) -> Self {
        let clean = |text: &mut String| *text = printable::start(text, MAX_TEXT);
        clean(&mut self.name);
        clean(&mut self.url);
        for text in [&mut self.head, &mut self.commit, &mut self.seed_failure].into_iter().flatten() {
            clean(text);
        }
        if let Some(failure) = &mut self.failure {
            clean(&mut failure.why);
        }
        self
    }
}

fn place(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.json"))
}

fn text(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe or a device must not make the reader wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::other("it is too large"));
    }
    Ok(text)
}
