//! The ledger's contents in memory: amounts by account and day, within bounds, and what the file lacks of them.
//!
//! Tags are words of clients, and a member can make ticket after ticket. So a member has at most [`Bounds::names`] parts of
//! each kind in a month; what more there are count together as [`OTHER`](crate::OTHER). Rows of parts have a bound of their
//! own, at which the member with the most of them loses some: no member's parts cost another one anything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::By;
use crate::account::{Account, Kind, OTHER, Part};
use crate::calendar::{Day, Month};
use crate::resource::Amounts;

/// The bounds of a ledger, in memory and in the file.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most members. For one more, the member is forgotten who used nothing for longest.
    pub principals: usize,
    /// Most days of all members together. For one more, the oldest day of all is forgotten.
    pub rows: usize,
    /// Most days of all parts together. For one more, the member with the most of them loses the oldest one.
    pub part_rows: usize,
    /// Most parts of each kind that a member has in one month, besides `(other)`.
    pub names: usize,
    /// Months that are kept, the current one included.
    pub months: usize,
}

impl Default for Bounds {
    /// Twice the members of the largest roster: as many identities as the agent remembers. A year, and the same month of
    /// the year before. A row takes about 200 bytes in memory.
    fn default() -> Self {
        Self { principals: 20_000, rows: 1_000_000, part_rows: 500_000, names: 100, months: 13 }
    }
}

/// One account's amounts on one day.
pub(crate) type Row = (Account, Day, Amounts);

type Days = BTreeMap<Day, Amounts>;

/// The difference between the book and the file.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Rows of the file before this day are gone.
    pub before: Option<Day>,
    /// Rows of parts of these members before the day are gone.
    pub parts_before: HashMap<Arc<str>, Day>,
    /// All rows of these members in the file are gone, except those in `rows`.
    pub gone: Vec<Arc<str>>,
    /// Rows as they are now: not differences, so that a change that is written twice counts once.
    pub rows: Vec<Row>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        let Self { before, parts_before, gone, rows } = self;
        before.is_none() && parts_before.is_empty() && gone.is_empty() && rows.is_empty()
    }
}

/// One member. A part has a row only on days on which the member has one.
#[derive(Debug, Default)]
struct Member {
    whole: Days,
    parts: BTreeMap<Part, Days>,
    /// Number of days of all parts together.
    part_rows: usize,
    /// The month, and how many parts of each kind have a row in it; `None` if that has to be counted.
    named: Option<(Month, [usize; Kind::ALL.len()])>,
}

impl Member {
    fn days(&self, part: Option<&Part>) -> Option<&Days> {
        match part {
            None => Some(&self.whole),
            Some(part) => self.parts.get(part),
        }
    }

    /// This part, if it has a row in this month or can get one; otherwise the one for all others.
    fn within_bounds(&mut self, part: &Part, month: Month, most: usize) -> Part {
        let in_month = |days: &Days| days.last_key_value().is_some_and(|(last, _)| Month::of(*last) >= month);
        if &*part.name == OTHER || self.parts.get(part).is_some_and(in_month) {
            return part.clone();
        }
        let (_, counts) = match &mut self.named {
            Some(named) if named.0 == month => named,
            named => {
                let mut counts = [0; Kind::ALL.len()];
                let parts = self.parts.iter().filter(|(part, days)| &*part.name != OTHER && in_month(days));
                parts.for_each(|(part, _)| counts[part.kind as usize] += 1);
                named.insert((month, counts))
            }
        };
        let count = &mut counts[part.kind as usize];
        if *count >= most {
            return Part::other(part.kind);
        }
        *count += 1;
        part.clone()
    }

    /// Forgets rows of parts before this day.
    fn forget_parts_before(&mut self, first: Day) {
        let mut dropped = 0;
        self.parts.retain(|_, days| {
            let kept = days.split_off(&first);
            dropped += days.len();
            *days = kept;
            !days.is_empty()
        });
        self.part_rows -= dropped;
        self.named = None;
    }

