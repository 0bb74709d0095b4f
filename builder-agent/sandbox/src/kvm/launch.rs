//! Starts a VMM process and makes sure that it ends.
//!
//! The process is this executable again, with `__vmm` as its argument: no second binary to install, version, or
//! find. A thread of ours stays with it from birth to burial, because the kernel ties two things to the thread that
//! makes a process: the PID namespace of its children, and the signal that kills them when it ends.

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

/// First argument of a VMM process. `child_main_if_requested` looks for it.
pub const ARGUMENT: &str = "__vmm";

/// A running VMM process. Dropping it kills and reaps the process.
pub struct Vmm {
    pid: u32,
    pidfd: OwnedFd,
    keeper: Option<JoinHandle<io::Result<ExitStatus>>>,
    pub control: UnixStream,
    console: File,
    stderr: File,
    /// After the process: a cgroup can be removed only when it is empty.
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
        let (born, birth) = mpsc::channel();
        let keeper = std::thread::Builder::new().name("vmm-keeper".to_owned()).spawn(move || {
            if is_root() {
                // Only this thread's children are affected. Without the right to it the VM does without, and its
                // report says so.
                // SAFETY: unshare takes no pointers; CLONE_NEWPID changes nothing for the threads we have.
                unsafe { libc::unshare(libc::CLONE_NEWPID) };
            }
            let spawned = command.spawn().and_then(|child| {
                // Before anybody can reap it, so that the descriptor means this process and no later one.
                let pid = Pid::from_child(&child);
                Ok((pidfd_open(pid, PidfdFlags::empty())?, child))
            });
            // Our copies of its descriptors would keep its socket open after its death.
            drop(command);
            match spawned {
                Ok((pidfd, mut child)) => {
                    let _ = born.send(Ok((child.id(), pidfd)));
                    child.wait()
                }
                Err(e) => {
                    let _ = born.send(Err(e));
                    Err(io::Error::other("never started"))
                }
            }
        })?;
        let (pid, pidfd) = birth.recv().map_err(|_| io::Error::other("the keeper of the VMM is gone"))??;
        Ok(Vmm { pid, pidfd, keeper: Some(keeper), control, console, stderr, group: None })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn console(&self) -> BorrowedFd<'_> {
        self.console.as_fd()
    }

    /// Puts the process under the limits of a cgroup. Before it is told anything, so before it can use memory.
    pub fn limit(&mut self, hierarchy: &Hierarchy, memory_mib: u32, vcpus: u8) -> io::Result<()> {
        self.group = Some(hierarchy.place(self.pid, memory_mib.into(), vcpus)?);
        Ok(())
    }

    pub fn was_killed_for_memory(&self) -> bool {
        self.group.as_ref().is_some_and(Group::was_out_of_memory)
    }

    /// The last of the guest's console, then of the VMM's stderr; printable, bounded.
    pub fn last_words(&self) -> String {
        let mut bytes = console::tail(&self.console).unwrap_or_default();
        // Its size is limited by the VMM's RLIMIT_FSIZE; we read no more than that even so.
        let mut stderr = vec![0; 4096];
        let n = std::os::unix::fs::FileExt::read_at(&self.stderr, &mut stderr, 0).unwrap_or(0);
        bytes.extend_from_slice(&stderr[..n]);
        let text = String::from_utf8_lossy(&bytes);
        text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
    }

    /// Gives a process that is ending the time to do so, so that [`end`](Self::end) tells its own way of ending.
    pub fn let_end(&self, patience: Duration) {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // Whatever happened here, it is ended next.
        let _ = poll(&mut fds, Timespec::try_from(patience).ok().as_ref());
    }

    /// Kills and reaps the process; how it ended, if anybody wants to know.
    pub fn end(&mut self) -> Option<ExitStatus> {
        let keeper = self.keeper.take()?;
        // Fails only if it is dead already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        keeper.join().ok()?.ok()
    }

    /// Memory of the process that is not in one of the `guest` ranges; see `overhead`.
    pub fn overhead(&self, guest: &[(u64, u64)]) -> Option<u64> {
        super::overhead::of_process(self.pid, guest)
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
