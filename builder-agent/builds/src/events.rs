//! Events: what happens while a request is served, in this project's own terms.
//!
//! A request has one channel for them. The side that knows the client (`daemon`) renders each event: as activities of the
//! worker protocol, or as lines for a person. So an event says what happened and to which derivation; except for messages
//! of failures, which are also answers, the words are the renderers'.
//! Not here: the log of the agent itself (`tracing`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix_derivation::StorePath;
use tokio::sync::mpsc;

use super::log::Notice;

/// Names a build among those that one request shows. The same run can be shown twice, if two derivations of a request
/// resolve to the same one; so this is not the number by which the box's log names a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BuildNumber(pub u64);

/// Why the log of a build is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildKind {
    /// It makes outputs.
    Building,
    /// It builds again what is valid, to compare.
    Checking,
    /// It failed earlier and is not run again.
    EarlierFailure,
}

/// How far the builds of a request are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildCounts {
    pub done: u64,
    pub expected: u64,
    pub running: u64,
    pub failed: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The request has derivations to build, and counts of them follow.
    BuildsStarted,
    BuildsProgress(BuildCounts),
    BuildsEnded,
    /// A build is shown from here to its [`Event::Stopped`].
    Started {
        number: BuildNumber,
        drv: StorePath,
        kind: BuildKind,
    },
    /// One line of its log, or a piece of one, as the builder wrote it.
    Line {
        number: BuildNumber,
        text: Vec<u8>,
    },
    /// Its builder says that it entered a phase.
    Phase {
        number: BuildNumber,
        name: String,
    },
    Stopped {
        number: BuildNumber,
    },
    /// An earlier build had the same key, and its outputs are the result.
    Reused {
        drv: StorePath,
    },
    /// The run that was joined ended at a limit of another request, so the build starts again with this request's limits.
    LimitOfOthers {
        drv: StorePath,
    },
    /// The client wants folders of failed builds kept, which this box does not do.
    KeepFailedRefused,
    /// A derivation whose inputs have been built is built as another one, which names their paths.
    Resolved {
        from: StorePath,
        to: StorePath,
    },
    /// A derivation failed that others of the request need. The answer may not mention it.
    DependencyFailed {
        message: String,
    },
    Fetch(substitute::Event),
}

impl From<substitute::Event> for Event {
    fn from(event: substitute::Event) -> Self {
        Self::Fetch(event)
    }
}

/// The reporting side of a request. Clones share the channel, and the numbers.
#[derive(Debug, Clone)]
pub struct Reporter {
    events: mpsc::Sender<Event>,
    next: Arc<AtomicU64>,
}

impl Reporter {
    #[must_use]
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, next: Arc::default() }
    }

    /// Waits while the client is slow. A closed channel means that nobody looks any more.
    pub(super) async fn report(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// For a build that is about to be shown.
    pub(super) fn number(&self) -> BuildNumber {
        BuildNumber(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// For what substituters report themselves.
    pub(super) fn channel(&self) -> &mpsc::Sender<Event> {
        &self.events
    }
}

impl Event {
    /// What a line of log is to a client; `None` if it is nothing.
    pub(super) fn of_log(number: BuildNumber, notice: Notice<'_>) -> Option<Self> {
        match notice {
            Notice::Line(text) => Some(Self::Line { number, text: text.to_vec() }),
            Notice::Phase(name) => Some(Self::Phase { number, name }),
            Notice::Ignored => None,
        }
    }
}