    /// The first day on which a part has a row.
    fn first_of_parts(&self) -> Option<Day> {
        self.parts.values().filter_map(|days| days.first_key_value()).map(|(day, _)| *day).min()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    bounds: Bounds,
    of: HashMap<Arc<str>, Member>,
    /// Number of days of all members together, without those of parts.
    rows: usize,
    part_rows: usize,
    /// The rows that the file lacks.
    unwritten: HashSet<(Account, Day)>,
    /// What was forgotten, and is in the file.
    before: Option<Day>,
    parts_before: HashMap<Arc<str>, Day>,
    gone: HashSet<Arc<str>>,
}

impl Book {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Adds to a row that the file does not have so yet. A part is charged after its member.
    pub fn charge(&mut self, account: &Account, day: Day, amounts: &Amounts) {
        if amounts.is_zero() {
            return;
        }
        let account = match (&account.part, self.of.get_mut(&account.member)) {
            (Some(part), Some(member)) => {
                let part = member.within_bounds(part, Month::of(day), self.bounds.names);
                Account { member: account.member.clone(), part: Some(part) }
            }
            _ => account.clone(),
        };
        if self.add(&account, day, amounts) {
            self.unwritten.insert((account, day));
            self.keep_bounds();
        }
    }

    /// Adds rows of the file, of which the newest are first; those of parts after those of members. Usually the book is
    /// empty; it is not if the file could not be read at first.
    pub fn load(&mut self, rows: Vec<Row>) {
        // The oldest are added first, because a bound forgets what was there before.
        for (account, day, amounts) in rows.into_iter().rev() {
            if self.row(&account, day).is_some() {
                self.unwritten.insert((account.clone(), day));
            }
            self.add(&account, day, &amounts);
        }
        self.of.values_mut().for_each(|member| member.named = None);
        self.keep_bounds();
    }

    fn row(&self, account: &Account, day: Day) -> Option<&Amounts> {
        self.of.get(&account.member)?.days(account.part.as_ref())?.get(&day)
    }

    /// Whether a row is another one now: a peak that is no new one changes nothing, and a row of a part is not added without
    /// that of its member.
    fn add(&mut self, account: &Account, day: Day, amounts: &Amounts) -> bool {
        let Account { member, part } = account;
        if let Some(part) = part {
            let its = self.of.get_mut(member).filter(|member| member.whole.contains_key(&day));
            let Some(its) = its else { return false };
            let days = its.parts.entry(part.clone()).or_default();
            let before = days.len();
            let changed = add_to(days, day, amounts);
            let more = days.len() - before;
            its.part_rows += more;
            self.part_rows += more;
            return changed;
        }
        if !self.of.contains_key(member) && self.of.len() >= self.bounds.principals {
            self.forget_idlest();
        }
        let days = &mut self.of.entry(member.clone()).or_default().whole;
        let before = days.len();
        let changed = add_to(days, day, amounts);
        self.rows += days.len() - before;
        changed
    }

    /// Forgets the months that are too old today.
    pub fn roll(&mut self, today: Day) {
        let first = Month::of(today).back(self.bounds.months - 1).first();
        self.forget_before(first);
    }

    fn keep_bounds(&mut self) {
        while self.rows > self.bounds.rows {
            let first = |member: &Member| member.whole.first_key_value().map(|(day, _)| *day);
            let oldest = self.of.values().filter_map(first).min();
            let Some(next) = oldest.and_then(|day| day.tomorrow().ok()) else { return };
            self.forget_before(next);
        }
        while self.part_rows > self.bounds.part_rows {
            let largest = self.of.iter_mut().max_by_key(|(id, member)| (member.part_rows, (*id).clone()));
            let Some((id, member)) = largest else { return };
            let next = member.first_of_parts().and_then(|day| day.tomorrow().ok());
            let Some(next) = next else { return };
            let before = member.part_rows;
            member.forget_parts_before(next);
            self.part_rows -= before - member.part_rows;
            let id = id.clone();
            self.unwritten
                .retain(|(account, day)| account.part.is_none() || account.member != id || *day >= next);
            let known = self.parts_before.entry(id).or_insert(next);
            *known = (*known).max(next);
        }
    }

    fn forget_before(&mut self, first: Day) {
        let (mut dropped, mut of_parts) = (0, 0);
        self.of.retain(|_, member| {
            let kept = member.whole.split_off(&first);
            if !member.whole.is_empty() {
                dropped += member.whole.len();
                let before = member.part_rows;
                member.forget_parts_before(first);
                of_parts += before - member.part_rows;
            }
            member.whole = kept;
            !member.whole.is_empty()
        });
        if dropped > 0 {
            self.rows -= dropped;
            self.part_rows -= of_parts;
            self.unwritten.retain(|(_, day)| *day >= first);
            self.before = self.before.max(Some(first));
        }
    }

