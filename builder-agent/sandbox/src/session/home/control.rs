//! Requests to a home that runs, from any thread.
//!
//! One request is under way at a time, and the others wait in the order in which they came. What is plugged into the machine
//! for a request is done by the thread that asks; the rest is done by the keeper.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use guest::protocol::{self, Attach, Open, Range, SSH_PORTS, StoreFile, Tag};
use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;

use crate::backend::Image;
use crate::error::SandboxError;
use crate::plugs::Plugs;

/// Ports that are tried for one connection. A port whose last connection the machine has not let go of is refused by it.
const PORTS_TRIED: usize = 3;

/// What can be added to the machine while it runs.
pub trait Attachments: Send {
    /// Puts an image on the growing disk; returns the offset of its first byte.
    fn add(&mut self, image: &Image) -> Result<u64, SandboxError>;

    /// Makes a stream that the guest finds at this port, if no other has the port. Returns our end.
    fn open(&mut self, port: u32) -> Result<UnixStream, SandboxError>;
}

impl Attachments for Plugs {
    fn add(&mut self, image: &Image) -> Result<u64, SandboxError> {
        self.add_image(image)
    }

    fn open(&mut self, port: u32) -> Result<UnixStream, SandboxError> {
        self.open_port(port)
    }
}

/// Makes requests to a home. Clones are for the same home.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

/// The answer to a request that was not granted.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the home has ended")]
    Ended,
    #[error("the home has {} connections, which is the most; close one", SSH_PORTS.count())]
    TooManyConnections,
    /// The guest's own words, which are hostile and bounded.
    #[error("the home says: {why}")]
    Refused { why: String },
    /// The request does not fit into a frame.
    #[error("the request is too large: {why}")]
    TooLarge { why: String },
    #[error(transparent)]
    Machine(#[from] SandboxError),
}

/// A store path that is a regular file, and not worth an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallFile {
    /// Base name of the store path.
    pub name: String,
    pub contents: Vec<u8>,
    pub executable: bool,
}

/// A stream whose other end is an sshd of the home.
pub struct Connection {
    pub stream: UnixStream,
    /// To be kept for as long as the stream is used.
    pub port: Port,
}

/// The place of one connection. Dropping it ends the connection, also if somebody still has the stream, and lets the place
/// be used again.
pub struct Port {
    number: u32,
    /// The same socket as the stream of the connection.
    stream: Option<UnixStream>,
    home: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Another request is under way, or the home is over.
    changed: Condvar,
    /// Raised for the keeper.
    waker: OwnedFd,
    /// Used by the request that is under way alone.
    attachments: Mutex<Box<dyn Attachments>>,
    next_number: AtomicU64,
}

struct State {
    is_over: bool,
    /// Places in the line: the next to be given out, and that of the request that is under way.
    next_place: u64,
    place: u64,
    /// The request that the keeper has not taken yet.
    request: Option<Request>,
    /// Ports that no connection has; the one that was given back first is the first.
    free_ports: VecDeque<u32>,
}

/// A request for the guest.
pub struct Request {
    /// The tag of its answer.
    pub answer: Tag,
    pub number: u64,
    pub frame: Vec<u8>,
    pub files: Vec<Vec<u8>>,
    /// Takes the guest's answer. Dropped without one, if the home is over.
    pub reply: SyncSender<Result<(), String>>,
}

/// The keeper's end.
pub struct Requests(Arc<Inner>);

/// The right to make a request.
struct Turn<'a>(&'a Inner);

/// The two ends for one home.
pub fn pair(attachments: Box<dyn Attachments>) -> io::Result<(Control, Requests)> {
    let inner = Arc::new(Inner {
        state: Mutex::new(State {
            is_over: false,
            next_place: 0,
            place: 0,
            request: None,
            free_ports: SSH_PORTS.collect(),
        }),
        changed: Condvar::new(),
        waker: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        attachments: Mutex::new(attachments),
        next_number: AtomicU64::new(0),
    });
    Ok((Control(Arc::clone(&inner)), Requests(inner)))
}

impl Control {
    /// Shows store paths in the home: `paths` of an image, by their base names, and small files. Those that are shown already
    /// stay as they are. Blocks until all are there; on an error none of the others is.
    pub fn attach(
        &self,
        image: Option<&Image>,
        paths: &[String],
        files: &[SmallFile],
    ) -> Result<(), RequestError> {
        if paths.is_empty() && files.is_empty() {
            return Ok(());
        }
        self.show(image, (paths, files), false)
    }

