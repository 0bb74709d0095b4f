//! Numbers, sizes and durations, as people read and write them: three digits are enough.

use std::time::Duration;

/// `1 build`, `2 builds`: a noun whose plural ends in an s.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A number of bytes.
pub(super) fn bytes(bytes: u64) -> String {
    bytes_of(bytes as f64)
}

/// As [`bytes`], also for amounts that are no whole number of bytes.
pub(super) fn bytes_of(mut amount: f64) -> String {
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    // What would be rounded to 1024 is written in the next unit.
    while amount >= 1023.5
        && let Some(larger) = units.next()
    {
        (amount, unit) = (amount / 1024.0, larger);
    }
    match unit {
        "B" => format!("{amount:.0} B"),
        unit if amount < 9.95 => format!("{amount:.1} {unit}"),
        unit => format!("{amount:.0} {unit}"),
    }
}

/// `1.2 s`, `59 s`, `12 min 34 s`, `3 h 12 min` or `200 h`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match seconds {
        0..10 => format!("{seconds}.{} s", time.subsec_millis() / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..360_000 => format!("{hours} h {minutes} min"),
        _ => format!("{hours} h"),
    }
}

/// As [`duration`], for a time that is known in whole seconds.
pub(super) fn seconds(seconds: u64) -> String {
    match seconds {
        0..10 => format!("{seconds} s"),
        _ => duration(Duration::from_secs(seconds)),
    }
}

/// As it is written, and read again: `90s`, `30m`, `2h` or `7d`, in the largest unit that is exact.
pub(super) fn exact(seconds: u64) -> String {
    let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
    let exact = units.iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
    exact.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

/// Reads `90s`, `30m`, `2h`, `7d` or `2w`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const HELP: &str = "not a duration; write it as 90s, 30m, 2h, 7d or 2w, at most 366d";
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 7 * 86_400)];
    let seconds = product(text, &units).filter(|seconds| *seconds <= 366 * 86_400);
    seconds.map(Duration::from_secs).ok_or(HELP)
}

/// Reads `500M` or `20G`; K, M, G and T are powers of 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, &'static str> {
    let units = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)];
    product(text, &units).ok_or("not a size; write a whole number with K, M, G or T, such as 500M or 20G")
}

/// A whole number and one of these units.
fn product(text: &str, units: &[(char, u64)]) -> Option<u64> {
    let unit = text.chars().next_back()?;
    let (_, factor) = units.iter().find(|(known, _)| *known == unit)?;
    let digits = text.strip_suffix(unit)?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_people_say_them() {
        let of = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(duration(Duration::from_millis(1250)), "1.2 s");
        assert_eq!((of(59), of(754)), ("59 s".into(), "12 min 34 s".into()));
        assert_eq!((of(11_520), of(720_000)), ("3 h 12 min".into(), "200 h".into()));
        assert_eq!((seconds(0), seconds(9), seconds(61)), ("0 s".into(), "9 s".into(), "1 min 1 s".into()));
        assert_eq!((bytes(1023), bytes(1024)), ("1023 B".into(), "1.0 KiB".into()));
        assert_eq!((bytes(1_288_490_189), bytes((1 << 30) - 1)), ("1.2 GiB".into(), "1.0 GiB".into()));
        assert_eq!(bytes(u64::MAX), "16 EiB");
        assert_eq!((counted(0, "build"), counted(1, "build")), ("0 builds".into(), "1 build".into()));
    }

    #[test]
    fn durations_and_sizes_have_a_unit() {
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("2w", 1_209_600), ("366d", 31_622_400)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "s", "30", "1.5h", "-1s", "+1s", "2 h", "367d", "1y", "é", "18446744073709551615d", "5min"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for (text, bytes) in [("0K", 0), ("500M", 500 << 20), ("20G", 20 << 30), ("1T", 1 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "4096", "-1K", "+1K", "1.5G", "1 G", "20g", "1MiB", "99999999T", "1é"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_was_written_is_shown_again() {
        for text in ["90s", "30m", "2h", "7d"] {
            assert_eq!(exact(parse_duration(text).expect("a duration").as_secs()), text);
        }
    }
}
