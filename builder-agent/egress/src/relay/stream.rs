//! The stream of the user-mode network: a length, a frame, and so on.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::{PREFIX, Received, receive};
use crate::frames::MAX_FRAME;
use crate::guard::{Guard, Verdict};
use crate::reason::Dropped;

/// Longest frame of the user-mode network: an IP packet and its header. A longer one means that we do not know any
/// more where frames begin.
const MAX_STREAM_FRAME: usize = 65_535 + 14;
/// Bytes of the stream that are read at once: some dozens of frames.
const READ: usize = 64 << 10;
/// The stream of the user-mode network.
pub struct Stream {
    pub fd: OwnedFd,
    buffer: Box<[u8; READ]>,
    /// The part of `buffer` that was read, but not used.
    start: usize,
    end: usize,
    /// Bytes of a frame that is longer than any that passes, which are still to come.
    skip: usize,
    /// Length of the frame at `start` that passes, but for which the guest has no room yet.
    passing: Option<usize>,
    /// The rest of a frame that was sent in part.
    rest: Vec<u8>,
}

impl Stream {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, buffer: Box::new([0; READ]), start: 0, end: 0, skip: 0, passing: None, rest: Vec::new() }
    }

    /// Sends a frame, whole: passt loses its place in the stream if it reads half of a prefix. Returns false if there is
    /// no room.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        let prefix = u32::try_from(frame.len()).map_err(io::Error::other)?.to_be_bytes();
        self.send_with_prefix(&[&prefix[..], frame].concat())
    }

    pub fn send_with_prefix(&mut self, bytes: &[u8]) -> io::Result<bool> {
        while !self.rest.is_empty() {
            match self.send_some(&self.rest)? {
                Some(sent) => drop(self.rest.drain(..sent)),
                None => return Ok(false),
            }
        }
        match self.send_some(bytes)? {
            None => Ok(false),
            // The kernel takes so few bytes as a whole. If ever it does not, the rest is kept.
            Some(sent) => {
                self.rest.extend(&bytes[sent..]);
                Ok(true)
            }
        }
    }

    fn send_some(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        loop {
            match send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => return Ok(Some(sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The frame that passes and has not been sent.
    pub fn passing(&self) -> Option<&[u8]> {
        let start = self.start + PREFIX;
        self.passing.map(|length| &self.buffer[start..start + length])
    }

    /// What becomes of the frame at `start`.
    pub fn decided(&mut self, verdict: Verdict) {
        let Some(length) = self.length() else { return };
        match verdict {
            Verdict::Pass => self.passing = Some(length),
            Verdict::Drop => {
                self.passing = None;
                self.start += PREFIX + length;
            }
        }
    }

    /// The length of the frame at `start`, if its prefix is there.
    fn length(&self) -> Option<usize> {
        let prefix = self.buffer[self.start..self.end].first_chunk::<PREFIX>()?;
        usize::try_from(u32::from_be_bytes(*prefix)).ok()
    }

    /// Whether there is a frame, or one to skip, without reading more.
    pub fn has_frames(&self) -> bool {
        self.length().is_some_and(|length| self.end - self.start - PREFIX >= length.min(MAX_FRAME + 1))
    }

    /// The next frame, read if necessary. Frames that are too long are counted and skipped.
    pub fn frame(&mut self, guard: &mut Guard) -> io::Result<Option<&[u8]>> {
        loop {
            let skipped = self.skip.min(self.end - self.start);
            self.start += skipped;
            self.skip -= skipped;
            if let Some(length) = self.length() {
                if length > MAX_STREAM_FRAME {
                    let why = format!("the stream of the user-mode network has a frame of {length} bytes");
                    return Err(io::Error::new(ErrorKind::InvalidData, why));
                }
                if length > MAX_FRAME {
                    guard.drop_one(Dropped::Oversized);
                    self.start += PREFIX;
                    self.skip = length;
                    continue;
                }
                let start = self.start + PREFIX;
                if self.end - start >= length {
                    return Ok(Some(&self.buffer[start..start + length]));
                }
            }
            // A frame and its prefix always fit: what is left moves to the front.
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            match receive(self.fd.as_fd(), &mut self.buffer[self.end..]) {
                Received::Bytes(read) => self.end += read,
                Received::Nothing => return Ok(None),
                Received::Ended => {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the user-mode network ended"));
                }
            }
        }
    }
}
