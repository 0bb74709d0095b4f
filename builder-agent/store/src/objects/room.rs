//! Room for objects that are being written: asked for before the bytes are, so that the file system is never filled to its
//! last byte, where the index could not be written any more.
//!
//! Not here: how room is made (`upkeep::room`).

use std::io;
use std::sync::Arc;

/// Bytes for which room is asked at once. Asking costs one system call.
pub(crate) const AT_ONCE: u64 = 256 << 10;

/// Who writes an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A client or a cache sends it, and can send it again later.
    Upload,
    /// A build made it. Builds get the last room: what they made would be lost.
    Build,
}

/// Gives room on the file system of the store.
pub(crate) trait Room: Send + Sync {
    /// Returns when there is room for so many more bytes and for one more file; fails if none can be made in good time.
    fn wait_for(&self, bytes: u64, writer: Writer) -> io::Result<()>;
}

/// Room that was asked for before the bytes came: whoever pushes an upload waits for it without a thread.
#[derive(Debug, Default)]
pub struct Leave(u64);

impl Leave {
    /// For so many bytes. The store has said that there is room for them ([`crate::Store::room_for`]).
    #[must_use]
    pub(crate) fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A part of it, for one of several uploads.
    #[must_use]
    pub fn part(&mut self, bytes: u64) -> Self {
        let part = bytes.min(self.0);
        self.0 -= part;
        Self(part)
    }
}

/// The room that one object may still take without asking.
pub(crate) struct Allowance {
    room: Arc<dyn Room>,
    writer: Writer,
    left: u64,
}

impl Allowance {
    /// For a new object.
    pub(crate) fn open(room: Arc<dyn Room>, writer: Writer) -> Self {
        Self { room, writer, left: 0 }
    }

    /// Adds room that was asked for elsewhere.
    pub(crate) fn give(&mut self, leave: Leave) {
        self.left = self.left.saturating_add(leave.0);
    }

    /// Must be called before `bytes` more are written.
    pub(crate) fn take(&mut self, bytes: usize) -> io::Result<()> {
        let bytes = bytes as u64;
        if self.left < bytes {
            let more = bytes.max(AT_ONCE);
            self.room.wait_for(more, self.writer)?;
            self.left += more;
        }
        self.left -= bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Gives room for so many bytes.
    struct Small(Mutex<u64>);

    impl Room for Small {
        fn wait_for(&self, bytes: u64, _: Writer) -> io::Result<()> {
            let mut left = self.0.lock().unwrap();
            *left = left.checked_sub(bytes).ok_or(io::ErrorKind::StorageFull)?;
            Ok(())
        }
    }

    #[test]
    fn room_is_asked_for_before_it_is_taken_and_not_for_each_byte() {
        let room = Arc::new(Small(Mutex::new(3 * AT_ONCE)));
        let mut allowance = Allowance::open(Arc::clone(&room) as _, Writer::Upload);
        let left = || *room.0.lock().unwrap();
        (0..1000).for_each(|_| allowance.take(100).unwrap());
        assert_eq!(left(), 2 * AT_ONCE, "the first grant is enough");
        allowance.give(Leave::new(AT_ONCE));
        allowance.take(AT_ONCE as usize).unwrap();
        assert_eq!(left(), 2 * AT_ONCE, "what was asked for before is not asked for again");
        allowance.take(AT_ONCE as usize * 2).unwrap();
        assert_eq!(left(), 0);
        assert_eq!(allowance.take(AT_ONCE as usize).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
