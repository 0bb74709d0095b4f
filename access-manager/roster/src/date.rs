//! Days and moments, in UTC: `expires = "2027-01-31"` of a member, `expiry-time="20270131"` of a key.
//!
//! **A member's `expires` is the last day in.** The member gets in until that day ends in UTC. A key's `expiry-time` is a
//! moment, as for sshd: `20270131` is the first second of that day. sshd reads it in the machine's time zone unless it
//! ends in `Z`; a box's time zone is UTC.

use std::fmt;

use serde::{Deserialize, Serialize};

const SECONDS_PER_DAY: u64 = 86_400;

/// A day of the Gregorian calendar, as days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Day(i64);

impl Day {
    /// Reads `YYYY-MM-DD`, a day that exists; nothing else.
    pub fn parse(text: &str) -> Option<Day> {
        let mut parts = text.splitn(3, '-');
        let mut number = |digits: usize| digits_of(parts.next()?, digits);
        Day::of(number(4)?, number(2)?, number(2)?)
    }

    /// The day of this moment.
    pub fn at(unix_seconds: u64) -> Day {
        Day((unix_seconds / SECONDS_PER_DAY) as i64)
    }

    pub fn today() -> Day {
        Day::at(now())
    }

    /// Whether a member who expires on this day still gets in `today`.
    pub fn lets_in(self, today: Day) -> bool {
        today <= self
    }

    /// The last second of this day.
    pub fn end(self) -> Moment {
        let next = u64::try_from(self.0 + 1).unwrap_or(1);
        Moment(next * SECONDS_PER_DAY - 1)
    }

    fn of(year: i64, month: i64, day: i64) -> Option<Day> {
        let length = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let in_month = *length.get(usize::try_from(month - 1).ok()?)?;
        // Nobody in a roster has left before there were rosters, and no arithmetic below meets a negative number.
        if year < 1970 || !(1..=in_month).contains(&day) {
            return None;
        }
        let in_year: i64 = length.iter().take((month - 1) as usize).sum();
        Some(Day(first_of(year) + in_year + day - 1))
    }

    fn year_month_day(self) -> (i64, i64, i64) {
        // A year is never longer than 366 days, so the estimate is never too large, and 22 too small in year 9999.
        let mut year = 1970 + self.0 / 366;
        while first_of(year + 1) <= self.0 {
            year += 1;
        }
        let mut rest = self.0 - first_of(year);
        let length = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 1;
        for days in length {
            if rest < days {
                break;
            }
            rest -= days;
            month += 1;
        }
        (year, month, rest + 1)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.year_month_day();
        write!(f, "{year:04}-{month:02}-{day:02}")
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

/// A moment, in seconds since 1970. Written as sshd reads it, with `Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// Reads `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, each with or without `Z`.
    pub fn parse(text: &str) -> Option<Moment> {
        let digits = text.strip_suffix('Z').unwrap_or(text);
        if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let part = |range: std::ops::Range<usize>| {
            digits.get(range.clone()).map_or(Some(0), |text| digits_of(text, range.len()))
        };
        let day = Day::of(part(0..4)?, part(4..6)?, part(6..8)?)?;
        let (hour, minute, second) = (part(8..10)?, part(10..12)?, part(12..14)?);
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let seconds = day.0 * SECONDS_PER_DAY as i64 + hour * 3600 + minute * 60 + second;
        u64::try_from(seconds).ok().map(Moment)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = Day::at(self.0).year_month_day();
        let rest = self.0 % SECONDS_PER_DAY;
        write!(f, "{year:04}{month:02}{day:02}{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
    }
}

/// Seconds since 1970. A clock before that counts as 1970: nothing has expired then, and nothing is valid yet.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn digits_of(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 1970-01-01 to the first day of `year`.
fn first_of(year: i64) -> i64 {
    // Leap days before this year, counted from year 0; 719_528 days lie between 0000-01-01 and 1970-01-01.
    let before = year - 1;
    year * 365 + before / 4 - before / 100 + before / 400 + 1 - 719_528
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_as_the_calendar_does() {
        for (date, days) in [
            ("1970-01-01", 0),
            ("2000-03-01", 11_017),
            ("2024-02-29", 19_782),
            ("2027-01-01", 20_819),
            ("9999-12-31", 2_932_896),
        ] {
            assert_eq!(Day::parse(date), Some(Day(days)), "{date}");
            assert_eq!(Day(days).to_string(), date);
        }
        for not in [
            "2027-02-29",
            "2027-13-01",
            "2027-00-01",
            "2027-1-1",
            "tomorrow",
            "2027-01-01T00:00",
            "1969-12-31",
            "",
        ] {
            assert_eq!(Day::parse(not), None, "{not}");
        }
    }

    #[test]
    fn every_day_of_eight_centuries_is_written_as_it_was_read() {
        for days in 0..292_194 {
            assert_eq!(Day::parse(&Day(days).to_string()), Some(Day(days)));
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
        ] {
            let moment = Moment::parse(text).expect(text);
            assert_eq!(moment.to_string(), written);
            assert_eq!(Moment::parse(written), Some(moment));
        }
        for not in ["2027-01-31", "20270230", "2027013124", "202701312460", "19691231", "+2027013", ""] {
            assert_eq!(Moment::parse(not), None, "{not}");
        }
    }
}
