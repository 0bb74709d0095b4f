//! Days and months, in UTC.

use std::fmt;

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime, date};

/// A day in UTC.
pub type Day = Date;

const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);

/// The day of a moment in Unix seconds.
pub(crate) fn day_at(unix_seconds: u64) -> Day {
    let since = i64::try_from(unix_seconds).map_or(SignedDuration::MAX, SignedDuration::from_secs);
    EPOCH.saturating_add(since).date()
}

/// A month in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    first: Day,
}

impl Month {
    #[must_use]
    pub fn of(day: Day) -> Self {
        Self { first: day.first_of_month() }
    }

    /// Reads `YYYY-MM`, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let first: Day = format!("{text}-01").parse().ok()?;
        Some(Self { first }).filter(|month| month.to_string() == text)
    }

    #[must_use]
    pub fn first(self) -> Day {
        self.first
    }

    #[must_use]
    pub fn last(self) -> Day {
        self.first.last_of_month()
    }

    /// The month after this one; the last month that can be written has none, and stays.
    #[must_use]
    pub fn next(self) -> Self {
        self.last().tomorrow().map_or(self, Self::of)
    }

    /// The month that came so many months before.
    #[must_use]
    pub fn back(self, months: usize) -> Self {
        (0..months).fold(self, |month, _| month.first.yesterday().map_or(month, Self::of))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first.strftime("%Y-%m"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_read_as_it_is_written_and_nothing_else_is() {
        for text in ["2026-11", "2024-02", "1970-01"] {
            assert_eq!(Month::parse(text).expect(text).to_string(), text);
        }
        for not in
            ["2026-13", "2026-1", "2026-00", "2026", "11-2026", "2026-11-01", "", " 2026-11", "+002026-11"]
        {
            assert_eq!(Month::parse(not), None, "{not}");
        }
    }

    #[test]
    fn months_have_the_days_of_the_calendar() {
        let month = |text| Month::parse(text).expect("a month");
        assert_eq!(month("2024-02").last(), date(2024, 2, 29));
        assert_eq!(
            (month("2026-12").next(), month("2027-01").back(13)),
            (month("2027-01"), month("2025-12"))
        );
        let day = |seconds| day_at(seconds).to_string();
        // 2026-12-01T00:00:00Z.
        assert_eq!((day(1_796_083_199), day(1_796_083_200)), ("2026-11-30".into(), "2026-12-01".into()));
        assert_eq!(day(0), "1970-01-01");
    }
}
