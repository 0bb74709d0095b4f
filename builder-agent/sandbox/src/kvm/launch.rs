//! Starts a VMM process and makes sure that it ends.
//!
//! The process is this executable again, with `__vmm` as its argument: no second binary to install, version,
//! or find. A thread of the agent starts the process and waits for its end, because the kernel ties two
//! things to the thread that creates a process: the PID namespace of its children, and the signal that kills
//! them when the thread ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::devices::console;
use super::jail::cgroup::{Group, Hierarchy};
use super::overhead;
use crate::usage::{self, Usage};

/// First argument of a VMM process. `child_main_if_requested` looks for it.
pub const ARGUMENT: &str = "__vmm";

/// A running VMM process. Dropping it kills and reaps the process.
pub struct Vmm {
    pid: u32,
    pidfd: OwnedFd,
    /// Returns the process's exit status and processor time. None after it was joined.
    keeper: Option<JoinHandle<io::Result<(ExitStatus, Duration)>>>,
    status: Option<ExitStatus>,
    usage: Usage,
    /// Address ranges of the process that are guest memory or closure.
    guest: Vec<(u64, u64)>,
    pub control: UnixStream,
    console: File,
    stderr: File,
    /// Dropped after the process: a cgroup can be removed only when it is empty.
    group: Option<Group>,
}

/// The memory file behind the guest's console or the VMM's stderr.
fn memory_file(name: &str, size: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

impl Vmm {
    /// `executable` is normally `/proc/self/exe`.
    pub fn launch(executable: &Path) -> io::Result<Vmm> {
        let (control, theirs) = UnixStream::pair()?;
        let console = memory_file("console", console::FILE_SIZE)?;
        let stderr = memory_file("stderr", 0)?;
        let mut command = Command::new(executable);
        command
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(stderr.try_clone()?);
        let (started, start) = mpsc::channel();
        let keeper = std::thread::Builder::new().name("vmm-keeper".to_owned()).spawn(move || {
            if is_root() {
                // Only this thread's children are affected. Without the right to it the VM has no PID
                // namespace, and its report says so. SAFETY: unshare takes no pointers; CLONE_NEWPID changes
                // nothing for the threads we have.
                unsafe { libc::unshare(libc::CLONE_NEWPID) };
            }
            let spawned = command.spawn().and_then(|child| {
                // Before the process can be reaped, so that the descriptor refers to this process and no
                // later one.
                let pid = Pid::from_child(&child);
                Ok((pidfd_open(pid, PidfdFlags::empty())?, child))
            });
            // The agent's copies of its descriptors would keep the socket open after the process has ended.
            drop(command);
            match spawned {
                Ok((pidfd, child)) => {
                    let _ = started.send(Ok((child.id(), pidfd)));
                    usage::reap(child)
                }
                Err(e) => {
                    let _ = started.send(Err(e));
                    Err(io::Error::other("never started"))
                }
            }
        })?;
        let (pid, pidfd) = start.recv().map_err(|_| io::Error::other("the keeper of the VMM is gone"))??;
        Ok(Vmm {
            pid,
            pidfd,
            keeper: Some(keeper),
            status: None,
            usage: Usage::default(),
            guest: Vec::new(),
            control,
            console,
            stderr,
            group: None,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn console(&self) -> BorrowedFd<'_> {
        self.console.as_fd()
    }

    /// Puts the process under the limits of a cgroup. Called before it gets its configuration, so before it
    /// can use memory.
    pub fn limit(&mut self, hierarchy: &Hierarchy, memory_mib: u32, vcpus: u8) -> io::Result<()> {
        self.group = Some(hierarchy.place(self.pid, memory_mib.into(), vcpus)?);
        Ok(())
    }

    pub fn was_killed_for_memory(&self) -> bool {
        self.group.as_ref().is_some_and(Group::was_out_of_memory)
    }

    /// The end of the guest's console output, then of the VMM's stderr; printable, limited in length.
    pub fn last_words(&self) -> String {
        let mut bytes = console::tail(&self.console).unwrap_or_default();
        // Its size is limited by the VMM's RLIMIT_FSIZE, and no more than this is read in any case.
        let mut stderr = vec![0; 4096];
        let n = std::os::unix::fs::FileExt::read_at(&self.stderr, &mut stderr, 0).unwrap_or(0);
        bytes.extend_from_slice(&stderr[..n]);
        printable::lines(&String::from_utf8_lossy(&bytes))
    }

    /// Waits for a process that is ending, so that [`end`](Self::end) gives its own status and not that of the kill.
    pub fn let_end(&self, patience: Duration) {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // An error has no consequence: the caller ends the process next.
        let _ = poll(&mut fds, Timespec::try_from(patience).ok().as_ref());
    }

    /// These ranges of the process' addresses are not the VMM's own memory.
    pub fn set_guest_ranges(&mut self, guest: Vec<(u64, u64)>) {
        self.guest = guest;
    }

    /// Kills and reaps the process; returns its status and its usage. Later calls return the same.
    pub fn end(&mut self) -> (Option<ExitStatus>, Usage) {
        if let Some(keeper) = self.keeper.take() {
            // Read before the kill, while the process has memory. If it has ended by itself and was reaped, its number
            // may belong to another process. The signal through the descriptor fails then, and the numbers are dropped.
            let (overhead, peak) = (overhead::of_process(self.pid, &self.guest), overhead::peak(self.pid));
            // Fails only if the process has ended already.
            if pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
                (self.usage.vmm_overhead, self.usage.peak_memory) = (overhead, peak);
            }
            if let Ok(Ok((status, cpu))) = keeper.join() {
                self.status = Some(status);
                self.usage.cpu = cpu;
            }
            // A cgroup keeps its number when the process is gone.
            let counted = self.group.as_ref().and_then(Group::peak_memory);
            self.usage.peak_memory = counted.or(self.usage.peak_memory);
        }
        (self.status, self.usage)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_vmm_process_used_is_known_when_it_was_killed() {
        let dir = std::env::temp_dir().join(format!("vmm-usage-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let script = dir.join("vmm");
        // Computes, then takes memory, and reports when both are done.
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let text = format!(
            "#!/bin/bash\n{work}; x=$(head -c 50000000 /dev/zero | tr '\\0' x); echo ok >&0; sleep 600"
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut vmm = Vmm::launch(&script).unwrap();
        let mut told = [0; 2];
        std::io::Read::read_exact(&mut &vmm.control, &mut told).unwrap();
        let (status, usage) = vmm.end();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(status.is_some_and(|status| !status.success()), "{status:?}");
        assert!(usage.cpu >= Duration::from_millis(20), "{usage:?}");
        assert!(usage.peak_memory.is_some_and(|peak| peak >= 50_000_000), "{usage:?}");
        assert!(usage.vmm_overhead.is_some_and(|bytes| bytes >= 50_000_000), "{usage:?}");
        assert_eq!(vmm.end(), (status, usage));
    }
}
