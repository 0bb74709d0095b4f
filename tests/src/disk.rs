//! File systems for tests: ext4 with a journal, in a file on this machine's disk, as on a box with a disk;
//! and a small one in memory, which a test can fill quickly.
//!
//! The other tests keep their stores in memory ([`place`](crate::place)), where nothing is ever flushed. Needs root, and
//! loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{place, process};

/// A mounted file system. Dropping it, and everything it holds, unmounts and frees it.
pub struct Disk {
    mount: PathBuf,
}

impl Disk {
    /// A file system in memory, with options of tmpfs(5) such as `size=48m,nr_inodes=2000`, which is full
    /// soon.
    #[track_caller]
    pub fn memory(options: &str) -> Self {
        let mount = Self::place();
        std::fs::create_dir(&mount).expect("a mount point");
        process::run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&mount)).ok();
        Self { mount }
    }

    /// A new file system of this size, as `mkfs.ext4` makes it: `data=ordered`, barriers, a journal.
    #[track_caller]
    pub fn ext4(mib: u64) -> Self {
        let mount = Self::place();
        let image = mount.with_extension("img");
        std::fs::create_dir(&mount).expect("a mount point");
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(mib << 20).expect("a sparse file");
        process::run(Command::new("mkfs.ext4").args(["-q", "-F", "-J", "size=64"]).arg(&image)).ok();
        process::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount)).ok();
        // The loop device keeps the file open; it disappears with the mount.
        std::fs::remove_file(&image).expect("the image has another owner now");
        Self { mount }
    }

    /// A new name for a mount point.
    fn place() -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let all = place::target().join("disks");
        std::fs::create_dir_all(&all).expect("a folder for disks");
        sweep(&all);
        all.join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The root of the file system.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that still has a file of it open delays the unmount and not this test.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        let _ = std::fs::remove_dir(&self.mount);
    }
}

/// Frees the file systems of killed tests.
fn sweep(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some((pid, _)) = name.split_once('-') else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = Command::new("umount").args(["-q", "-l"]).arg(entry.path()).status();
            let _ = std::fs::remove_dir(entry.path());
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
