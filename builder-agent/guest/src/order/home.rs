//! The order of frames of a home, seen from the host.
//!
//! ```text
//! Hello  Started  ( Attached | Opened )*
//! Failed in place of any frame but the first; nothing follows it.
//! ```
//! Each answer is that to the oldest request without one. So a guest has no frame that it could send without end.

use std::collections::VecDeque;

use super::{OrderError, failure, hello};
use crate::protocol::{Answer, Failure, Frame, Hello, Tag, bounded};

/// The meaning of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Hello(Hello),
    Started,
    /// The answer to the oldest request; the text is limited in length.
    Answered(Result<(), String>),
    /// The text is limited in length.
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connected,
    Greeted,
    Running,
    Over,
}

/// The host's place in the conversation with the guest of a home.
#[derive(Debug)]
pub struct Order {
    state: State,
    /// Tags and numbers of the answers to come, the oldest first.
    waiting: VecDeque<(Tag, u64)>,
}

impl Default for Order {
    fn default() -> Order {
        Order::new()
    }
}

impl Order {
    #[must_use]
    pub fn new() -> Order {
        Order { state: State::Connected, waiting: VecDeque::new() }
    }

    /// A request with this number was sent, whose answer has this tag.
    pub fn expect(&mut self, answer: Tag, number: u64) {
        self.waiting.push_back((answer, number));
    }

    /// Checks the next frame. After an error the conversation is over and every further frame is refused.
    pub fn accept(&mut self, frame: &Frame) -> Result<Event, OrderError> {
        let result = self.step(frame);
        if result.is_err() {
            self.state = State::Over;
        }
        result
    }

    fn step(&mut self, frame: &Frame) -> Result<Event, OrderError> {
        let (event, next) = match (self.state, frame.tag) {
            (State::Connected, Tag::Hello) => (Event::Hello(hello(frame)?), State::Greeted),
            (State::Greeted, Tag::Started) => (Event::Started, State::Running),
            (State::Running, Tag::Attached | Tag::Opened) => (self.answer(frame)?, State::Running),
            (State::Greeted | State::Running, Tag::Failed) => {
                (Event::Failed(failure(frame, |_| false)?), State::Over)
            }
            (state, got) => return Err(OrderError::OutOfOrder { got, when: when(state) }),
        };
        self.state = next;
        Ok(event)
    }

    fn answer(&mut self, frame: &Frame) -> Result<Event, OrderError> {
        let (got, Answer { number, error }) = (frame.tag, frame.parse()?);
        if self.waiting.front() != Some(&(got, number)) {
            return Err(OrderError::NotAsked { got, number });
        }
        self.waiting.pop_front();
        Ok(Event::Answered(error.map_or(Ok(()), |text| Err(bounded(&printable::line(&text))))))
    }
}

fn when(state: State) -> &'static str {
    match state {
        State::Connected => "before the guest said hello",
        State::Greeted => "before the home was ready",
        State::Running => "while the home ran",
        State::Over => "after the end",
    }
}

#[cfg(test)]
#[path = "home_test.rs"]
mod tests;
