//! The ledger: what was used, by whom, on which day (UTC).
//!
//! The code that spends something charges it here, at the place where it is spent ([`Ledger::charge`]; for a connection,
//! [`Ledger::meter`]). Reading is from memory. A thread writes the changes to one small file every [`WRITE_EVERY`], and
//! [`Ledger::close`] writes the last ones. So `kill -9` loses at most what was charged in the five seconds before it, and
//! the file is whole at each instant. No failure of the file stops the agent: the ledger goes on in memory, says what is
//! wrong, and tries again.
//!
//! The number of principals, of days, and of months is bounded, in memory and in the file ([`Bounds`]).
//! A charge counts for the day on which it is made: a build that runs over midnight belongs to the day of its end.
//! Not here: limits (the caller compares), names of members (an identity is any text), and how amounts are shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

mod book;
mod calendar;
mod file;
mod keeper;
mod meter;
mod resource;

pub use book::Bounds;
pub use calendar::{Day, Month};
pub use keeper::WRITE_EVERY;
pub use meter::{Meter, Traffic};
pub use resource::{Amounts, RESOURCES, Resource, Row, Unit};

use book::Book;
use keeper::Keeper;
use meter::Meters;

/// Who is charged. Cheap to clone.
///
/// Today this is a member alone, who is also charged for the tickets that the member made; a ticket has an account of its
/// own besides (crate `tickets`). A key or a tag of a member becomes another field, and another column of the file; sums over
/// a member's principals are then the member's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal {
    /// The identity, not the name: two people who use one name in turn have two.
    pub member: Arc<str>,
}

impl Principal {
    /// The principal of this identity.
    #[must_use]
    pub fn member(id: &str) -> Self {
        Self { member: id.into() }
    }

    /// The same, without a copy of the text.
    #[must_use]
    pub fn of(id: &Arc<str>) -> Self {
        Self { member: id.clone() }
    }
}

/// The length of the periods of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Day,
    Month,
}

/// Gives the time in Unix seconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a ledger is kept.
#[derive(Clone)]
pub struct Settings {
    /// The file; its folder exists.
    pub path: PathBuf,
    /// Whether the file survives a power loss. If not, nothing waits for the disk.
    pub flush: bool,
    pub bounds: Bounds,
    pub clock: Clock,
}

impl Settings {
    /// With the usual bounds and the machine's clock.
    #[must_use]
    pub fn new(path: PathBuf, flush: bool) -> Self {
        Self { path, flush, bounds: Bounds::default(), clock: Arc::new(unix_time) }
    }
}

/// A clock before 1970 counts as 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The ledger of a box. Clones share it. Dropping the last one writes the last changes.
#[derive(Clone)]
pub struct Ledger {
    state: Arc<State>,
    /// `None`: a ledger without a file.
    keeper: Option<Arc<Keeper>>,
}

/// The part of a ledger that its thread shares.
pub(crate) struct State {
    pub clock: Clock,
    book: Mutex<Book>,
    meters: Meters,
}

impl State {
    fn new(bounds: Bounds, clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, book: Mutex::new(Book::new(bounds)), meters: Meters::default() })
    }

    pub fn today(&self) -> Day {
        calendar::day_at((self.clock)())
    }

    pub fn with_book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn charge(&self, who: &Principal, amounts: &Amounts) {
        let today = self.today();
        self.with_book(|book| book.charge(who, today, amounts));
    }

    /// Charges what the open connections have moved since the last time.
    pub fn settle(&self) {
        for (who, moved) in self.meters.moved() {
            self.charge(&who, &moved);
        }
    }
}

impl Ledger {
    /// Reads the file, and starts the thread that writes it. A file that is damaged is moved aside; one that cannot be
    /// opened is tried again later. Both are logged.
    #[must_use]
    pub fn open(settings: Settings) -> Self {
        let state = State::new(settings.bounds, settings.clock.clone());
        let keeper = Arc::new(Keeper::start(state.clone(), settings));
        Self { state, keeper: Some(keeper) }
    }

    /// A ledger that is gone with the process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { state: State::new(Bounds::default(), Arc::new(unix_time)), keeper: None }
    }

    /// Adds to what `who` used today.
    pub fn charge(&self, who: &Principal, charges: impl IntoIterator<Item = (Resource, u64)>) {
        self.state.charge(who, &charges.into_iter().collect());
    }

    /// Charges a connection's bytes to `who` until the meter is dropped, those that were moved before included.
    #[must_use]
    pub fn meter(&self, who: Principal, traffic: Arc<Traffic>) -> Meter {
        Meter::new(self.state.clone(), who, traffic)
    }

    #[must_use]
    pub fn this_month(&self) -> Month {
        Month::of(self.state.today())
    }

    /// What `who` has used this month.
    #[must_use]
    pub fn used_this_month(&self, who: &Principal) -> Amounts {
        let month = self.this_month();
        self.state.with_book(|book| book.in_month(who, month))
    }

    /// What `who`, or every principal, has used, by the first day of each period. `within`: in this month only.
    #[must_use]
    pub fn usage(
        &self,
        who: Option<&Principal>,
        by: By,
        within: Option<Month>,
    ) -> BTreeMap<(Principal, Day), Amounts> {
        self.state.settle();
        if let Some(who) = who {
            return self.state.with_book(|book| book.sums(who, by, within));
        }
        // One after the other: whoever charges meanwhile does not wait for the sums of all.
        let all = self.state.with_book(|book| book.principals());
        all.iter().flat_map(|who| self.state.with_book(|book| book.sums(who, by, within))).collect()
    }

    /// Ends the thread, and writes what is left to write. The ledger still works, in memory. Blocks.
    pub fn close(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.close();
        }
    }
}

#[cfg(test)]
#[path = "ledger_test.rs"]
mod ledger_test;
