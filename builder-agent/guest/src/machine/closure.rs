//! Finds and mounts the closure: one read-only EROFS image on a device that is backed by the host's memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys;

/// Time for the kernel to find its devices. It needs milliseconds; emulated machines need more.
const DEVICE_WAIT: Duration = Duration::from_secs(20);

/// Persistent memory first: reads from it are reads of the host's page cache, without a copy.
const DEVICES: [&str; 2] = ["/dev/pmem0", "/dev/vda"];

/// Mounts the closure; returns the directory that lists its store paths.
pub fn mount() -> io::Result<PathBuf> {
    let target = PathBuf::from("/closure");
    fs::create_dir_all(&target)?;
    let device = wait_for_device()?;
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    if device.starts_with("/dev/pmem")
        && let Err(e) = sys::mount(device, &target, "erofs", flags, "dax=always")
    {
        // Without direct access the closure works through this machine's page cache, at the price of a copy.
        eprintln!("guest: no direct access to the closure: {e}");
    } else if device.starts_with("/dev/pmem") {
        return Ok(target);
    }
    sys::mount(device, &target, "erofs", flags, "")?;
    Ok(target)
}

fn wait_for_device() -> io::Result<&'static str> {
    let began = Instant::now();
    loop {
        if let Some(device) = DEVICES.into_iter().find(|d| Path::new(d).exists()) {
            return Ok(device);
        }
        if began.elapsed() > DEVICE_WAIT {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no closure device appeared within {}s: {DEVICES:?}", DEVICE_WAIT.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
