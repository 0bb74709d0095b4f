//! The room in the store. For maintainers only: a member who sees how much is free could see whether others have the
//! contents of an upload.

use std::fmt::Write as _;

use ::roster::date;
use daemon::Agent;
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Room {
    /// Bytes of the objects of all paths.
    object_bytes: u64,
    /// Of the file system.
    total_bytes: u64,
    free_bytes: u64,
    /// 0: the file system has no fixed number of inodes.
    inodes: u64,
    free_inodes: u64,
    /// From 0 (nothing has to be evicted) to 1000 (uploads are refused if nothing can be evicted).
    pressure: u32,
    /// When the Verified path that nobody has used for longest was used, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_use: Option<u64>,
}

impl Room {
    /// `None`: the file system does not answer.
    pub fn of(agent: &Agent) -> Option<Self> {
        let (store, space) = (&agent.store, agent.store.space().ok()?);
        Some(Self {
            object_bytes: store.object_bytes(),
            total_bytes: space.total,
            free_bytes: space.free,
            inodes: space.files,
            free_inodes: space.free_files,
            pressure: store.pressure(),
            oldest_use: store.oldest_use(),
        })
    }

    pub fn text(&self, text: &mut String) {
        let mib = |bytes: u64| bytes >> 20;
        let (used, free, total) = (mib(self.object_bytes), mib(self.free_bytes), mib(self.total_bytes));
        let _ = write!(text, "store        {used} MiB in objects, {free} of {total} MiB free");
        if self.inodes > 0 {
            let _ = write!(text, ", {} of {} inodes", self.free_inodes, self.inodes);
        }
        text.push('\n');
        if let Some(oldest) = self.oldest_use {
            let _ = writeln!(text, "oldest use   {}", date::shown(oldest));
        }
    }
}
