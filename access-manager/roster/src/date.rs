//! Days and moments, in UTC: `expires = "2027-01-31"` of a member, `expiry-time="20270131"` of a key.
//!
//! **A member's `expires` is the last day with access.** The member can log in until that day ends in UTC. A key's
//! `expiry-time` is a moment, as for sshd: `20270131` is the first second of that day. sshd reads it in the machine's
//! time zone unless it ends in `Z`; a box's time zone is UTC.

use std::fmt;

use jiff::SignedDuration;
use jiff::civil::{Date, DateTime, date};
use serde::{Deserialize, Serialize};

/// The first moment that can be written. No roster is older.
const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);
/// The longest form of a key's `expiry-time`.
const MOMENT: &str = "%Y%m%d%H%M%S";

/// A day of the Gregorian calendar, 1970-01-01 or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(Date);

impl Day {
    /// Reads `YYYY-MM-DD`, a day that exists; nothing else.
    pub fn parse(text: &str) -> Option<Day> {
        // jiff reads other forms too, but it writes only this one.
        let day: Date = text.parse().ok()?;
        (day >= EPOCH.date() && day.to_string() == text).then_some(Day(day))
    }

    /// The day of this moment.
    pub fn at(unix_seconds: u64) -> Day {
        Day(civil(unix_seconds).date())
    }

    pub fn today() -> Day {
        Day::at(now())
    }

    /// Whether a member who expires on this day can still log in `today`.
    pub fn lets_in(self, today: Day) -> bool {
        today <= self
    }

    /// The last second of this day.
    pub fn end(self) -> Moment {
        // No `Day` is before 1970, so the default is never used.
        Moment::of(self.0.at(23, 59, 59, 0)).unwrap_or(Moment(0))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Day {
    type Error = String;

    fn try_from(text: String) -> Result<Day, String> {
        Day::parse(&text)
            .ok_or_else(|| format!("{} is not a day such as 2027-01-31", crate::words::quoted(&text)))
    }
}

impl From<Day> for String {
    fn from(day: Day) -> String {
        day.to_string()
    }
}

/// A moment, in seconds since 1970. It is written as sshd reads it, with `Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// Reads `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, each with or without `Z`.
    pub fn parse(text: &str) -> Option<Moment> {
        let digits = text.strip_suffix('Z').unwrap_or(text);
        if !matches!(digits.len(), 8 | 12 | 14) {
            return None;
        }
        let full = format!("{digits:0<14}");
        let moment = DateTime::strptime(MOMENT, &full).ok()?;
        // jiff accepts signs and spaces, and reads a second 60 as 59.
        if moment.strftime(MOMENT).to_string() != full {
            return None;
        }
        Moment::of(moment)
    }

    fn of(moment: DateTime) -> Option<Moment> {
        u64::try_from(moment.duration_since(EPOCH).as_secs()).ok().map(Moment)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}Z", civil(self.0).strftime(MOMENT))
    }
}

/// Date and time in UTC; after the year 9999, the last moment of that year.
fn civil(unix_seconds: u64) -> DateTime {
    let since = i64::try_from(unix_seconds).map_or(SignedDuration::MAX, SignedDuration::from_secs);
    EPOCH.saturating_add(since)
}

/// A moment for people, in UTC: `2027-01-31 08:30:00Z`.
pub fn shown(unix_seconds: u64) -> String {
    civil(unix_seconds).strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Seconds since 1970. A clock before that counts as 1970: nothing has expired then, and nothing is valid yet.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS_PER_DAY: u64 = 86_400;

    #[test]
    fn dates_count_as_the_calendar_does() {
        for (date, days) in [
            ("1970-01-01", 0),
            ("2000-03-01", 11_017),
            ("2024-02-29", 19_782),
            ("2027-01-01", 20_819),
            ("9999-12-31", 2_932_896),
        ] {
            assert_eq!(Day::parse(date), Some(Day::at(days * SECONDS_PER_DAY)), "{date}");
            assert_eq!(Day::at((days + 1) * SECONDS_PER_DAY - 1).to_string(), date);
        }
        for not in [
            "2027-02-29",
            "2027-13-01",
            "2027-00-01",
            "2027-1-1",
            "tomorrow",
            "2027-01-01T00:00",
            "20270101",
            "+002027-01-01",
            " 2027-01-01",
            "1969-12-31",
            "",
        ] {
            assert_eq!(Day::parse(not), None, "{not}");
        }
    }

    #[test]
    fn every_day_of_eight_centuries_is_written_as_it_was_read() {
        for days in 0..292_194 {
            let day = Day::at(days * SECONDS_PER_DAY);
            assert_eq!(Day::parse(&day.to_string()), Some(day));
        }
    }

    #[test]
    fn the_day_of_expiry_is_the_last_day_in() {
        let last = Day::parse("2027-01-31").expect("a day");
        let midnight = Moment::parse("20270201").expect("a moment").0;
        assert!(last.lets_in(Day::at(midnight - 1)), "until the last second of the day");
        assert!(!last.lets_in(Day::at(midnight)), "and not a second longer");
        assert_eq!(last.end().to_string(), "20270131235959Z", "which is the key's expiry-time for that");
    }

    #[test]
    fn a_moment_is_read_as_sshd_reads_it_and_written_so_that_it_reads_it_again() {
        for (text, written) in [
            ("20270131", "20270131000000Z"),
            ("20270131Z", "20270131000000Z"),
            ("202701312359", "20270131235900Z"),
            ("20270131235958Z", "20270131235958Z"),
            ("99991231235959", "99991231235959Z"),
        ] {
            let moment = Moment::parse(text).expect(text);
            assert_eq!(moment.to_string(), written);
            assert_eq!(Moment::parse(written), Some(moment));
        }
        for not in [
            "2027-01-31",
            "20270230",
            "2027013124",
            "202701312460",
            "19691231",
            "+2027013",
            "2027 131",
            "20270131235960",
            "2027-1-1",
            "",
        ] {
            assert_eq!(Moment::parse(not), None, "{not}");
        }
    }
}
