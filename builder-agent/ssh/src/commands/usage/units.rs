//! Amounts for people: three digits are enough.

use ledger::{Resource, Unit};

/// An amount of this resource.
pub(super) fn human(resource: Resource, amount: u64) -> String {
    match resource.row().unit {
        _ if amount == 0 => "0".to_owned(),
        Unit::Number => amount.to_string(),
        Unit::Bytes => bytes(amount),
        Unit::Seconds => duration(amount),
        Unit::MibSeconds => format!("{} h", bytes_of(amount as f64 / 3_600_000.0 * f64::from(1 << 20))),
    }
}

fn bytes(bytes: u64) -> String {
    bytes_of(bytes as f64)
}

fn bytes_of(mut amount: f64) -> String {
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

fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match seconds {
        0..10 => format!("{}.{} s", seconds, millis / 100 % 10),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..360_000 => format!("{hours} h {minutes} min"),
        _ => format!("{hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_people_say_them() {
        let seconds = |seconds: u64| human(Resource::CpuSeconds, seconds * 1000);
        assert_eq!(human(Resource::CpuSeconds, 1_250), "1.2 s");
        assert_eq!((seconds(59), seconds(754)), ("59 s".into(), "12 min 34 s".into()));
        assert_eq!((seconds(11_520), seconds(720_000)), ("3 h 12 min".into(), "200 h".into()));
        let size = |size| human(Resource::BytesUp, size);
        assert_eq!((size(0), size(1023), size(1024)), ("0".into(), "1023 B".into(), "1.0 KiB".into()));
        assert_eq!((size(1_288_490_189), size((1 << 30) - 1)), ("1.2 GiB".into(), "1.0 GiB".into()));
        assert_eq!(size(u64::MAX), "16 EiB");
        // A sandbox of 2 GiB for half an hour.
        assert_eq!(human(Resource::MemoryMibSeconds, 2048 * 1_800_000), "1.0 GiB h");
        assert_eq!(human(Resource::Builds, 12_345), "12345");
    }
}
