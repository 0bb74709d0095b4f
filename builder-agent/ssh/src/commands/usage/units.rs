//! Amounts of the ledger for people.

use std::time::Duration;

use ledger::{Resource, Unit};

use super::super::units::{bytes, bytes_of, duration};

/// An amount of this resource.
pub(super) fn human(resource: Resource, amount: u64) -> String {
    match resource.row().unit {
        _ if amount == 0 => "0".to_owned(),
        Unit::Number => amount.to_string(),
        Unit::Bytes => bytes(amount),
        Unit::Seconds => duration(Duration::from_millis(amount)),
        Unit::MibSeconds => format!("{} h", bytes_of(amount as f64 / 3_600_000.0 * f64::from(1 << 20))),
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
