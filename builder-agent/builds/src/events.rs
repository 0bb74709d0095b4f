//! Events: all that happens while a request is served, in this project's own terms.
//!
//! Each request has one channel for its events. The side that knows the client (`daemon`) renders each event: as
//! activities of the worker protocol, or as lines for a person. So an event says what happened and to which derivation.
//! The renderers choose the words, except for the messages of failures, which are also answers.
//! Not here: the log of the agent itself (`tracing`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix_derivation::StorePath;
use tokio::sync::mpsc;

use super::log::Notice;
use super::schedule::Why;

/// Names a build among those that one request shows. This is not the number by which the box's log names a run: a
/// request shows the same run twice if two of its derivations resolve to the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BuildNumber(pub u64);

/// The reason for which the log of a build is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildKind {
    /// The build makes outputs.
    Building,
    /// The build is repeated to compare it with valid outputs.
    Checking,
    /// The build failed earlier and is not run again.
    EarlierFailure,
}

/// Why a build is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It ran out of memory, and gets more.
    Memory { before_mib: u32, now_mib: u32 },
    /// Its sandbox failed.
    Sandbox,
}

/// The progress of the builds of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildCounts {
    pub done: u64,
    pub expected: u64,
    pub running: u64,
    pub failed: u64,
}

/// One event of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The request has derivations to build; counts of them follow.
    BuildsStarted,
    BuildsProgress(BuildCounts),
    BuildsEnded,
    /// A build is shown from here to its [`Event::Stopped`].
    Started {
        number: BuildNumber,
        drv: StorePath,
        kind: BuildKind,
    },
    /// The build has waited for some time.
    Waiting {
        drv: StorePath,
        why: Why,
    },
    /// One line of the log, or a piece of one, as the builder wrote it.
    Line {
        number: BuildNumber,
        text: Vec<u8>,
    },
    /// The builder says that it entered a phase.
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
    /// The run that this request joined ended at a limit of another request, so the build starts again with this
    /// request's limits.
    LimitOfOthers {
        drv: StorePath,
    },
    /// The run of this request did not end by its builder, and is started again.
    StartsAgain {
        drv: StorePath,
        why: Again,
    },
    /// The client wants the folders of failed builds kept; this box does not keep them.
    KeepFailedRefused,
    /// A derivation whose inputs have been built is resolved to another one, which names their paths.
    Resolved {
        from: StorePath,
        to: StorePath,
    },
    /// A derivation failed that other derivations of the request need. The answer may not mention it.
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

    /// Waits while the client is slow. A closed channel means that nobody reads the events.
    pub(super) async fn report(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// A number for a build that is about to be shown.
    pub(super) fn number(&self) -> BuildNumber {
        BuildNumber(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The channel, for substituters, which report events themselves.
    pub(super) fn channel(&self) -> &mpsc::Sender<Event> {
        &self.events
    }
}

impl Event {
    /// The event for a line of log; `None` if the client is shown nothing for it.
    pub(super) fn of_log(number: BuildNumber, notice: Notice<'_>) -> Option<Self> {
        match notice {
            Notice::Line(text) => Some(Self::Line { number, text: text.to_vec() }),
            Notice::Phase(name) => Some(Self::Phase { number, name }),
            Notice::Ignored => None,
        }
    }
}
