//! Shows progress: one line that is updated on a terminal, a line from time to time in a log.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Interval between lines in a log. More lines would hide other messages.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Written to stderr, since a program may read stdout.
pub struct Progress<'a> {
    what: &'a str,
    total: u64,
    write: fn(u64, u64) -> String,
    terminal: bool,
    last: Option<(Instant, u64)>,
    started: Instant,
}

impl<'a> Progress<'a> {
    pub fn bytes(what: &'a str, total: u64) -> Self {
        Self::new(what, total, |done, total| {
            format!("{:.1} of {:.1} MB", done as f64 / 1e6, total as f64 / 1e6)
        })
    }

    /// Progress of countable things.
    pub fn count(what: &'a str, total: u64) -> Self {
        Self::new(what, total, |done, total| format!("{done} of {total}"))
    }

    fn new(what: &'a str, total: u64, write: fn(u64, u64) -> String) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { what, total, write, terminal, last: None, started: Instant::now() }
    }

    pub fn at(&mut self, done: u64) {
        let (at, shown) = self.last.unwrap_or((self.started, 0));
        if self.terminal {
            if shown != done || self.last.is_none() {
                self.show("\r", "\x1b[K", done);
            }
        } else if at.elapsed() >= BETWEEN_LINES {
            self.show("", "\n", done);
        }
    }

    pub fn end(&mut self, done: u64) {
        if self.terminal {
            self.show("\r", "\x1b[K\n", done);
        } else {
            self.show("", "\n", done);
        }
    }

    fn show(&mut self, before: &str, after: &str, done: u64) {
        let text = (self.write)(done.min(self.total), self.total);
        let mut stderr = std::io::stderr().lock();
        // A closed stderr is no reason to stop.
        drop(write!(stderr, "{before}{}: {text}{after}", self.what).and_then(|()| stderr.flush()));
        self.last = Some((Instant::now(), done));
    }
}
