//! The order of frames, seen from the host. This module turns frames into events; it has no clock and no I/O.
//!
//! ```text
//! Hello  Started  Log* Exit  ( OutputBegin OutputData* OutputEnd )*  Done
//!        '-- Log may also come between Hello and Started
//! Failed in place of any frame but the first; nothing follows Done or Failed.
//! ```
//! Outputs come only after an exit with 0, each requested name at most once, and Done only after all of them.
//! Any other order means a hostile or broken guest: the first wrong frame ends the conversation. A home has an order of its
//! own ([`home`]).
//! Not here: limits of size and time (`sandbox::session`), and whether NAR bytes are a NAR (`store`).

pub mod home;

use std::collections::BTreeSet;

use crate::protocol::{
    Exit, ExitStatus, Failure, FailureKind, Frame, FrameError, Hello, Tag, VERSION, bounded,
};

/// Longest kernel release that is passed on. `uname` has room for 64.
const MAX_KERNEL: usize = 64;

/// The meaning of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Hello(Hello),
    Started,
    Log(Vec<u8>),
    Exit(Exit),
    /// The host requested an output of this name.
    OutputBegin(String),
    OutputData(Vec<u8>),
    OutputEnd,
    Done,
    /// An output name in it is one that the host requested; the text is limited in length.
    Failed(Failure),
}

/// The reason to end the conversation with a guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OrderError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Going on would give a later frame the meaning of an earlier one.
    #[error("a {got:?} frame came {when}")]
    OutOfOrder { got: Tag, when: &'static str },
    #[error(
        "the guest speaks protocol {got}, this agent {VERSION}: guest binary and agent are of different versions"
    )]
    Version { got: u32 },
    #[error("an output was sent that nobody asked for: {name:?}")]
    UnknownOutput { name: String },
    /// Storing it would let the second bytes replace the first.
    #[error("output '{name}' was sent twice")]
    DuplicateOutput { name: String },
    /// Registering only the received outputs would let other builds start from an incomplete result.
    #[error("the guest finished without output '{name}'")]
    OutputsMissing { name: String },
    /// Taking it for the answer to another request would tell a member of paths that are not there.
    #[error("the frame {got:?} answers a request {number} that does not wait for it")]
    NotAsked { got: Tag, number: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connected,
    Greeted,
    Running,
    /// The builder exited with 0: outputs follow.
    Outputs,
    InOutput,
    /// The builder failed: only Done follows.
    NoOutputs,
    Over,
}

/// The host's place in the conversation with one guest.
#[derive(Debug)]
pub struct Order {
    state: State,
    /// Outputs that have not begun.
    wanted: BTreeSet<String>,
    /// Outputs that have begun; the last may still be arriving.
    seen: BTreeSet<String>,
}

impl Order {
    pub fn new(outputs: impl IntoIterator<Item = String>) -> Order {
        Order { state: State::Connected, wanted: outputs.into_iter().collect(), seen: BTreeSet::new() }
    }

    /// The place of a host that takes over while the builder runs.
    pub fn running(outputs: impl IntoIterator<Item = String>) -> Order {
        Order { state: State::Running, ..Order::new(outputs) }
    }

    /// Whether the builder runs.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// The outputs that have not begun.
    pub fn wanted(&self) -> impl Iterator<Item = &String> {
        self.wanted.iter()
    }

    /// Checks the next frame. After an error the conversation is over and every further frame is refused.
    pub fn accept(&mut self, frame: Frame) -> Result<Event, OrderError> {
        let result = self.step(frame);
        if result.is_err() {
            self.state = State::Over;
        }
        result
    }

    fn step(&mut self, frame: Frame) -> Result<Event, OrderError> {
        let (event, next) = match (self.state, frame.tag) {
            (State::Connected, Tag::Hello) => (Event::Hello(hello(&frame)?), State::Greeted),
            (State::Greeted, Tag::Started) => (Event::Started, State::Running),
            (state @ (State::Greeted | State::Running), Tag::Log) => (Event::Log(frame.body), state),
            (State::Running, Tag::Exit) => {
                let exit: Exit = frame.parse()?;
                let clean = exit.status == ExitStatus::Exited(0);
                (Event::Exit(exit), if clean { State::Outputs } else { State::NoOutputs })
            }
            (State::Outputs, Tag::OutputBegin) => (self.begin(frame.body)?, State::InOutput),
            (State::InOutput, Tag::OutputData) => (Event::OutputData(frame.body), State::InOutput),
            (State::InOutput, Tag::OutputEnd) => (Event::OutputEnd, State::Outputs),
            (State::Outputs, Tag::Done) => match self.wanted.first() {
                Some(name) => return Err(OrderError::OutputsMissing { name: name.clone() }),
                None => (Event::Done, State::Over),
            },
            (State::NoOutputs, Tag::Done) => (Event::Done, State::Over),
            (
                State::Greeted | State::Running | State::Outputs | State::InOutput | State::NoOutputs,
                Tag::Failed,
            ) => (self.failed(&frame)?, State::Over),
            (state, got) => return Err(OrderError::OutOfOrder { got, when: when(state) }),
        };
        self.state = next;
        Ok(event)
    }

    fn begin(&mut self, name: Vec<u8>) -> Result<Event, OrderError> {
        let name = String::from_utf8(name).map_err(|e| OrderError::UnknownOutput {
            name: bounded(&String::from_utf8_lossy(e.as_bytes())),
        })?;
        if self.wanted.remove(&name) {
            self.seen.insert(name.clone());
            return Ok(Event::OutputBegin(name));
        }
        if self.seen.contains(&name) {
            return Err(OrderError::DuplicateOutput { name });
        }
        Err(OrderError::UnknownOutput { name })
    }

    fn failed(&self, frame: &Frame) -> Result<Event, OrderError> {
        let is_known = |name: &String| self.wanted.contains(name) || self.seen.contains(name);
        Ok(Event::Failed(failure(frame, is_known)?))
    }
}

/// The failure in a frame, if the output in it, if any, is known.
fn failure(frame: &Frame, is_known: impl Fn(&String) -> bool) -> Result<Failure, OrderError> {
    let mut failure: Failure = frame.parse()?;
    failure.text = bounded(&printable::line(&failure.text));
    match &failure.kind {
        FailureKind::OutputMissing { name } | FailureKind::OutputInvalid { name } if !is_known(name) => {
            Err(OrderError::UnknownOutput { name: bounded(name) })
        }
        _ => Ok(failure),
    }
}

fn hello(frame: &Frame) -> Result<Hello, OrderError> {
    let mut hello: Hello = frame.parse()?;
    if hello.version != VERSION {
        return Err(OrderError::Version { got: hello.version });
    }
    // The text is shown in logs and terminals; a kernel release needs no other characters.
    hello.kernel.retain(|c| c.is_ascii_graphic());
    hello.kernel.truncate(MAX_KERNEL);
    Ok(hello)
}

fn when(state: State) -> &'static str {
    match state {
        State::Connected => "before the guest said hello",
        State::Greeted => "before the builder was started",
        State::Running => "while the builder ran",
        State::Outputs => "between outputs",
        State::InOutput => "inside an output",
        State::NoOutputs => "after the builder failed",
        State::Over => "after the end",
    }
}

#[cfg(test)]
#[path = "order_test.rs"]
mod tests;
