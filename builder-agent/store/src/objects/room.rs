//! Room for objects that are being written: asked for before the bytes are, so that the file system is never filled to its
//! last byte, where the index could not be written any more.
//!
//! Not here: how room is made (`upkeep::room`).

use std::io;
use std::sync::Arc;

use crate::error::FileError;

/// Bytes for which room is asked at once. Asking costs one system call.
const AT_ONCE: u64 = 256 << 10;

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

/// The room that one object may still take without asking.
pub(crate) struct Allowance {
    room: Arc<dyn Room>,
    writer: Writer,
    left: u64,
}

impl Allowance {
    /// For a new object.
    pub(crate) fn open(room: Arc<dyn Room>, writer: Writer) -> Result<Self, FileError> {
        let mut allowance = Self { room, writer, left: 0 };
        allowance.take(0).map_err(|e| FileError::new("write", "an object", e))?;
        Ok(allowance)
    }

    /// Must be called before `bytes` more are written.
    pub(crate) fn take(&mut self, bytes: usize) -> io::Result<()> {
        let bytes = bytes as u64;
        if self.left <= bytes {
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
        let mut allowance = Allowance::open(Arc::clone(&room) as _, Writer::Upload).unwrap();
        let left = || *room.0.lock().unwrap();
        assert_eq!(left(), 2 * AT_ONCE);
        (0..1000).for_each(|_| allowance.take(100).unwrap());
        assert_eq!(left(), 2 * AT_ONCE, "the first grant is enough");
        allowance.take(AT_ONCE as usize * 2).unwrap();
        assert_eq!(left(), 0);
        assert_eq!(allowance.take(AT_ONCE as usize).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
