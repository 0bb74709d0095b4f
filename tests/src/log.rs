//! The agent's log: one JSON object per line, collected while the agent runs.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::PATIENCE;

/// Time without a line after which the log is taken to be complete.
const MOMENT: Duration = Duration::from_millis(25);
/// An agent that is being attacked may never stop to write lines.
const MOST_MOMENTS: usize = 10;

#[derive(Clone, Default)]
pub struct Log {
    shared: Arc<(Mutex<Vec<Value>>, Condvar)>,
}

impl Log {
    /// Adds all lines of `stream`, in a thread that ends with it. Lines that are not JSON are kept as `text`.
    pub fn follow(&self, stream: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "text": line }));
                log.shared.0.lock().expect("log").push(event);
                log.shared.1.notify_all();
            }
        });
    }

    /// All events so far. The agent writes its log on a thread of its own, so a line can come after the client has the
    /// answer that the line is about. Therefore this waits until no line comes for a moment.
    pub fn events(&self) -> Vec<Value> {
        let mut before = usize::MAX;
        for _ in 0..MOST_MOMENTS {
            let now = self.shared.0.lock().expect("log").len();
            if now == before {
                break;
            }
            before = now;
            std::thread::sleep(MOMENT);
        }
        self.shared.0.lock().expect("log").clone()
    }

    pub fn text(&self) -> String {
        self.events().iter().map(|event| format!("{event}\n")).collect()
    }

    /// Waits until `find` returns a value for the events so far; `None` if it does not in time.
    pub fn wait<T>(&self, mut find: impl FnMut(&[Value]) -> Option<T>) -> Option<T> {
        let (events, changed) = &*self.shared;
        let mut found = None;
        let _unlocked = changed
            .wait_timeout_while(events.lock().expect("log"), PATIENCE, |events| {
                found = find(events);
                found.is_none()
            })
            .expect("log");
        found
    }
}
