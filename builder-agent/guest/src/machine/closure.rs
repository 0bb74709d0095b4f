//! Finds and mounts the closure: one read-only EROFS image on a device that is backed by the host's memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys;

/// Time for the kernel to find its devices. It needs milliseconds; emulated machines need more.
pub const DEVICE_WAIT: Duration = Duration::from_secs(20);

/// Persistent memory first: reads from it are reads of the host's page cache, without a copy.
const DEVICES: [&str; 3] = ["/dev/pmem0", "/dev/vda", "/dev/vdb"];

const FLAGS: libc::c_ulong = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;

/// Mounts the closure; returns the directory that lists its store paths.
pub fn mount() -> io::Result<PathBuf> {
    let target = target()?;
    let device = wait_for_device(None)?;
    if device.starts_with("/dev/pmem") {
        match sys::mount(device, &target, "erofs", FLAGS, "dax=always") {
            Ok(()) => return Ok(target),
            // Without direct access the closure works through this machine's page cache, at the price of a copy.
            Err(e) => eprintln!("guest: no direct access to the closure: {e}"),
        }
    }
    sys::mount(device, &target, "erofs", FLAGS, "")?;
    Ok(target)
}

/// Mounts the closure of a home, which is its root: a compressed image, so that there can be no direct access. `disk`: the
/// name of another device, which is no closure.
pub fn mount_compressed(disk: &str) -> io::Result<PathBuf> {
    let target = target()?;
    sys::mount(wait_for_device(Some(disk))?, &target, "erofs", FLAGS, "")?;
    Ok(target)
}

fn target() -> io::Result<PathBuf> {
    let target = PathBuf::from("/closure");
    fs::create_dir_all(&target)?;
    Ok(target)
}

fn wait_for_device(except: Option<&str>) -> io::Result<&'static str> {
    let is_other = |device: &&str| device.strip_prefix("/dev/") != except;
    let began = Instant::now();
    loop {
        if let Some(device) = DEVICES.into_iter().filter(is_other).find(|d| Path::new(d).exists()) {
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
