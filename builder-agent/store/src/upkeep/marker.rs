//! The marker: a file of one line that says how much of the store is known to be on stable storage.
//!
//! ```text
//! <root>/durable    barnraiser-store 1 flush BOOT THROUGH CHECKSUM
//! ```
//!
//! Always written after the data it covers: all rows with a number up to THROUGH, and their objects, survive
//! a power loss. BOOT is the kernel's boot id at the time of writing. As long as the machine has not been
//! booted again, the data that a killed process wrote is in the page cache, and nothing has to be checked. A
//! line that cannot be read covers nothing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix_derivation::nixbase32;
use sha2::{Digest, Sha256};

use crate::config::Durability;
use crate::error::FileError;

const MAGIC: &str = "barnraiser-store 1";
/// A boot id that differs from every real one.
const NO_BOOT: &str = "none";
/// The line is padded to this length and overwritten in place: that is one sector, which disks write whole,
/// and needs no new block, which a full disk does not have.
const LINE: usize = 256;

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) durability: Durability,
    boot: String,
    /// Highest row number such that this row and all earlier ones are on stable storage.
    pub(crate) through: i64,
}

/// The machine's boot id; [`NO_BOOT`] if it cannot be read.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match id.trim() {
        "" => NO_BOOT.to_owned(),
        id => id.to_owned(),
    }
}

impl Marker {
    pub(crate) fn now(durability: Durability, through: i64) -> Self {
        Self { durability, boot: boot(), through }
    }

    /// Makes the next start check everything newer, even without a boot in between.
    pub(crate) fn doubtful(mut self) -> Self {
        self.boot = NO_BOOT.to_owned();
        self
    }

    /// Whether the machine has been running since the marker was written, so that its page cache has all
    /// written data.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        self.boot != NO_BOOT && self.boot == boot()
    }

    fn parse(line: &str) -> Option<Self> {
        let (said, checksum) = line.trim_end().rsplit_once(' ')?;
        if checksum != self::checksum(said) {
            return None;
        }
        let mut words = said.strip_prefix(MAGIC)?.split_whitespace();
        let durability = match words.next()? {
            "none" => Durability::None,
            "flush" => Durability::Flush,
            _ => return None,
        };
        Some(Self { durability, boot: words.next()?.to_owned(), through: words.next()?.parse().ok()? })
    }

    fn line(&self) -> String {
        let durability = match self.durability {
            Durability::None => "none",
            Durability::Flush => "flush",
        };
        let said = format!("{MAGIC} {durability} {} {}", self.boot, self.through);
        let line = format!("{said} {}", checksum(&said));
        format!("{line:<width$}\n", width = LINE - 1)
    }
}

fn checksum(said: &str) -> String {
    nixbase32::encode(&Sha256::digest(said)[..20])
}

/// The file, open.
pub(crate) struct MarkerFile {
    file: File,
    path: PathBuf,
}

impl MarkerFile {
    /// Opens the file below `root`, and returns its contents.
    pub(crate) fn open(root: &Path) -> Result<(Self, Option<Marker>), FileError> {
        let path = root.join("durable");
        let failed = |what, e: io::Error| FileError::new(what, &path, e);
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = options.open(&path).map_err(|e| failed("open", e))?;
        let mut line = [0; LINE];
        let mut length = 0;
        while length < LINE {
            match file.read_at(&mut line[length..], length as u64).map_err(|e| failed("read", e))? {
                0 => break,
                n => length += n,
            }
        }
        let marker = std::str::from_utf8(&line[..length]).ok().and_then(Marker::parse);
        Ok((Self { file, path }, marker))
    }

    /// Durable when it returns.
    pub(crate) fn write(&self, marker: &Marker) -> Result<(), FileError> {
        let written = self.file.write_all_at(marker.line().as_bytes(), 0);
        written.and_then(|()| self.file.sync_all()).map_err(|e| FileError::new("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_line_promises_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, before) = MarkerFile::open(dir.path()).unwrap();
        assert_eq!(before, None);
        let marker = Marker::now(Durability::Flush, 17);
        assert!(marker.is_of_this_boot() && !marker.clone().doubtful().is_of_this_boot());
        file.write(&marker).unwrap();
        assert_eq!(MarkerFile::open(dir.path()).unwrap().1, Some(marker.clone()));
        let line = marker.line();
        assert_eq!(line.len(), LINE);
        for at in 0..line.trim_end().len() {
            let mut bad = line.clone().into_bytes();
            bad[at] ^= 1;
            assert_eq!(std::str::from_utf8(&bad).ok().and_then(Marker::parse), None, "byte {at}");
            assert_eq!(Marker::parse(&line[..at]), None, "cut at {at}");
        }
    }
}
