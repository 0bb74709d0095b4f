//! The root of a home: the image below, and above it a tmpfs with everything that is written.
//!
//! One size limits all of it, as in a build. Places in which programs write much lie on the tmpfs itself.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::machine::root::{DISK_PERCENT, bind, devices, tmpfs, tmpfs_with_devices};
use crate::sys;

/// Own places on the tmpfs, and their modes. The store as Nix has it: who writes there is root alone.
const OPEN_PLACES: [(&str, u32); 4] =
    [("tmp", 0o1777), ("var/tmp", 0o1777), ("home", 0o755), ("nix/store", 0o1775)];

/// The group `tty` of Debian's base-passwd. Its members may write to terminals; a member's own has this group.
const TERMINALS: &str = "gid=5,mode=0620";

/// Everything in /run, such as the log of the sshds.
const RUN_SIZE: &str = "size=16m,mode=0755";

/// Makes the root over the image `lower`, in folders of `base`; returns where it is.
pub fn build(lower: &Path, base: &Path, memory: u64) -> io::Result<PathBuf> {
    let (rw, root) = (base.join("rw"), base.join("root"));
    let disk = memory / 100 * DISK_PERCENT;
    tmpfs(&rw, &format!("size={disk},mode=0755"))?;
    let (upper, work) = (rw.join("upper"), rw.join("work"));
    for dir in [&upper, &work, &root] {
        fs::create_dir_all(dir)?;
    }
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    sys::mount("overlay", &root, "overlay", libc::MS_NOSUID | libc::MS_NODEV, &layers)?;

    for (place, mode) in OPEN_PLACES {
        let (real, shown) = (rw.join(place.replace('/', "-")), root.join(place));
        fs::create_dir(&real)?;
        fs::set_permissions(&real, Permissions::from_mode(mode))?;
        fs::create_dir_all(&shown)?;
        bind(&real, &shown)?;
    }
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    for (kind, place, flags) in [("proc", "proc", flags), ("sysfs", "sys", flags | libc::MS_RDONLY)] {
        let target = root.join(place);
        fs::create_dir_all(&target)?;
        sys::mount(kind, &target, kind, flags, "")?;
    }
    tmpfs(&root.join("run"), RUN_SIZE)?;
    let dev = root.join("dev");
    tmpfs_with_devices(&dev, "size=1m,mode=0755")?;
    devices(&dev, TERMINALS, disk)?;
    Ok(root)
}
