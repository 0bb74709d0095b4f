//! The agent's end of what is plugged into a home while it runs: images on its growing disk, and streams at ports of its vsock.
//!
//! The disk is read-only for the guest, and has bytes as far as images were added. The VMM on the other side is trusted as
//! little as its guest: it has a deadline, its answer is bounded, and where an image lies is counted here.
//! Not here: how the VMM maps an image and connects a stream (`kvm::additions`), and what the guest does with them.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::protocol::SSH_PORTS;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backend::Image;
use crate::error::SandboxError;
use crate::kvm::additions::{ANSWER_MAX, Addition, Answer};
use crate::kvm::handover::{self, BATCH};
use crate::kvm::jail::cgroup::Limit;
use crate::kvm::memory::growing::{CAPACITY, START};
use crate::kvm::memory::{PAGE, SEGMENTS_MAX, page_tables};

/// For one image or stream. It takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest reason of a VMM that is repeated, in characters.
const REASON_MAX: usize = 1000;

pub struct Plugs {
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

impl Plugs {
    /// `segments`: parts of the closure, which the VMM has mapped already.
    pub(crate) fn new(vmm: UnixStream, segments: usize, limit: Option<Limit>) -> io::Result<Plugs> {
        vmm.set_nonblocking(true)?;
        Ok(Plugs { vmm, len: START, segments, limit, patience: PATIENCE, is_lost: false })
    }

    /// Puts an image behind those that are there. Returns the offset of its first byte on the disk when the guest can read
    /// it.
    ///
    /// After an error all is as it was, but for one thing: if the VMM did not answer, it is asked for nothing more.
    pub fn add_image(&mut self, image: &Image) -> Result<u64, SandboxError> {
        let at = self.len;
        let (end, segments) = self.room_for(image)?;
        if let Some(limit) = self.limit.as_ref().filter(|_| !self.is_lost) {
            // A guest that reads everything makes the VMM's page tables grow, and must not be killed for that.
            limit.allow(page_tables(end)).map_err(|e| no_image(format!("its memory limit: {e}")))?;
        }
        let parts = image.segments.iter().map(|segment| (segment.offset, segment.len)).collect();
        let files: Vec<_> = image.segments.iter().map(|segment| segment.file.as_fd()).collect();
        self.ask(&Addition::Image { segments: parts }, &files).map_err(no_image)?;
        (self.len, self.segments) = (end, segments);
        Ok(at)
    }

    /// Makes a stream for one connection of the guest to this port, one of [`SSH_PORTS`]. Returns our end when the guest can
    /// connect. An error if the port has a stream whose end the VMM has not seen; otherwise as [`Plugs::add_image`].
    ///
    /// When the connection is over, or our end is closed, the port can get another stream.
    pub fn open_port(&mut self, port: u32) -> Result<UnixStream, SandboxError> {
        let no_stream = |why: &dyn std::fmt::Display| SandboxError::Setup {
            why: format!("port {port} of the home cannot get a stream: {why}"),
        };
        if !SSH_PORTS.contains(&port) {
            let (first, last) = SSH_PORTS.into_inner();
            return Err(no_stream(&format!("it is not one of {first} to {last}")));
        }
        let (ours, theirs) = UnixStream::pair().map_err(|e| no_stream(&e))?;
        // For the VMM, which may not do that itself.
        theirs.set_nonblocking(true).map_err(|e| no_stream(&e))?;
        self.ask(&Addition::Stream { port }, &[theirs.as_fd()]).map_err(|why| no_stream(&why))?;
        Ok(ours)
    }

    /// Sends an addition with its descriptors, and waits until the VMM has done it. The error says why it has not.
    fn ask(&mut self, addition: &Addition, descriptors: &[BorrowedFd<'_>]) -> Result<(), String> {
        if self.is_lost {
            return Err("the VMM did not answer before, so nothing more is added; open a new home".to_owned());
        }
        match self.exchange(addition, descriptors) {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Refused { why }) => {
                Err(format!("the VMM says: {}", printable::start(&why, REASON_MAX)))
            }
            Err(error) => {
                self.is_lost = true;
                Err(match error.kind() {
                    ErrorKind::TimedOut => {
                        format!("the VMM did not answer within {} s", self.patience.as_secs())
                    }
                    ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                        "the VMM has hung up; the machine may have ended".to_owned()
                    }
                    _ => format!("the VMM: {error}"),
                })
            }
        }
    }

    fn exchange(&self, addition: &Addition, descriptors: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        let vmm = Until { socket: &self.vmm, deadline: Instant::now() + self.patience };
        handover::send_json(vmm, addition)?;
        for batch in descriptors.chunks(BATCH) {
            vmm.send_batch(batch)?;
        }
        handover::receive_json_within(vmm, ANSWER_MAX)
    }

    /// Where the disk would end with this image, and how many mappings there would be.
    fn room_for(&self, image: &Image) -> Result<(u64, usize), SandboxError> {
        let count = image.segments.len();
        let segments = self.segments.saturating_add(count);
        if segments > SEGMENTS_MAX {
            return Err(no_image(format!(
                "it has {count} parts, the home is shown {} already, and {SEGMENTS_MAX} is the most: a process may have \
                 65,530 mappings (`vm.max_map_count`); open a new home",
                self.segments
            )));
        }
        let mut end = self.len;
        for segment in &image.segments {
            if segment.len == 0 || segment.len % PAGE != 0 || segment.offset % PAGE != 0 {
                let (offset, len) = (segment.offset, segment.len);
                return Err(no_image(format!(
                    "a part (offset {offset}, length {len}) is no run of whole pages"
                )));
            }
            end = end.saturating_add(segment.len);
        }
        if end > CAPACITY {
            let len = end - self.len;
            return Err(no_image(format!(
                "it has {len} bytes, and of the disk's {CAPACITY} bytes {} are in use; open a new home",
                self.len
            )));
        }
        if count == 0 {
            return Err(no_image("it is empty"));
        }
        Ok((end, segments))
    }
}

fn no_image(why: impl std::fmt::Display) -> SandboxError {
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

    fn send_batch(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.when(PollFlags::OUT, || handover::send_batch(self.socket, descriptors))
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
#[path = "plugs_test.rs"]
mod tests;
