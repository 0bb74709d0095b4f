//! The agent's end of a home's growing disk: images are put on it while the machine runs.
//!
//! The disk is read-only for the guest, and has bytes as far as images were added. The VMM on the other side is trusted as
//! little as its guest: it has a deadline, its answer is bounded, and where an image lies is counted here.
//! Not here: how the VMM maps an image (`kvm::additions`), and what the guest does with it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backend::Image;
use crate::error::SandboxError;
use crate::kvm::additions::{ANSWER_MAX, Addition, Answer};
use crate::kvm::handover::{self, BATCH};
use crate::kvm::jail::cgroup::Limit;
use crate::kvm::memory::growing::{CAPACITY, START};
use crate::kvm::memory::{PAGE, SEGMENTS_MAX, page_tables};

/// For one image. It takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest reason of a VMM that is repeated, in characters.
const REASON_MAX: usize = 1000;

pub struct Disk {
    /// Non-blocking.
    vmm: UnixStream,
    /// Where the next image begins.
    len: u64,
    /// Mappings of the VMM: those of the disk and of the closure.
    segments: usize,
    /// The memory limit of the VM, if it has one.
    limit: Option<Limit>,
    patience: Duration,
    /// A message was cut short, so nothing that follows could be understood.
    is_lost: bool,
}

impl Disk {
    /// `segments`: parts of the closure, which the VMM has mapped already.
    pub(crate) fn new(vmm: UnixStream, segments: usize, limit: Option<Limit>) -> io::Result<Disk> {
        vmm.set_nonblocking(true)?;
        Ok(Disk { vmm, len: START, segments, limit, patience: PATIENCE, is_lost: false })
    }

    /// Puts an image behind those that are there. Returns the offset of its first byte on the disk when the guest can read
    /// it.
    ///
    /// After an error the disk is as it was, but for one thing: if the VMM did not answer, it takes no more images.
    pub fn add(&mut self, image: &Image) -> Result<u64, SandboxError> {
        let at = self.len;
        let (end, segments) = self.room_for(image)?;
        if self.is_lost {
            return Err(cannot(
                "an earlier image was not answered, so the disk takes no more; open a new home",
            ));
        }
        if let Some(limit) = &self.limit {
            // A guest that reads everything makes the VMM's page tables grow, and must not be killed for that.
            limit.allow(page_tables(end)).map_err(|e| cannot(format!("its memory limit: {e}")))?;
        }
        match self.exchange(image) {
            Ok(Answer::Mapped) => {
                (self.len, self.segments) = (end, segments);
                Ok(at)
            }
            Ok(Answer::Refused { why }) => {
                Err(cannot(format!("the VMM says: {}", printable::start(&why, REASON_MAX))))
            }
            Err(error) => {
                self.is_lost = true;
                let why = match error.kind() {
                    ErrorKind::TimedOut => {
                        format!("the VMM did not map it within {} s", self.patience.as_secs())
                    }
                    ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                        "the VMM has hung up; the machine may have ended".to_owned()
                    }
                    _ => format!("the VMM: {error}"),
                };
                Err(cannot(why))
            }
        }
    }

    /// Where the disk would end with this image, and how many mappings there would be.
    fn room_for(&self, image: &Image) -> Result<(u64, usize), SandboxError> {
        let count = image.segments.len();
        let segments = self.segments.saturating_add(count);
        if segments > SEGMENTS_MAX {
            return Err(cannot(format!(
                "it has {count} parts, the home is shown {} already, and {SEGMENTS_MAX} is the most: a process may have \
                 65,530 mappings (`vm.max_map_count`); open a new home",
                self.segments
            )));
        }
        let mut end = self.len;
        for segment in &image.segments {
            if segment.len == 0 || segment.len % PAGE != 0 || segment.offset % PAGE != 0 {
                let (offset, len) = (segment.offset, segment.len);
                return Err(cannot(format!(
                    "a part (offset {offset}, length {len}) is no run of whole pages"
                )));
            }
            end = end.saturating_add(segment.len);
        }
        if end > CAPACITY {
            let len = end - self.len;
            return Err(cannot(format!(
                "it has {len} bytes, and of the disk's {CAPACITY} bytes {} are in use; open a new home",
                self.len
            )));
        }
        if count == 0 {
            return Err(cannot("it is empty"));
        }
        Ok((end, segments))
    }

    fn exchange(&self, image: &Image) -> io::Result<Answer> {
        let vmm = Until { socket: &self.vmm, deadline: Instant::now() + self.patience };
        let segments = image.segments.iter().map(|segment| (segment.offset, segment.len)).collect();
        handover::send_json(vmm, &Addition { segments })?;
        let files: Vec<_> = image.segments.iter().map(|segment| segment.file.as_fd()).collect();
        for batch in files.chunks(BATCH) {
            vmm.send_batch(batch)?;
        }
        handover::receive_json_within(vmm, ANSWER_MAX)
    }
}

fn cannot(why: impl std::fmt::Display) -> SandboxError {
    SandboxError::Setup { why: format!("an image cannot be put on the disk of the home: {why}") }
}

/// The socket, for as long as there is time.
#[derive(Clone, Copy)]
struct Until<'a> {
    socket: &'a UnixStream,
    deadline: Instant,
}

impl Until<'_> {
    fn wait(&self, events: PollFlags) -> io::Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.socket, events)];
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return Err(ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Repeats what would block until it does not. Waits first: a call that always makes a little progress must not last
    /// longer than the deadline either.
    fn when<T>(&self, events: PollFlags, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            self.wait(events)?;
            match attempt() {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    fn send_batch(&self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.when(PollFlags::OUT, || handover::send_batch(self.socket, files))
    }
}

impl Read for Until<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.when(PollFlags::IN, || (&mut &*self.socket).read(out))
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when(PollFlags::OUT, || (&mut &*self.socket).write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
