//! Frames to and from the guest of a home, with the deadline for the guest's next step.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::order::home::{Event, Order};
use guest::protocol::{Decoder, MAX_DATA, Tag};
use rustix::event::PollFlags;

use crate::backend::FarEnd;
use crate::error::SandboxError;
use crate::session::conversation::hostile;
use crate::session::outgoing::Outgoing;
use crate::session::stream::{died, unavailable, wait};

pub(super) struct Talk {
    stream: UnixStream,
    decoder: Decoder,
    order: Order,
    /// Those of one read that nobody has taken yet.
    events: VecDeque<Event>,
    outgoing: Option<Outgoing<'static>>,
    /// The deadline for the guest's next step, and the message if it is missed.
    step: Option<(Instant, &'static str)>,
    buffer: Vec<u8>,
    bytes_in: u64,
    bytes_out: u64,
}

impl Talk {
    pub fn new(stream: UnixStream) -> Result<Talk, SandboxError> {
        stream
            .set_nonblocking(true)
            .map_err(|e| unavailable("cannot make the guest's stream non-blocking", e))?;
        Ok(Talk {
            stream,
            decoder: Decoder::new(),
            order: Order::new(),
            events: VecDeque::new(),
            outgoing: None,
            step: None,
            // Its largest frame here is a small note.
            buffer: vec![0; MAX_DATA / 16],
            bytes_in: 0,
            bytes_out: 0,
        })
    }

    /// Bytes to the guest, and from it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_in, self.bytes_out)
    }

    /// Sends this, as the guest reads it.
    pub fn send(&mut self, outgoing: Outgoing<'static>) {
        self.outgoing = Some(outgoing);
    }

    /// Sends a request, the answer to which has this tag and number.
    pub fn ask(&mut self, answer: Tag, number: u64, request: Outgoing<'static>) {
        self.order.expect(answer, number);
        self.send(request);
    }

    pub fn is_sending(&mut self) -> bool {
        self.outgoing.as_mut().is_some_and(Outgoing::has_more)
    }

    /// From now on the guest has so much time for its next step.
    pub fn expect(&mut self, within: Duration, or: &'static str) {
        self.step = Some((Instant::now() + within, or));
    }

    /// Likewise, unless that is what the guest is expected to do already.
    pub fn expect_once(&mut self, within: Duration, or: &'static str) {
        if self.step.is_none_or(|(_, current)| current != or) {
            self.expect(within, or);
        }
    }

    /// The guest may be silent.
    pub fn expect_nothing(&mut self) {
        self.step = None;
    }

    /// Waits until the guest has said something, or one of the wakers was raised, or the network has events, and sends what
    /// can be sent. `None`: nothing was said.
    pub fn turn(
        &mut self,
        wakers: &[&OwnedFd],
        far_end: &mut dyn FarEnd,
    ) -> Result<Option<Event>, SandboxError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        let timeout = match self.step {
            Some((at, what)) => match at.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => Some(left),
                _ => return Err(died(what, far_end)),
            },
            None => None,
        };
        let writing = self.is_sending();
        let ready = wait(&self.stream, wakers, far_end.network_stream(), writing, timeout)?;
        if writing && ready.contains(PollFlags::OUT) {
            self.write();
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read(far_end)?;
        }
        Ok(self.events.pop_front())
    }

    fn write(&mut self) {
        let Some(outgoing) = &mut self.outgoing else { return };
        match outgoing.write_some(&mut self.stream) {
            Ok((bytes, more)) => {
                self.bytes_in += bytes as u64;
                if !more {
                    self.outgoing = None;
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The guest stopped reading. Its last frames may still say why, so the stream is read on.
            Err(_) => self.outgoing = None,
        }
    }

    fn read(&mut self, far_end: &mut dyn FarEnd) -> Result<(), SandboxError> {
        let n = match self.stream.read(&mut self.buffer) {
            Ok(0) if self.decoder.is_between_frames() => return Err(died("it hung up", far_end)),
            Ok(0) => return Err(died("it hung up inside a frame", far_end)),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(e) => return Err(died(&e.to_string(), far_end)),
        };
        self.bytes_out += n as u64;
        let mut input = &self.buffer[..n];
        while let Some(frame) = self.decoder.next(&mut input).map_err(hostile)? {
            self.events.push_back(self.order.accept(&frame).map_err(hostile)?);
        }
        Ok(())
    }
}
