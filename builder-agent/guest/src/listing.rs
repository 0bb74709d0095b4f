//! Lists directories for a builder in a random order (the setting `inject-fs-randomness`).
//!
//! The order is by the hash of the name, with a secret of this build: as on a file system with hashed directories, a
//! directory keeps its order during a build, and has another one in the next. The hash is also the position in the
//! directory (lseek(2), telldir(3)), so a reader can go on anywhere, whatever was added or removed meanwhile, and entries of
//! a directory of any size are mixed with each other. `.` and `..` stay the first two: no file system of Linux has them
//! elsewhere.
//!
//! Each call reads the whole directory, and keeps no more than it gives. So a directory takes time with the square of its
//! size; one with 100,000 entries takes seconds.
//!
//! Everything about a call is a hostile builder's. It can make its own calls wait, and nothing else: the builder's end, its
//! output and its limits are watched by other threads. Not here: how calls get here (`sys::seccomp`).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, fcntl_getfl, openat, seek, tell};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::sys::{
    self,
    seccomp::{self, Call, Layout},
};

/// Most bytes of one answer. A caller with a larger buffer asks once more.
const MOST: usize = 64 << 10;
/// Bytes of a directory that are read at once.
const PIECE: usize = 32 << 10;

/// The position after `.`, after `..`, and of the first other entry.
const SELF: u32 = 1;
const PARENT: u32 = 2;
const FIRST: u32 = 3;
/// The last position: what every file system accepts, and fits into a position of a 32-bit program.
const LAST: u32 = i32::MAX as u32;

/// The order of all directories in one build.
struct Order([u8; 16]);

impl Order {
    fn new() -> io::Result<Order> {
        let mut secret = [0; 16];
        // So few bytes come at once or not at all.
        match getrandom(&mut secret, GetRandomFlags::empty())? {
            16 => Ok(Order(secret)),
            _ => Err(io::Error::other("getrandom gave too few bytes")),
        }
    }

    /// The position after this entry, which is larger than those of all entries before it.
    fn place(&self, name: &[u8]) -> u32 {
        match name {
            b"." => return SELF,
            b".." => return PARENT,
            _ => {}
        }
        let mut hash = DefaultHasher::new();
        hash.write(&self.0);
        hash.write(name);
        let places = u64::from(LAST - FIRST) + 1;
        FIRST + (hash.finish() % places) as u32
    }
}

struct Entry {
    inode: u64,
    kind: u8,
    name: CString,
}

impl Layout {
    /// Bytes of a record: a header, the name, and in the old layout the type behind it; the next record is aligned.
    fn size(self, name: &CStr) -> usize {
        let bytes = match self {
            Layout::Large => 19 + name.to_bytes_with_nul().len(),
            Layout::Old => 18 + name.to_bytes_with_nul().len() + 1,
        };
        bytes.next_multiple_of(8)
    }

    /// Appends the record of an entry. `after` is the position after it.
    fn put(self, to: &mut Vec<u8>, entry: &Entry, after: u32) {
        let (start, size) = (to.len(), self.size(&entry.name));
        to.extend(entry.inode.to_ne_bytes());
        to.extend(u64::from(after).to_ne_bytes());
        // A name has at most 255 bytes.
        to.extend((size as u16).to_ne_bytes());
        if self == Layout::Large {
            to.push(entry.kind);
        }
        to.extend(entry.name.to_bytes_with_nul());
        to.resize(start + size, 0);
        if self == Layout::Old
            && let Some(last) = to.last_mut()
        {
            *last = entry.kind;
        }
    }
}

/// The first entries after a position, as many as there is room for.
struct Chosen {
    after: u32,
    room: usize,
    layout: Layout,
    /// By position. Names with the same one are given together, so that no position lies between them.
    entries: BTreeMap<u32, Vec<Entry>>,
    /// Bytes of their records.
    bytes: usize,
    /// There was no room for what comes from this position on.
    end: u32,
}

impl Chosen {
    fn new(after: u32, room: usize, layout: Layout) -> Chosen {
        Chosen { after, room, layout, entries: BTreeMap::new(), bytes: 0, end: u32::MAX }
    }

