//! Sizes and durations, as people read and write them: three digits are enough.

use std::time::Duration;

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

/// Reads `90s`, `30m`, `2h` or `7d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const HELP: &str = "not a duration; write it as 90s, 30m, 2h or 7d, at most 366d";
    let (at, unit) = text.char_indices().next_back().ok_or(HELP)?;
    let number = &text[..at];
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(HELP),
    };
    let seconds = number.parse::<u64>().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()));
    let seconds =
        seconds.and_then(|number| number.checked_mul(factor)).filter(|seconds| *seconds <= 366 * 86_400);
    seconds.map(Duration::from_secs).ok_or(HELP)
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
    }

    #[test]
    fn a_duration_has_a_unit() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("366d", 31_622_400)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "s", "30", "1.5h", "-1s", "+1s", "2 h", "367d", "1y", "é", "18446744073709551615d", "5min"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
