//! A file that another program replaces: its changes, and its contents up to a limit.
//!
//! Not here: what the contents mean, and what happens when they cannot be read.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use ::roster::Day;
use tokio::time::MissedTickBehavior;

/// Interval between checks of the file. Removal of a member must take effect within a minute; a stat per second costs
/// nothing.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// Distinguishes versions of the file. Replacing by rename changes the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Part of the stamp because expiry dates pass while the file stays the same.
    day: Day,
}

/// The version of the file at a moment; without one if there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version(Option<Stamp>);

impl Version {
    pub fn of(path: &Path) -> Self {
        let stamp = |meta: std::fs::Metadata| {
            let modified = (meta.mtime(), meta.mtime_nsec());
            Stamp { inode: meta.ino(), size: meta.len(), modified, day: Day::today() }
        };
        Self(std::fs::metadata(path).ok().map(stamp))
    }
}

/// Calls `changed` within a second after the file has another version than `seen`, and then after each further change;
/// also while `is_due` is true. Ends when `end` is ready.
pub(crate) async fn each_change(
    path: &Path,
    mut seen: Version,
    end: impl Future<Output = ()>,
    is_due: impl Fn() -> bool,
    mut changed: impl FnMut(),
) {
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(end);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut end => return,
        }
        let now = Version::of(path);
        if now != seen || is_due() {
            seen = now;
            changed();
        }
    }
}

/// The contents of the file, and of a larger one the first `limit` bytes and one more.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
