//! The line of one key: two classes, each first come, first served.
//!
//! Not here: which class a member's next run has (`tree`, which sees all keys of the member).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{RunId, Size};

/// Bulk that has waited for so long takes turns with interactive runs of the same member. A person waits for an
/// interactive build, and hardly longer than this; a queue of bulk should move at least this often.
pub const BULK_PATIENCE: Duration = Duration::from_secs(600);

/// How urgent a run is, among the runs of its own member. It gives no member more than others have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// One of many.
    Bulk,
}

/// How a run was asked for. It decides the run's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The class is known.
    As(Class),
    /// In a call for this run alone. A client that offers its builds one by one, as Nix does with `--builders`, makes one for
    /// each: so only [`ALONE`] of them are interactive at one time.
    Alone,
}

impl From<Class> for Asked {
    fn from(class: Class) -> Self {
        Self::As(class)
    }
}

/// As many runs of one key that were asked for alone can wait or run as interactive ones; the others are bulk. A person who
/// tries a change waits for one build, or for one on each of two machines. What is more comes from a list.
pub const ALONE: usize = 2;

/// A call of a client asks for so many runs that somebody waits for; the others are bulk. A change to a package and what
/// depends on it closely is seldom more, and the rest of a large graph can wait for the member's next small build.
const INTERACTIVE_RUNS: u64 = 16;

impl Class {
    /// The class of a run for which nobody set one, after so many others that the same call asked for.
    #[must_use]
    pub fn of_run_after(before: u64) -> Self {
        match before < INTERACTIVE_RUNS {
            true => Self::Interactive,
            false => Self::Bulk,
        }
    }
}

/// Runs by their number, with their size and the time at which each came.
type Runs = BTreeMap<u64, (RunId, Size, Instant)>;

#[derive(Debug, Default)]
pub struct Line {
    interactive: Runs,
    bulk: Runs,
}

impl Line {
    fn of(&mut self, class: Class) -> &mut Runs {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Bulk => &mut self.bulk,
        }
    }

    pub fn has(&self, class: Class) -> bool {
        match class {
            Class::Interactive => !self.interactive.is_empty(),
            Class::Bulk => !self.bulk.is_empty(),
        }
    }

    /// Whether the first bulk run has waited for long.
    pub fn has_aged(&self, now: Instant) -> bool {
        let first = self.bulk.first_key_value();
        first.is_some_and(|(_, (_, _, came))| now.saturating_duration_since(*came) >= BULK_PATIENCE)
    }

    /// `number` is larger than that of every run that came before.
    pub fn push(&mut self, number: u64, (run, size): (RunId, Size), class: Class, now: Instant) {
        self.of(class).insert(number, (run, size, now));
    }

    pub fn remove(&mut self, class: Class, number: u64) {
        self.of(class).remove(&number);
    }

    pub fn pop(&mut self, class: Class) -> Option<RunId> {
        self.of(class).pop_first().map(|(_, (run, _, _))| run)
    }

    /// The size of the next run.
    pub fn first(&self, class: Class) -> Option<Size> {
        let runs = match class {
            Class::Interactive => &self.interactive,
            Class::Bulk => &self.bulk,
        };
        runs.first_key_value().map(|(_, (_, size, _))| *size)
    }
}
