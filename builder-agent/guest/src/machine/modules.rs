//! Loads the kernel modules that the image put into the initrd, in its order: those that every guest needs, those for
//! a network card, if the machine has one, and those for homes.

use std::fs::{self, File};
use std::path::Path;

use crate::sys;

/// virtio 1.2, section 5: device types.
const NETWORK_CARD: u32 = 1;

/// Loads the modules that this machine needs.
pub fn load_all(dir: &Path) {
    load(dir, "order");
    if has_virtio_device(Path::new("/sys/bus/virtio/devices"), NETWORK_CARD) {
        load(dir, "network");
    }
}

/// Loads the modules that only a home needs.
pub fn load_for_home(dir: &Path) {
    load(dir, "home");
}

/// Whether the bus of virtio devices, which the modules before have filled, has a device of this type.
fn has_virtio_device(bus: &Path, kind: u32) -> bool {
    let Ok(devices) = fs::read_dir(bus) else { return false };
    devices.flatten().any(|device| {
        let text = fs::read_to_string(device.path().join("device")).unwrap_or_default();
        text.trim().strip_prefix("0x").is_some_and(|hex| u32::from_str_radix(hex, 16) == Ok(kind))
    })
}

/// Loads each file named in the list. A module that is missing or refused causes a warning only: either its device is
/// built into this kernel, or a later step fails and names the device.
fn load(dir: &Path, list: &str) {
    let order = match fs::read_to_string(dir.join(list)) {
        Ok(order) => order,
        Err(e) => {
            eprintln!("guest: cannot read {}/{list}, loading none of its modules: {e}", dir.display());
            return;
        }
    };
    for name in order.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let path = dir.join(name.trim_start_matches('/').trim_start_matches("modules/"));
        if let Err(e) = File::open(&path).and_then(|file| sys::load_module(&file)) {
            eprintln!("guest: cannot load {}: {e}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_of_a_network_card_is_for_a_machine_that_has_one() {
        let bus = std::env::temp_dir().join(format!("virtio-bus-test-{}", std::process::id()));
        // As the kernel writes them: a stream, a source of random numbers.
        for (name, kind) in [("virtio0", "0x0013\n"), ("virtio1", "0x0004\n")] {
            fs::create_dir_all(bus.join(name)).unwrap();
            fs::write(bus.join(name).join("device"), kind).unwrap();
        }
        assert!(!has_virtio_device(&bus, NETWORK_CARD));
        assert!(!has_virtio_device(&bus.join("none"), NETWORK_CARD));
        fs::create_dir(bus.join("virtio2")).unwrap();
        assert!(!has_virtio_device(&bus, NETWORK_CARD));
        fs::write(bus.join("virtio2/device"), "0x0001\n").unwrap();
        assert!(has_virtio_device(&bus, NETWORK_CARD));
        fs::remove_dir_all(&bus).unwrap();
    }
}
