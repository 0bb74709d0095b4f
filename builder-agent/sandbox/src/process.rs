//! A child of this process, which ends it in every case.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Signal, pidfd_send_signal};

use crate::{parent, usage};

/// Most bytes of a stderr that are read.
const LAST_WORDS: usize = 4096;

/// An empty file in memory.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

/// What a process wrote to such a file, from the start. Its size is limited by the process' RLIMIT_FSIZE, and no more than
/// [`LAST_WORDS`] is read in any case.
pub(crate) fn words(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LAST_WORDS];
    let n = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(n);
    bytes
}

/// A child. Its number is its own until it was reaped. Dropping it kills and reaps it.
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
    is_reaped: bool,
}

impl Process {
    /// Starts a program, which dies with this one if it asks for that. `own_pids`: in a PID namespace of its own, if this
    /// process is root.
    fn start(command: Command, own_pids: bool) -> io::Result<Process> {
        let pid = parent::spawn(command, own_pids)?.id();
        Process::taken_over(pid).inspect_err(|_| usage::end_child(pid))
    }

    /// Starts this executable again, as what `argument` says (`child`): in a PID namespace of its own, with `socket` as its stdin.
    /// Also returns the file in memory that takes its stderr.
    pub fn again(executable: &Path, argument: &str, socket: UnixStream) -> io::Result<(Process, File)> {
        let stderr = memory_file("stderr")?;
        let mut command = Command::new(executable);
        command
            .arg(argument)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .stderr(stderr.try_clone()?);
        Ok((Process::start(command, true)?, stderr))
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
