//! Loads the kernel modules that the image put into the initrd, in its order: those that every guest needs, those for
//! a network card, if the machine has one, and those for homes.

use std::fs::{self, File};
use std::path::Path;

use super::devices;
use crate::sys;

/// Loads the modules that this machine needs.
pub fn load_all(dir: &Path) {
    load(dir, "order");
    if devices::has(devices::NETWORK_CARD) {
        load(dir, "network");
    }
}

/// Loads the modules that only a home needs.
pub fn load_for_home(dir: &Path) {
    load(dir, "home");
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
        // The bus itself may be in one of the modules.
        devices::hold_back();
        let path = dir.join(name.trim_start_matches('/').trim_start_matches("modules/"));
        if let Err(e) = File::open(&path).and_then(|file| sys::load_module(&file)) {
            eprintln!("guest: cannot load {}: {e}", path.display());
        }
    }
}
