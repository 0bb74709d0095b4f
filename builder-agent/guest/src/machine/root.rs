//! The builder's root file system in a micro-VM, with the files that Nix's sandbox has.
//!
//! Everything that a builder can write lies on one tmpfs (`/rw`), so that one size limits it: a full disk
//! causes "no space left on device" and does not exhaust the machine's memory.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::builder::{self, BUILD_GID, BUILD_UID};
use crate::sys;

/// Share of the memory that files may use, in percent. The rest is for programs.
pub const DISK_PERCENT: u64 = 75;

/// Devices, with their Linux numbers (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// All memory this machine has, in bytes.
pub fn memory_bytes() -> io::Result<u64> {
    memory_info("MemTotal")
}

/// The memory that programs can still have, in bytes, as the kernel estimates it.
pub fn available_bytes() -> io::Result<u64> {
    memory_info("MemAvailable")
}

fn memory_info(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("no {name} in /proc/meminfo")))
}

/// Makes the builder's root. `closure` becomes the read-only lower half of /nix/store.
pub fn build(closure: Option<&Path>, memory: u64) -> io::Result<PathBuf> {
    let (rw, root) = (Path::new("/rw"), PathBuf::from("/root"));
    let disk = memory / 100 * DISK_PERCENT;
    tmpfs(rw, &format!("size={disk},mode=0755"))?;
    tmpfs_with_devices(&root, "size=16m,mode=0755")?;

    for dir in ["nix/store", "build", "tmp", "bin", "dev", "proc", "etc"] {
        fs::create_dir_all(root.join(dir))?;
    }
    store(rw, &root, closure)?;
    for (dir, mode) in [("build", 0o700), ("tmp", 0o1777)] {
        let real = rw.join(dir);
        fs::create_dir(&real)?;
        fs::set_permissions(&real, Permissions::from_mode(mode))?;
        bind(&real, &root.join(dir))?;
    }
    chown(rw.join("build"), Some(BUILD_UID), Some(BUILD_GID))?;
    devices(&root.join("dev"), "mode=0620", disk)?;
    fs::copy("/bin/busybox", root.join("bin/sh"))
        .map_err(|e| io::Error::new(e.kind(), format!("cannot copy /bin/busybox to /bin/sh: {e}")))?;
    fs::set_permissions(root.join("bin/sh"), Permissions::from_mode(0o555))?;
    builder::write_etc(&root)?;
    Ok(root)
}

/// Makes the root itself read-only. The file systems that are mounted in it stay writable.
pub fn seal(root: &Path) -> io::Result<()> {
    sys::mount("none", root, "", libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID, "size=16m,mode=0755")
}

fn store(rw: &Path, root: &Path, closure: Option<&Path>) -> io::Result<()> {
    let (upper, work, store) = (rw.join("upper"), rw.join("work"), root.join("nix/store"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    // As in Nix: the builder may add entries to the store and may not remove any.
    chown(&upper, Some(0), Some(BUILD_GID))?;
    fs::set_permissions(&upper, Permissions::from_mode(0o1775))?;
    let Some(closure) = closure else { return bind(&upper, &store) };
    let options =
        format!("lowerdir={},upperdir={},workdir={}", closure.display(), upper.display(), work.display());
    sys::mount("overlay", &store, "overlay", libc::MS_NOSUID | libc::MS_NODEV, &options)
}

/// Fills /dev. `terminals`: mode and owners of those in /dev/pts.
pub fn devices(dev: &Path, terminals: &str, disk: u64) -> io::Result<()> {
    for (name, major, minor) in DEVICES {
        sys::make_device(&dev.join(name), major, minor)?;
    }
    for dir in ["pts", "shm"] {
        fs::create_dir(dev.join(dir))?;
    }
    let pts = libc::MS_NOSUID | libc::MS_NOEXEC;
    sys::mount("devpts", &dev.join("pts"), "devpts", pts, &format!("newinstance,ptmxmode=0666,{terminals}"))?;
    let shm = format!("size={},mode=1777", disk / 2);
    sys::mount("shm", &dev.join("shm"), "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, &shm)?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

pub fn tmpfs(target: &Path, options: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    sys::mount("tmpfs", target, "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, options)
}

pub fn tmpfs_with_devices(target: &Path, options: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    sys::mount("tmpfs", target, "tmpfs", libc::MS_NOSUID, options)
}

pub fn bind(from: &Path, to: &Path) -> io::Result<()> {
    sys::mount(&from.display().to_string(), to, "", libc::MS_BIND, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_can_have_a_part_of_the_memory() {
        let (all, available) = (memory_bytes().unwrap(), available_bytes().unwrap());
        assert!(available > 0 && available < all, "{available} {all}");
        assert!(memory_info("Mem").unwrap_err().to_string().contains("no Mem in"));
    }
}
