//! Loads the kernel modules that the image put into the initrd, in its order.

use std::fs::{self, File};
use std::path::Path;

use crate::sys;

/// Loads each file named in `dir`/order. A module that is missing or refused causes a warning only: either
/// its device is built into this kernel, or a later step fails and names the device.
pub fn load_all(dir: &Path) {
    let order = match fs::read_to_string(dir.join("order")) {
        Ok(order) => order,
        Err(e) => {
            eprintln!("guest: cannot read {}/order, loading no modules: {e}", dir.display());
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
