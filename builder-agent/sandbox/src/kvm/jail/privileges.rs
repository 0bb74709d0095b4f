//! Gives up every right this process has.

use std::io;

use super::{JailError, Report, Step, cannot};

/// Highest capability the kernel may know; those it does not know are refused with EINVAL and skipped.
const LAST_CAPABILITY: i32 = 63;
/// The VMM writes no files but the console ring (16 KiB) and stderr.
const FILE_SIZE: u64 = 64 * 1024;
/// Devices, vCPUs and eventfds of the largest VM, with room.
const OPEN_FILES: u64 = 1024;

/// Sets resource limits. They are lowered before any hostile code can run.
pub fn set_limits() -> Result<(), JailError> {
    for (resource, limit, what) in [
        // A core file would hold a member's sources.
        (libc::RLIMIT_CORE, 0, "forbid core files"),
        (libc::RLIMIT_FSIZE, FILE_SIZE, "limit file size"),
        (libc::RLIMIT_NOFILE, OPEN_FILES, "limit open files"),
        (libc::RLIMIT_MEMLOCK, 0, "forbid locked memory"),
        (libc::RLIMIT_MSGQUEUE, 0, "forbid message queues"),
    ] {
        let mut current = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `current` is a valid rlimit for the kernel to fill, and alive during the call.
        check(unsafe { libc::getrlimit(resource, &mut current) }, what)?;
        // Never raised: the host chose the lower limit, and raising it may not be allowed.
        let limit = limit.min(current.rlim_max);
        let wanted = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: `wanted` is a valid rlimit, read during the call only.
        check(unsafe { libc::setrlimit(resource, &wanted) }, what)?;
    }
    Ok(())
}

/// `uid`: the id to become, if this process may choose one.
pub fn drop_all(uid: Option<u32>, report: &mut Report) -> Result<(), JailError> {
    if let Some(id) = uid {
        for capability in 0..=LAST_CAPABILITY {
            // SAFETY: this prctl takes numbers only.
            let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            match check(dropped, "empty the bounding set of capabilities") {
                // Past the last one the kernel knows.
                Err(e) if e.source.raw_os_error() == Some(libc::EINVAL) => break,
                dropped => dropped?,
            }
        }
        // The system calls, not libc's wrappers: those would signal every thread to follow, and there are none.
        // SAFETY: an empty list, so the pointer is not read.
        check(unsafe { libc::setgroups(0, std::ptr::null()) }, "drop supplementary groups")?;
        // SAFETY: numbers only.
        check(unsafe { libc::setresgid(id, id, id) }, "become an unprivileged group")?;
        // SAFETY: numbers only.
        check(unsafe { libc::setresuid(id, id, id) }, "become an unprivileged user")?;
        report.active("unprivileged uid");
    } else {
        report.missing(Step::OwnUid, "the agent is not root and runs VMs as its own user");
    }
    clear_capabilities()?;
    report.active("no capabilities");
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, "forbid new privileges")?;
    report.active("no new privileges");
    // The change of ids cleared it (prctl(2), PR_SET_PDEATHSIG).
    die_with_parent()?;
    Ok(())
}

/// The kernel's preference to kill a VM when the machine is out of memory (-1000 to 1000). The agent's unit
/// sets -900, which a child would inherit. With this value a VM is killed before the agent, and before other
/// programs of the machine.
pub const OOM_SCORE: &str = "900";

/// Sets [`OOM_SCORE`]; must be called while /proc exists.
pub fn go_first_when_memory_is_short() -> Result<(), JailError> {
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE)
        .map_err(cannot("raise the score by which the kernel chooses what to end when memory is short"))
}

/// Makes the kernel kill the VM when the agent ends, even if the agent is killed.
pub fn die_with_parent() -> Result<(), JailError> {
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }, "ask to die with the agent")
}

fn clear_capabilities() -> Result<(), JailError> {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(cannot("drop all capabilities"))?;
    // SAFETY: numbers only.
    check(
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) },
        "drop ambient capabilities",
    )
}

fn check(result: libc::c_int, what: &'static str) -> Result<(), JailError> {
    if result == 0 { Ok(()) } else { Err(JailError { what, source: io::Error::last_os_error() }) }
}
