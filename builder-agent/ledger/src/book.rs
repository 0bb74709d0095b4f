//! The ledger's contents in memory: amounts by principal and day, within bounds, and what the file lacks of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::calendar::{Day, Month};
use crate::{Amounts, By, Principal};

/// The bounds of a ledger, in memory and in the file.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most principals. For one more, the principal is forgotten who used nothing for longest.
    pub principals: usize,
    /// Most days of all principals together. For one more, the oldest day of all is forgotten.
    pub rows: usize,
    /// Months that are kept, the current one included.
    pub months: usize,
}

impl Default for Bounds {
    /// Twice the members of the largest roster: as many identities as the agent remembers. A year, and the same month of
    /// the year before. A row takes about 130 bytes in memory.
    fn default() -> Self {
        Self { principals: 20_000, rows: 1_000_000, months: 13 }
    }
}

/// One principal's amounts on one day.
pub(crate) type Row = (Principal, Day, Amounts);

/// The difference between the book and the file.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Rows of the file before this day are gone.
    pub before: Option<Day>,
    /// All rows of these principals in the file are gone, except those in `rows`.
    pub gone: Vec<Principal>,
    /// Rows as they are now: not differences, so that a change that is written twice counts once.
    pub rows: Vec<Row>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.before.is_none() && self.gone.is_empty() && self.rows.is_empty()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    bounds: Bounds,
    of: HashMap<Principal, BTreeMap<Day, Amounts>>,
    /// Number of days of all principals together.
    rows: usize,
    /// The rows that the file lacks.
    unwritten: HashSet<(Principal, Day)>,
    /// What was forgotten, and is in the file.
    before: Option<Day>,
    gone: HashSet<Principal>,
}

impl Book {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Adds to a row that the file does not have so yet.
    pub fn charge(&mut self, who: &Principal, day: Day, amounts: &Amounts) {
        if amounts.is_zero() {
            return;
        }
        self.add(who, day, amounts);
        self.unwritten.insert((who.clone(), day));
        self.keep_bounds();
    }

    /// Adds rows of the file, of which the newest are first. Usually the book is empty; it is not if the file could not be
    /// read at first.
    pub fn load(&mut self, rows: Vec<Row>) {
        // The oldest are added first, because a bound forgets what was there before.
        for (who, day, amounts) in rows.into_iter().rev() {
            if self.of.get(&who).is_some_and(|days| days.contains_key(&day)) {
                self.unwritten.insert((who.clone(), day));
            }
            self.add(&who, day, &amounts);
        }
        self.keep_bounds();
    }

    fn add(&mut self, who: &Principal, day: Day, amounts: &Amounts) {
        if !self.of.contains_key(who) && self.of.len() >= self.bounds.principals {
            self.forget_idlest();
        }
        let days = self.of.entry(who.clone()).or_default();
        let before = days.len();
        days.entry(day).or_default().add_all(amounts);
        self.rows += days.len() - before;
    }

    /// Forgets the months that are too old today.
    pub fn roll(&mut self, today: Day) {
        let first = Month::of(today).back(self.bounds.months - 1).first();
        self.forget_before(first);
    }

    fn keep_bounds(&mut self) {
        while self.rows > self.bounds.rows {
            let oldest =
                self.of.values().filter_map(|days| days.first_key_value()).map(|(day, _)| *day).min();
            let Some(next) = oldest.and_then(|day| day.tomorrow().ok()) else { return };
            self.forget_before(next);
        }
    }

    fn forget_before(&mut self, first: Day) {
        let mut dropped = 0;
        self.of.retain(|_, days| {
            let kept = days.split_off(&first);
            dropped += days.len();
            *days = kept;
            !days.is_empty()
        });
        if dropped > 0 {
            self.rows -= dropped;
            self.unwritten.retain(|(_, day)| *day >= first);
            self.before = self.before.max(Some(first));
        }
    }

    fn forget_idlest(&mut self) {
        let last = |days: &BTreeMap<Day, Amounts>| days.last_key_value().map(|(day, _)| *day);
        let idlest = self.of.iter().min_by_key(|(who, days)| (last(days), *who)).map(|(who, _)| who.clone());
        let Some(who) = idlest else { return };
        self.rows -= self.of.remove(&who).map_or(0, |days| days.len());
        self.unwritten.retain(|(other, _)| *other != who);
        self.gone.insert(who);
    }

    /// The difference to the file, which counts as written from now on.
    pub fn take_changes(&mut self) -> Changes {
        let row = |(who, day): (Principal, Day)| {
            let amounts = *self.of.get(&who)?.get(&day)?;
            Some((who, day, amounts))
        };
        Changes {
            before: self.before.take(),
            gone: self.gone.drain().collect(),
            rows: self.unwritten.drain().filter_map(row).collect(),
        }
    }

    /// The changes could not be written.
    pub fn put_back(&mut self, changes: Changes) {
        self.before = self.before.max(changes.before);
        self.gone.extend(changes.gone);
        for (who, day, _) in changes.rows {
            if self.of.get(&who).is_some_and(|days| days.contains_key(&day)) {
                self.unwritten.insert((who, day));
            }
        }
    }

    /// The file has nothing: all that is in memory has to be written, and nothing to be removed.
    pub fn file_is_empty(&mut self) {
        self.file_is_unknown();
        let all = self.of.iter().flat_map(|(who, days)| days.keys().map(|day| (who.clone(), *day)));
        self.unwritten = all.collect();
    }

    /// No file is open. When one is, its rows are loaded, and the bounds apply to them then.
    pub fn file_is_unknown(&mut self) {
        self.before = None;
        self.gone.clear();
    }

    pub fn principals(&self) -> Vec<Principal> {
        self.of.keys().cloned().collect()
    }

    /// The sums of `who` by period. `within`: of this month only.
    pub fn sums(
        &self,
        who: &Principal,
        by: By,
        within: Option<Month>,
    ) -> BTreeMap<(Principal, Day), Amounts> {
        let mut sums: BTreeMap<(Principal, Day), Amounts> = BTreeMap::new();
        let range = match within {
            Some(month) => month.first()..=month.last(),
            None => Day::MIN..=Day::MAX,
        };
        for (day, amounts) in self.of.get(who).into_iter().flat_map(|days| days.range(range.clone())) {
            let period = match by {
                By::Day => *day,
                By::Month => Month::of(*day).first(),
            };
            sums.entry((who.clone(), period)).or_default().add_all(amounts);
        }
        sums
    }

    /// What `who` used in this month.
    pub fn in_month(&self, who: &Principal, month: Month) -> Amounts {
        let mut sum = Amounts::default();
        let days = self.of.get(who).into_iter().flat_map(|days| days.range(month.first()..=month.last()));
        days.for_each(|(_, amounts)| sum.add_all(amounts));
        sum
    }
}

#[cfg(test)]
#[path = "book_test.rs"]
mod book_test;
