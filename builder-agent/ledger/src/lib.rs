//! The ledger: what was used, by whom, on which day (UTC).
//!
//! The code that spends something charges it here, at the place where it is spent ([`Ledger::charge`]; for a connection,
//! [`Ledger::meter`]). Reading is from memory. A thread writes the changes to one small file every [`WRITE_EVERY`], and
//! [`Ledger::close`] writes the last ones. So `kill -9` loses at most what was charged in the five seconds before it, and
//! the file is whole at each instant. No failure of the file stops the agent: the ledger goes on in memory, says what is
//! wrong, and tries again.
//!
//! Each member has an account, and parts of it by key, ticket and tag (`account`).
//! The number of members, of parts, of days, and of months is bounded, in memory and in the file ([`Bounds`]).
//! A charge counts for the day on which it is made: a build that runs over midnight belongs to the day of its end.
//! Not here: limits (the caller compares), names of members (an identity is any text), and how amounts are shown.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

mod account;
mod book;
mod calendar;
mod file;
mod gauge;
mod keeper;
mod meter;
mod resource;

pub use account::{Account, Kind, OTHER, Part, Principal};
pub use book::Bounds;
pub use calendar::{Day, Month};
pub use gauge::{Counter, Open, Opened};
pub use keeper::WRITE_EVERY;
pub use meter::{Meter, Traffic};
pub use resource::{Amounts, Fold, RESOURCES, Resource, Row, Unit};

use book::Book;
use gauge::Gauges;
use keeper::Keeper;
use meter::Meters;

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
    gauges: Arc<Gauges>,
}

impl State {
    fn new(bounds: Bounds, clock: Clock) -> Arc<Self> {
        let (book, meters, gauges) = (Mutex::new(Book::new(bounds)), Meters::default(), Arc::default());
        Arc::new(Self { clock, book, meters, gauges })
    }

    pub fn today(&self) -> Day {
        calendar::day_at((self.clock)())
    }

    pub fn with_book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Charges the member, the key or ticket, and these tags.
    pub fn charge(&self, who: &Principal, tags: &[Arc<str>], amounts: &Amounts) {
        let today = self.today();
        let mut parts: Vec<Part> =
            tags.iter().map(|tag| Part { kind: Kind::Tag, name: tag.clone() }).collect();
        parts.extend(who.with.clone());
        parts.sort_unstable();
        parts.dedup();
        self.with_book(|book| {
            book.charge(&Account::of(who), today, amounts);
            for part in parts {
                book.charge(&Account::part(who, part), today, amounts);
            }
        });
    }

    /// Charges what the open connections have moved since the last time, and what was opened.
    pub fn settle(&self) {
        for (who, moved) in self.meters.moved() {
            self.charge(&who, &[], &moved);
        }
        let mut taken = self.gauges.taken();
        // A part is kept only beside its member's account of the same day.
        taken.sort_by(|(one, _), (other, _)| one.cmp(other));
        let today = self.today();
        for (account, amounts) in taken {
            self.with_book(|book| book.charge(&account, today, &amounts));
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
        self.charge_tagged(who, &[], charges);
    }

    /// The same, for something that has tags.
    pub fn charge_tagged(
        &self,
        who: &Principal,
        tags: &[Arc<str>],
        charges: impl IntoIterator<Item = (Resource, u64)>,
    ) {
        self.state.charge(who, tags, &charges.into_iter().collect());
    }

    /// Counts what `who` opens.
    #[must_use]
    pub fn counter(&self, who: &Principal) -> Counter {
        let accounts = [Some(Account::of(who)), who.with.clone().map(|part| Account::part(who, part))];
        Counter(accounts.into_iter().flatten().map(|account| self.state.gauges.of(account)).collect())
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
        self.state.with_book(|book| book.in_month(&who.member, month))
    }

    /// What this member, or every member, has used, by the first day of each period. `per`: not of members, but of their
    /// parts of this kind. `within`: in this month only.
    #[must_use]
    pub fn usage(
        &self,
        member: Option<&str>,
        per: Option<Kind>,
        by: By,
        within: Option<Month>,
    ) -> BTreeMap<(Account, Day), Amounts> {
        self.state.settle();
        if let Some(member) = member {
            return self.state.with_book(|book| book.sums(member, per, by, within));
        }
        // One after the other: whoever charges meanwhile does not wait for the sums of all.
        let all = self.state.with_book(|book| book.members());
        all.iter()
            .flat_map(|member| self.state.with_book(|book| book.sums(member, per, by, within)))
            .collect()
    }

    /// Writes what is left to write. Blocks.
    pub fn flush(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.write();
        }
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
