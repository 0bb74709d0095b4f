//! Own namespaces and an empty root.
//!
//! If root started the agent, the agent has already put this process into a PID namespace (a process cannot
//! move itself). If another user started it, a user namespace gives the right to the other namespaces; a PID
//! namespace would then need a second process per VM and is left out.

use std::io;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_move, mount_remount, unmount,
};

use super::{JailError, Report, Step, cannot};

/// Directories that exist on any Linux; the new root is mounted over the first one that can be covered, for a
/// moment.
const COVERABLE: [&str; 3] = ["/tmp", "/run", "/proc"];

pub fn enter(privileged: bool, report: &mut Report) -> Result<(), JailError> {
    let mut flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    if !privileged {
        flags |= libc::CLONE_NEWUSER;
    }
    // SAFETY: unshare takes no pointers; this process has one thread (`child` calls this first), so no other
    // thread loses a resource that it shares with this one.
    if unsafe { libc::unshare(flags) } != 0 {
        // Some hosts forbid user namespaces to ordinary users, and some processes even root.
        report.missing(Step::Namespaces, io::Error::last_os_error());
        return Ok(());
    }
    report.active("mount, net, ipc, uts, cgroup namespaces");
    if !privileged {
        report.active("user namespace");
    }
    empty_root()?;
    report.active("empty root");
    Ok(())
}

/// Notes whether the agent put this process into a PID namespace of its own, where it is process 1.
pub fn note_pid_namespace(report: &mut Report) {
    // SAFETY: getpid only returns a number.
    if unsafe { libc::getpid() } == 1 {
        report.active("pid namespace");
    } else {
        report.missing(Step::PidNamespace, "only root can give one");
    }
}

fn empty_root() -> Result<(), JailError> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(cannot("make the mounts private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"size=4k,nr_inodes=1,mode=555";
    let at = COVERABLE
        .iter()
        .find(|at| mount("barnraiser", **at, "tmpfs", flags, options).is_ok())
        .ok_or_else(|| JailError {
            what: "mount an empty root over /tmp, /run or /proc",
            source: io::ErrorKind::PermissionDenied.into(),
        })?;
    rustix::process::chdir(*at).map_err(cannot("enter the empty root"))?;
    match rustix::process::pivot_root(".", ".") {
        // The old root ends up on top of the new one and is then unmounted. pivot_root(2), NOTES.
        Ok(()) => unmount(".", UnmountFlags::DETACH).map_err(cannot("unmount the old root"))?,
        // The root is the initramfs, which cannot be pivoted: cover it as switch_root does. Without capabilities
        // no process can leave a chroot at the top of the mount tree.
        Err(rustix::io::Errno::INVAL) => {
            mount_move(".", "/").map_err(cannot("move the empty root over the old one"))?;
            rustix::process::chroot(".").map_err(cannot("change root"))?;
        }
        Err(e) => return Err(cannot("pivot into the empty root")(e)),
    }
    rustix::process::chdir("/").map_err(cannot("enter the new root"))?;
    mount_remount("/", flags | MountFlags::RDONLY, options).map_err(cannot("make the root read-only"))?;
    debug_assert!(rustix::fs::statat(CWD, "/proc", rustix::fs::AtFlags::empty()).is_err());
    Ok(())
}