    fn forget_idlest(&mut self) {
        let last = |member: &Member| member.whole.last_key_value().map(|(day, _)| *day);
        let idlest = self.of.iter().min_by_key(|(id, member)| (last(member), (*id).clone()));
        let Some(id) = idlest.map(|(id, _)| id.clone()) else { return };
        if let Some(member) = self.of.remove(&id) {
            self.rows -= member.whole.len();
            self.part_rows -= member.part_rows;
        }
        self.unwritten.retain(|(other, _)| other.member != id);
        self.parts_before.remove(&id);
        self.gone.insert(id);
    }

    /// The difference to the file, which counts as written from now on.
    pub fn take_changes(&mut self) -> Changes {
        let unwritten = std::mem::take(&mut self.unwritten);
        let row = |(account, day): (Account, Day)| {
            let amounts = *self.row(&account, day)?;
            Some((account, day, amounts))
        };
        let rows = unwritten.into_iter().filter_map(row).collect();
        Changes {
            before: self.before.take(),
            parts_before: std::mem::take(&mut self.parts_before),
            gone: self.gone.drain().collect(),
            rows,
        }
    }

    /// The changes could not be written.
    pub fn put_back(&mut self, changes: Changes) {
        self.before = self.before.max(changes.before);
        for (id, day) in changes.parts_before {
            let known = self.parts_before.entry(id).or_insert(day);
            *known = (*known).max(day);
        }
        self.gone.extend(changes.gone);
        for (account, day, _) in changes.rows {
            if self.row(&account, day).is_some() {
                self.unwritten.insert((account, day));
            }
        }
    }

    /// The file has nothing: all that is in memory has to be written, and nothing to be removed.
    pub fn file_is_empty(&mut self) {
        self.file_is_unknown();
        let mut all = HashSet::new();
        for (id, member) in &self.of {
            let of = |part: Option<&Part>| Account { member: id.clone(), part: part.cloned() };
            all.extend(member.whole.keys().map(|day| (of(None), *day)));
            for (part, days) in &member.parts {
                all.extend(days.keys().map(|day| (of(Some(part)), *day)));
            }
        }
        self.unwritten = all;
    }

    /// No file is open. When one is, its rows are loaded, and the bounds apply to them then.
    pub fn file_is_unknown(&mut self) {
        self.before = None;
        self.parts_before.clear();
        self.gone.clear();
    }

    pub fn members(&self) -> Vec<Arc<str>> {
        self.of.keys().cloned().collect()
    }

    /// The sums of this member by period, or of the member's parts of the kind `per`. `within`: of this month only.
    pub fn sums(
        &self,
        member: &str,
        per: Option<Kind>,
        by: By,
        within: Option<Month>,
    ) -> BTreeMap<(Account, Day), Amounts> {
        let mut sums: BTreeMap<(Account, Day), Amounts> = BTreeMap::new();
        let range = match within {
            Some(month) => month.first()..=month.last(),
            None => Day::MIN..=Day::MAX,
        };
        let Some((id, its)) = self.of.get_key_value(member) else { return sums };
        let mut add = |part: Option<&Part>, days: &Days| {
            for (day, amounts) in days.range(range.clone()) {
                let period = match by {
                    By::Day => *day,
                    By::Month => Month::of(*day).first(),
                };
                let account = Account { member: id.clone(), part: part.cloned() };
                sums.entry((account, period)).or_default().add_all(amounts);
            }
        };
        match per {
            None => add(None, &its.whole),
            Some(kind) => {
                let parts = its.parts.iter().filter(|(part, _)| part.kind == kind);
                parts.for_each(|(part, days)| add(Some(part), days));
            }
        }
        sums
    }

    /// What this member used in this month.
    pub fn in_month(&self, member: &str, month: Month) -> Amounts {
        let mut sum = Amounts::default();
        let days = self.of.get(member).map(|member| member.whole.range(month.first()..=month.last()));
        days.into_iter().flatten().for_each(|(_, amounts)| sum.add_all(amounts));
        sum
    }
}

fn add_to(days: &mut Days, day: Day, amounts: &Amounts) -> bool {
    let row = days.entry(day).or_default();
    let before = *row;
    row.add_all(amounts);
    *row != before
}

#[cfg(test)]
impl Book {
    pub fn part_count(&self) -> usize {
        self.part_rows
    }
}

#[cfg(test)]
#[path = "book_test.rs"]
mod book_test;
