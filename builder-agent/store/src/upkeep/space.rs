//! The room on the store's file system, and from when on it is too little.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::config::MinFree;

/// The room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub total: u64,
    /// Bytes that the agent may still write.
    pub free: u64,
    /// Files that there can be; 0: as many as there are bytes for.
    pub files: u64,
    /// Files that can still be made; means something only if `files` is not 0.
    pub free_files: u64,
}

impl Space {
    /// Of the file system at `path`.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(rustix::fs::statvfs(path)?))
    }

    pub(crate) fn around(file: &File) -> io::Result<Self> {
        Ok(Self::of(rustix::fs::fstatvfs(file)?))
    }

    fn of(stat: rustix::fs::StatVfs) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Self {
            total: bytes(stat.f_blocks),
            free: bytes(stat.f_bavail),
            files: stat.f_files,
            free_files: stat.f_favail,
        }
    }
}

/// Bytes, and files, that should stay free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// How much is still missing until so much is free.
impl Free {
    pub(crate) fn missing(self, space: &Space) -> Self {
        let files = if space.files == 0 { 0 } else { self.files.saturating_sub(space.free_files) };
        Self { bytes: self.bytes.saturating_sub(space.free), files }
    }

    /// Also these bytes, and these files where files count at all.
    pub(crate) fn and(self, bytes: u64, files: u64) -> Self {
        let files = if self.files == 0 { 0 } else { self.files.saturating_add(files) };
        Self { bytes: self.bytes.saturating_add(bytes), files }
    }

    /// The larger one of both.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), files: self.files.max(other.files) }
    }

    pub(crate) fn is_nothing(self) -> bool {
        self.bytes == 0 && self.files == 0
    }
}

/// The watermarks of one store. With less than `low` free the box evicts until `enough` is; uploads are slowed down below
/// `low` and refused below `for_uploads`; builds write down to `for_builds`. The rest is for the index and for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) enough: Free,
    pub(crate) low: Free,
    pub(crate) for_uploads: Free,
    pub(crate) for_builds: Free,
}

/// The default of [`MinFree::bytes`]: a tenth of the file system, but not more than 10 GiB.
const USUAL_PART: u64 = 10;
const USUAL_MOST: u64 = 10 << 30;

impl Levels {
    /// `None`: nothing is evicted for room.
    pub(crate) fn new(min: MinFree, space: &Space) -> Option<Self> {
        let bytes = match min {
            MinFree::Off => return None,
            MinFree::Usual { .. } => (space.total / USUAL_PART).min(USUAL_MOST),
            MinFree::Bytes { bytes, .. } => bytes.min(space.total / 2),
        };
        let percent = match min {
            MinFree::Off => 0,
            MinFree::Usual { files_percent } | MinFree::Bytes { files_percent, .. } => files_percent,
        };
        let files = space.files / 100 * u64::from(percent.min(50));
        // At least one, so that a few inodes are a level at all.
        let files = if space.files == 0 || percent == 0 { 0 } else { files.max(4) };
        let part =
            |times: u64, parts: u64| Free { bytes: bytes * times / parts, files: files * times / parts };
        Some(Self { enough: part(3, 2), low: part(1, 1), for_uploads: part(1, 2), for_builds: part(1, 4) })
    }

    /// 0 from `low` upwards, 1000 from `for_uploads` downwards.
    pub(crate) fn pressure(&self, space: &Space) -> u32 {
        let between = |low: u64, last: u64, free: u64| match low.saturating_sub(free) {
            0 => 0,
            missing => (missing.saturating_mul(1000) / (low - last).max(1)).min(1000) as u32,
        };
        let bytes = between(self.low.bytes, self.for_uploads.bytes, space.free);
        let files = match space.files {
            0 => 0,
            _ => between(self.low.files, self.for_uploads.files, space.free_files),
        };
        bytes.max(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: Space = Space { total: 1000 << 20, free: 500 << 20, files: 10_000, free_files: 9_000 };

    #[test]
    fn the_levels_follow_from_the_file_system_and_lie_one_below_the_other() {
        let usual = Levels::new(MinFree::Usual { files_percent: 5 }, &SPACE).unwrap();
        assert_eq!(usual.low, Free { bytes: 100 << 20, files: 500 });
        let huge = Space { total: 1 << 50, ..SPACE };
        assert_eq!(Levels::new(MinFree::Usual { files_percent: 5 }, &huge).unwrap().low.bytes, 10 << 30);
        // More than half of it would leave no store.
        let all = MinFree::Bytes { bytes: u64::MAX, files_percent: 100 };
        let levels = Levels::new(all, &SPACE).unwrap();
        assert_eq!(levels.low, Free { bytes: 500 << 20, files: 5000 });
        assert!(levels.enough.bytes > levels.low.bytes && levels.low.bytes > levels.for_uploads.bytes);
        assert!(levels.for_uploads.bytes > levels.for_builds.bytes && levels.for_builds.bytes > 0);
        assert_eq!(Levels::new(MinFree::Off, &SPACE), None);
    }

    #[test]
    fn pressure_grows_from_the_low_level_to_the_last_by_what_is_scarcer() {
        let levels = Levels::new(MinFree::Usual { files_percent: 5 }, &SPACE).unwrap();
        let pressure =
            |mib: u64, free_files| levels.pressure(&Space { free: mib << 20, free_files, ..SPACE });
        assert_eq!([100, 75, 50, 0].map(|mib| pressure(mib, 9_000)), [0, 500, 1000, 1000]);
        assert_eq!(pressure(75, 250), 1000);
        let endless = Space { free: 100 << 20, files: 0, free_files: 0, ..SPACE };
        assert_eq!(levels.pressure(&endless), 0);
        assert!(levels.low.missing(&endless).is_nothing());
        assert_eq!(
            levels.low.missing(&Space { free: 1, free_files: 499, ..SPACE }),
            Free { bytes: (100 << 20) - 1, files: 1 }
        );
    }
}
