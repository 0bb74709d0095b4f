//! The guest's end of the stream: sends frames, blocking, and reads what the host asks for. The host is trusted; limits
//! still apply.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest::protocol::{
    self, Attach, Bytes, DRAW, Failure, FailureKind, Frame, HEADER, Hello, Home, Job, MAX_DATA, Open, Resume,
    Tag, VERSION,
};
use serde::Serialize;

use crate::sys;

/// What the machine is for.
pub enum Task {
    Build(Box<Job>),
    Home(Box<Home>),
    /// Not known yet: it is a copy, and has to become one of its own first.
    Resume(Resume),
}

/// What the host asks of a home.
pub enum Request {
    Attach(Attach),
    Open(Open),
}

/// One connection to the agent.
pub struct Stream(File);

impl Stream {
    pub fn new(fd: OwnedFd) -> Stream {
        Stream(File::from(fd))
    }

    fn read_frame(&mut self) -> io::Result<Frame> {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header)?;
        let (tag, length) = protocol::parse_header(header)?;
        let mut body = Vec::new();
        (&self.0).take(length as u64).read_to_end(&mut body)?;
        if body.len() != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Frame { tag, body })
    }

    /// Waits for the description of what this machine is for. Files follow and are read with [`Stream::read_file`].
    pub fn read_task(&mut self) -> io::Result<Task> {
        let frame = self.read_frame()?;
        Ok(match frame.tag {
            Tag::Job => Task::Build(frame.parse()?),
            Tag::Home => Task::Home(frame.parse()?),
            Tag::Resume => Task::Resume(frame.parse()?),
            tag => return Err(unexpected(tag)),
        })
    }

    /// Waits for the next request to a home; `None` if the host has hung up. Files of an `Attach` follow.
    pub fn read_request(&mut self) -> io::Result<Option<Request>> {
        let frame = match self.read_frame() {
            Ok(frame) => frame,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(match frame.tag {
            Tag::Attach => Request::Attach(frame.parse()?),
            Tag::Open => Request::Open(frame.parse()?),
            tag => return Err(unexpected(tag)),
        }))
    }

    /// Copies the next `length` bytes of file contents into `to`.
    pub fn read_file(&mut self, mut length: u64, to: &mut dyn Write) -> io::Result<()> {
        while length > 0 {
            let frame = self.read_frame()?;
            // The host never sends a frame with bytes of two files.
            if frame.tag != Tag::FileData || frame.body.is_empty() || frame.body.len() as u64 > length {
                return Err(unexpected(frame.tag));
            }
            to.write_all(&frame.body)?;
            length -= frame.body.len() as u64;
        }
        Ok(())
    }

    /// Sends raw bytes, in as many frames as needed. If `body` is empty, sends one empty frame.
    pub fn send(&mut self, tag: Tag, body: &[u8]) -> io::Result<()> {
        if body.is_empty() {
            return self.0.write_all(&protocol::header(tag, 0));
        }
        for piece in body.chunks(MAX_DATA) {
            self.0.write_all(&protocol::header(tag, piece.len()))?;
            self.0.write_all(piece)?;
        }
        Ok(())
    }

    pub fn send_json(&mut self, tag: Tag, value: &impl Serialize) -> io::Result<()> {
        self.0.write_all(&protocol::json_frame(tag, value)?)
    }

    /// The first frame, and that of a copy when it has become a machine of its own. `init_ns`: as in [`Hello`].
    pub fn send_hello(&mut self, kernel: String, init_ns: u64) -> io::Result<()> {
        let mut draw = vec![0; DRAW];
        // So few bytes come whole (getrandom(2)).
        rustix::rand::getrandom(&mut draw[..], rustix::rand::GetRandomFlags::empty())?;
        let (ready_ns, draw) = (sys::monotonic_ns(), Bytes(draw));
        self.send_json(Tag::Hello, &Hello { version: VERSION, kernel, init_ns, ready_ns, draw })
    }

    /// The last frame: the reason why the guest cannot continue.
    pub fn send_failure(&mut self, kind: FailureKind, text: &str) -> io::Result<()> {
        self.send_json(Tag::Failed, &Failure { kind, text: protocol::bounded(text) })
    }

    /// Waits until the host hangs up, so that the last frames are not lost with the machine.
    pub fn wait_for_hangup(&mut self) {
        let mut buffer = [0; 256];
        while matches!(self.0.read(&mut buffer), Ok(n) if n > 0) {}
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn unexpected(tag: Tag) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {tag:?} frame from the host"))
}

/// Collects bytes into `OutputData` frames of a good size.
pub struct OutputWriter<'a> {
    stream: &'a mut Stream,
    buffer: Vec<u8>,
    /// The stream failed. The archive writer's error then has this cause, and the output is not to blame.
    pub broken: bool,
}

impl<'a> OutputWriter<'a> {
    pub fn new(stream: &'a mut Stream) -> OutputWriter<'a> {
        OutputWriter { stream, buffer: Vec::with_capacity(MAX_DATA), broken: false }
    }
}

impl Write for OutputWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == MAX_DATA {
            self.flush()?;
        }
        let n = bytes.len().min(MAX_DATA - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let sent = self.stream.send(Tag::OutputData, &self.buffer);
            self.broken |= sent.is_err();
            sent?;
            self.buffer.clear();
        }
        Ok(())
    }
}