    fn add(&mut self, place: u32, entry: impl FnOnce() -> Entry) {
        if place <= self.after || place >= self.end {
            return;
        }
        let entry = entry();
        self.bytes += self.layout.size(&entry.name);
        self.entries.entry(place).or_default().push(entry);
        while self.bytes > self.room && self.entries.len() > 1 {
            let Some((place, gone)) = self.entries.pop_last() else { break };
            self.bytes -= gone.iter().map(|entry| self.layout.size(&entry.name)).sum::<usize>();
            self.end = place;
        }
    }

    /// The records, and the position after them.
    fn records(&self) -> Result<(Vec<u8>, u32), Errno> {
        if self.bytes > self.room {
            // As the kernel: not even the next one fits.
            return Err(Errno::INVAL);
        }
        let mut bytes = Vec::with_capacity(self.bytes);
        for (place, entries) in &self.entries {
            entries.iter().for_each(|entry| self.layout.put(&mut bytes, entry, *place));
        }
        let last = self.entries.last_key_value().map_or(self.after, |(place, _)| *place);
        Ok((bytes, last))
    }
}

/// linux/fs.h: the type of an entry is that of its mode.
fn kind(of: FileType) -> u8 {
    match of {
        FileType::Unknown => 0,
        known => (known.as_raw_mode() >> 12) as u8,
    }
}

/// Answers the calls of the builder until no process of it is left.
pub fn spawn(listener: OwnedFd) -> io::Result<()> {
    let order = Order::new()?;
    let listener = Arc::new(listener);
    let (to, calls) = mpsc::channel::<Call>();
    let of_answers = listener.clone();
    let thread = |name: &str| thread::Builder::new().name(name.into()).stack_size(256 * 1024);
    thread("listing").spawn(move || {
        for call in calls {
            let result = list(&order, &call, &of_answers);
            call.answer(&of_answers, result);
        }
    })?;
    // A signal can interrupt a caller until its call is received: then the caller's listing ends with EINTR, which few
    // programs expect. So calls are received at once, and wait here. There is at most one for each thread of the builder.
    thread("calls").spawn(move || {
        // As for the watch: where the guest has no right to this, the scheduler's fairness must suffice.
        let _ = sys::run_before_others();
        while seccomp::wait(listener.as_fd()).unwrap_or(false) {
            match seccomp::next(&listener) {
                Ok(Some(call)) if to.send(call).is_ok() => {}
                Ok(None) => {}
                // Without a listener the calls fail, instead of waiting for ever.
                _ => return,
            }
        }
    })?;
    Ok(())
}

/// The result of a call: bytes in the caller's buffer.
fn list(order: &Order, call: &Call, listener: &OwnedFd) -> Result<u32, Errno> {
    // A caller that has gone gets no answer, so the error does not matter.
    let waits = || if call.waits(listener) { Ok(()) } else { Err(Errno::SRCH) };
    let theirs = call.descriptor()?;
    waits()?;
    if fcntl_getfl(&theirs)?.contains(OFlags::PATH) {
        // Opened without the right to read.
        return Err(Errno::BADF);
    }
    // A description of our own: theirs keeps a position that means nothing to the file system. A builder that opened the
    // directory had the right to read it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let ours = openat(&theirs, c".", flags, Mode::empty())?;
    let before = tell(&theirs)?;
    let after = u32::try_from(before).unwrap_or(u32::MAX);
    let mut chosen = Chosen::new(after, MOST.min(call.room as usize), call.layout);
    let mut piece = vec![MaybeUninit::uninit(); PIECE];
    let mut directory = RawDir::new(&ours, &mut piece);
    loop {
        if directory.is_buffer_empty() {
            // The directory can be large, and the caller can end meanwhile.
            waits()?;
        }
        let Some(entry) = directory.next() else { break };
        let entry = entry?;
        let name = entry.file_name();
        chosen.add(order.place(name.to_bytes()), || Entry {
            inode: entry.ino(),
            kind: kind(entry.file_type()),
            name: name.to_owned(),
        });
    }
    let (records, last) = chosen.records()?;
    if records.is_empty() {
        return Ok(0);
    }
    seek(&theirs, SeekFrom::Start(last.into()))?;
    waits()?;
    if let Err(e) = call.write(&records) {
        let _ = seek(&theirs, SeekFrom::Start(before));
        return Err(e);
    }
    // At most `MOST`.
    Ok(records.len() as u32)
}

#[cfg(test)]
#[path = "listing_test.rs"]
mod listing_test;
