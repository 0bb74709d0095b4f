//! When the drivers of virtio devices look at their devices.
//!
//! Two at once, because everything else goes through them: the stream to the host, and the source of random numbers. All others
//! when the host has said what this machine is for. Until then a machine can be copied, and each copy can have another closure
//! behind the same device.

use std::fs;
use std::path::Path;

const BUS: &str = "/sys/bus/virtio";

/// virtio 1.2, section 5: device types.
pub const NETWORK_CARD: u32 = 1;
const RANDOM: u32 = 4;
const STREAM: u32 = 19;

/// From now on a driver does not look at devices by itself. Has no effect before the bus is there.
pub fn hold_back() {
    let _ = fs::write(Path::new(BUS).join("drivers_autoprobe"), "0");
}

/// Has the drivers of the stream and of the source of random numbers look at their devices.
pub fn probe_first() {
    probe(Path::new(BUS), |kind| kind == RANDOM || kind == STREAM);
}

/// Has all drivers look at their devices.
pub fn probe_all() {
    probe(Path::new(BUS), |_| true);
}

/// Whether there is a device of this type, with a driver or without.
pub fn has(kind: u32) -> bool {
    has_on(Path::new(BUS), kind)
}

fn has_on(bus: &Path, kind: u32) -> bool {
    devices(bus).any(|(_, other)| other == kind)
}

/// The names of the devices on the bus, which the modules before have filled, and their types.
fn devices(bus: &Path) -> impl Iterator<Item = (String, u32)> {
    let entries = fs::read_dir(bus.join("devices")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let text = fs::read_to_string(entry.path().join("device")).ok()?;
        let kind = u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()?;
        Some((entry.file_name().into_string().ok()?, kind))
    })
}

fn probe(bus: &Path, of: impl Fn(u32) -> bool) {
    for (name, kind) in devices(bus).filter(|(_, kind)| of(*kind)) {
        // Whoever needs the device waits for it, and fails with an error of its own.
        if let Err(e) = fs::write(bus.join("drivers_probe"), &name) {
            eprintln!("guest: no driver takes the virtio device {name} of type {kind}: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bus as the kernel shows it: a stream, a source of random numbers, and what is no device.
    fn bus(name: &str) -> std::path::PathBuf {
        let bus = std::env::temp_dir().join(format!("virtio-bus-{name}-{}", std::process::id()));
        for (name, kind) in [("virtio0", "0x0013\n"), ("virtio1", "0x0004\n"), ("virtio2", "nothing")] {
            fs::create_dir_all(bus.join("devices").join(name)).unwrap();
            fs::write(bus.join("devices").join(name).join("device"), kind).unwrap();
        }
        bus
    }

    #[test]
    fn the_driver_of_a_network_card_is_for_a_machine_that_has_one() {
        let bus = bus("card");
        assert!(!has_on(&bus, NETWORK_CARD) && has_on(&bus, STREAM));
        assert!(!has_on(&bus.join("none"), NETWORK_CARD));
        fs::write(bus.join("devices/virtio2/device"), "0x0001\n").unwrap();
        assert!(has_on(&bus, NETWORK_CARD));
        fs::remove_dir_all(&bus).unwrap();
    }

    #[test]
    fn drivers_look_at_the_devices_they_are_told_of() {
        let bus = bus("probe");
        probe(&bus, |kind| kind == RANDOM);
        assert_eq!(fs::read_to_string(bus.join("drivers_probe")).unwrap(), "virtio1");
        fs::remove_dir_all(&bus).unwrap();
    }
}