    /// Shows an image as a whole, under this name in the root directory of the home. As [`Control::attach`].
    pub fn show_in_root(&self, image: &Image, name: &str) -> Result<(), RequestError> {
        self.show(Some(image), (&[name.to_owned()], &[]), true)
    }

    fn show(
        &self,
        image: Option<&Image>,
        (paths, files): (&[String], &[SmallFile]),
        in_root: bool,
    ) -> Result<(), RequestError> {
        let turn = self.0.enter()?;
        let image = match image {
            Some(image) => {
                let len = image.segments.iter().map(|segment| segment.len).sum();
                Some(Range { offset: self.0.attachments().add(image)?, len })
            }
            None => None,
        };
        let described = files.iter().map(|SmallFile { name, contents, executable }| StoreFile {
            name: name.clone(),
            size: contents.len() as u64,
            executable: *executable,
        });
        let number = self.0.number();
        let request = Attach { number, image, paths: paths.to_vec(), files: described.collect(), in_root };
        let contents = files.iter().map(|file| file.contents.clone()).collect();
        turn.ask((Tag::Attach, Tag::Attached), number, &request, contents)
    }

    /// Connects to an sshd that is started for this. Blocks until it has been.
    pub fn connect(&self) -> Result<Connection, RequestError> {
        let turn = self.0.enter()?;
        let connection = self.plug()?;
        let number = self.0.number();
        let request = Open { number, port: connection.port.number };
        turn.ask((Tag::Open, Tag::Opened), number, &request, Vec::new())?;
        Ok(connection)
    }

    /// Makes a stream at a port that is free. The machine has the last word about which is: it may not have noticed yet that
    /// a connection is over.
    fn plug(&self) -> Result<Connection, RequestError> {
        let mut refused = RequestError::TooManyConnections;
        for _ in 0..PORTS_TRIED {
            let Some(number) = self.0.state().free_ports.pop_front() else { break };
            // Given back when it is dropped, whatever happens.
            let mut port = Port { number, stream: None, home: Arc::clone(&self.0) };
            match self.0.attachments().open(number) {
                Ok(stream) => {
                    let copy = stream.try_clone().map_err(|e| cannot("copy a descriptor", e))?;
                    port.stream = Some(copy);
                    return Ok(Connection { stream, port });
                }
                Err(error) => refused = error.into(),
            }
        }
        Err(refused)
    }
}

fn cannot(what: &str, error: io::Error) -> SandboxError {
    SandboxError::Unavailable { why: format!("cannot {what}: {error}") }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Never left half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attachments(&self) -> MutexGuard<'_, Box<dyn Attachments>> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until all requests that came before are over.
    fn enter(&self) -> Result<Turn<'_>, RequestError> {
        let mut state = self.state();
        let place = state.next_place;
        state.next_place += 1;
        let waits = |state: &mut State| state.place != place && !state.is_over;
        let state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        match state.is_over {
            // Nobody looks at the line any more.
            true => Err(RequestError::Ended),
            false => Ok(Turn(self)),
        }
    }
}

impl Turn<'_> {
    /// Has the keeper send a request with these files, and waits for its answer.
    fn ask(
        &self,
        (tag, answer): (Tag, Tag),
        number: u64,
        request: &impl Serialize,
        files: Vec<Vec<u8>>,
    ) -> Result<(), RequestError> {
        let frame =
            protocol::json_frame(tag, request).map_err(|e| RequestError::TooLarge { why: e.to_string() })?;
        let (reply, answered) = sync_channel(1);
        {
            let mut state = self.0.state();
            if state.is_over {
                return Err(RequestError::Ended);
            }
            state.request = Some(Request { answer, number, frame, files, reply });
        }
        // Adding one to a small counter cannot block or overflow, so no error can happen.
        let _ = rustix::io::write(&self.0.waker, &1u64.to_ne_bytes());
        match answered.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(RequestError::Refused { why }),
            Err(_) => Err(RequestError::Ended),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().place += 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            // Fails if the other side has gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.home.state().free_ports.push_back(self.number);
    }
}

impl Requests {
    /// Polls readable when there may be a request.
    pub fn waker(&self) -> &OwnedFd {
        &self.0.waker
    }

    pub fn take(&self) -> Option<Request> {
        self.0.state().request.take()
    }

    /// The home is over: requests fail from now on.
    pub fn end(&self) {
        let mut state = self.0.state();
        state.is_over = true;
        state.request = None;
        self.0.changed.notify_all();
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.end();
    }
}
