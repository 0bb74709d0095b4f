//! A child of this process, which ends it in every case.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::{parent, usage};

/// A child. Its number is its own until it was reaped. Dropping it kills and reaps it.
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
    is_reaped: bool,
}

impl Process {
    /// Starts a program, which dies with this one if it asks for that. `own_pids`: in a PID namespace of its own, if this
    /// process is root.
    pub fn start(command: Command, own_pids: bool) -> io::Result<Process> {
        let pid = parent::spawn(command, own_pids)?.id();
        Process::taken_over(pid).inspect_err(|_| usage::end_child(pid))
    }

    /// `pid` is a child of this process that was not reaped yet.
    pub fn taken_over(pid: u32) -> io::Result<Process> {
        Ok(Process { pid, pidfd: usage::pidfd_of_child(pid)?, is_reaped: false })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for a process that is ending, so that its status is its own and not that of a kill. Returns whether it has ended.
    pub fn let_end(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // An error has no consequence: the caller ends the process next.
        poll(&mut fds, Timespec::try_from(patience).ok().as_ref()).is_ok_and(|ready| ready > 0)
    }

    pub fn is_reaped(&self) -> bool {
        self.is_reaped
    }

    /// Whether it ran until now.
    pub fn kill(&self) -> bool {
        !self.is_reaped
            && !self.let_end(Duration::ZERO)
            && pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok()
    }

    /// Waits for its end, once. Gives the status and the processor time, also of its children that it waited for.
    pub fn reap(&mut self) -> Option<(ExitStatus, Duration)> {
        if std::mem::replace(&mut self.is_reaped, true) {
            return None;
        }
        usage::reap(self.pid).ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}
