//! The resources that a machine used, as the kernel counted them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

/// The resources that one run used, from the start of its machine to its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of every process of the machine, also of those of its network, and of the host's kernel on its behalf.
    /// From the machine's cgroup, or, without one, from wait4(2), which adds up a process and all its descendants that were
    /// waited for.
    pub cpu: Duration,
    /// The peak of its memory. For a micro-VM: memory that the host gave to it, from its cgroup, or, without
    /// a cgroup, from its process. For a namespace sandbox: the guest's own count, which it makes several
    /// times a second.
    pub peak_memory: Option<u64>,
    /// Memory of the VMM process that is neither guest memory nor closure; None except for a micro-VM.
    pub vmm_overhead: Option<u64>,
    /// Bytes sent to the machine: the job and its files. Inputs are mapped and not sent.
    pub bytes_in: u64,
    /// Bytes received from the machine: log and outputs.
    pub bytes_out: u64,
    /// Bytes of frames of its network, in both directions.
    pub network: u64,
}

/// A descriptor of a child of this process that was not reaped yet: another process cannot have its number.
pub(crate) fn pidfd_of_child(pid: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::other(format!("{pid} is no process")))?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // Fails for a process that is no child.
    waitid(WaitId::Pid(number), look)?;
    Ok(pidfd_open(number, PidfdFlags::empty())?)
}

/// Kills a child of this process, with the processes that die with it. Does nothing if it is no child, or was reaped.
pub(crate) fn end_child(pid: u32) {
    if let Ok(child) = pidfd_of_child(pid) {
        let _ = pidfd_send_signal(&child, Signal::KILL);
        let _ = reap(pid);
    }
}

/// Waits for the end of a child of this process; gives its status and its processor time. Its process id means nothing
/// afterwards.
pub(crate) fn reap(pid: u32) -> io::Result<(ExitStatus, Duration)> {
    let (mut status, mut used) = (0, MaybeUninit::<libc::rusage>::zeroed());
    loop {
        // SAFETY: both pointers are valid for writes of their types until the call returns.
        let pid = unsafe { libc::wait4(pid as libc::pid_t, &raw mut status, 0, used.as_mut_ptr()) };
        if pid >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed above, and rusage is integers only, so it is initialised whatever the kernel wrote.
    let used = unsafe { used.assume_init() };
    // Not `ru_maxrss`: it starts at the size that the agent had when it started the process.
    Ok((ExitStatus::from_raw(status), duration(used.ru_utime) + duration(used.ru_stime)))
}

/// The kernel never returns negative numbers here, nor a million microseconds.
fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
        + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_and_the_children_it_waited_for_are_counted() {
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let idle = reap(Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap().id()).unwrap();
        // The shell that is started waits for the one that works.
        let script = format!("sh -c '{work}'; exit 4");
        let busy = reap(Command::new("sh").args(["-c", &script]).spawn().unwrap().id()).unwrap();
        assert_eq!((idle.0.code(), busy.0.code()), (Some(3), Some(4)));
        assert!(busy.1 > idle.1 + Duration::from_millis(20), "{idle:?} {busy:?}");
    }
}
