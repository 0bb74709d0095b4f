//! One running bubblewrap: starts it, reads its messages when it fails, and ends it in every case.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::NamespaceConfig;
use super::arguments::{self, Inherited, View};
use super::scratch::Scratch;
use super::stage::Stage;
use crate::backend::FarEnd;
use crate::descriptors::Received;
use crate::error::SandboxError;
use crate::parent;
use crate::paused::PausedMachine;
use crate::text;
use crate::usage::{self, Usage};

/// Most bytes of bubblewrap's and the guest's stderr that an error quotes.
const LAST_WORDS: u64 = 2048;

/// bubblewrap forks at once; only an overloaded machine needs longer.
const INFO_WAIT: Duration = Duration::from_secs(30);

/// Size of the message: a pid and a few namespace numbers.
const MAX_INFO: usize = 4096;

/// A bubblewrap process and all its descendants. Dropping it ends them.
pub struct Running {
    /// A child of this process. None once it was reaped.
    pid: Option<u32>,
    /// PID 1 of the sandbox, once bubblewrap has reported it.
    init: Option<OwnedFd>,
    stderr: File,
    /// Kept because its files are mounted in the sandbox.
    scratch: Arc<Scratch>,
    usage: Usage,
}

/// Starts the guest; returns our end of the stream, too.
pub fn start(
    config: &NamespaceConfig,
    scratch: Arc<Scratch>,
    trees: &[(String, PathBuf)],
    memory_mib: u32,
) -> Result<(Running, UnixStream), SandboxError> {
    let unavailable = |what: &str, e: io::Error| SandboxError::Unavailable { why: format!("{what}: {e}") };
    let (stream, far_stream) = UnixStream::pair().map_err(|e| unavailable("cannot make a socket pair", e))?;
    let (info, far_info) = io::pipe().map_err(|e| unavailable("cannot make a pipe", e))?;
    let stderr = rustix::fs::memfd_create("sandbox-stderr", rustix::fs::MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|e| unavailable("cannot make a memory file", e.into()))?;

    let mut view = View { etc: scratch.etc(), guest: config.guest.clone(), shell: config.shell.clone() };
    let stage =
        Stage::new(&scratch.stage(), view.sources(), trees, arguments::disk(memory_mib), config.user)?;
    // Only its number matters: the child replaces it with the store.
    let store = File::open("/dev/null").map_err(|e| unavailable("cannot open /dev/null", e))?;

    let inherited =
        Inherited { stream: far_stream.as_raw_fd(), info: far_info.as_raw_fd(), store: store.as_raw_fd() };
    let mut command = Command::new(&config.bwrap);
    command
        .args(view.arguments(memory_mib, inherited))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr.try_clone().map_err(|e| unavailable("cannot share a descriptor", e))?);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    // SAFETY: the closure makes system calls on things made beforehand and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            [inherited.stream, inherited.info].into_iter().try_for_each(keep_over_exec)?;
            stage.enter(inherited.store)
        });
    }
    let child = parent::spawn(command, false).map_err(|e| match last_words(&stderr) {
        words if words.is_empty() => SandboxError::Unavailable {
            why: format!(
                "cannot start bubblewrap ({}): {e}; install the package bubblewrap, or use a machine with KVM",
                config.bwrap.display()
            ),
        },
        step => SandboxError::Setup { why: format!("{step}: {e}") },
    })?;
    // The closure has numbers, not descriptors. The agent's copies are closed here, so that only the child
    // has them.
    drop((far_stream, far_info, store));
    let mut running = Running { pid: Some(child.id()), init: None, stderr, scratch, usage: Usage::default() };
    running.init = read_info(info).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    Ok((running, stream))
}

/// For a forked child: async-signal-safe.
fn keep_over_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; the number is open, its owner lives until spawn has returned.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// bubblewrap writes the pid of its child as JSON. None if it fails before; then the stream ends, too.
fn read_info(mut info: io::PipeReader) -> Option<Pid> {
    #[derive(serde::Deserialize)]
    struct Info {
        #[serde(rename = "child-pid")]
        child_pid: i32,
    }
    let end = Instant::now() + INFO_WAIT;
    let (mut text, mut buffer) = (Vec::new(), [0; 1024]);
    // bubblewrap writes in pieces, and a pipe that is closed between two would kill it while its child waits for it. So
    // this reads until the object is complete.
    while text.len() < MAX_INFO {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&info, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        match info.read(&mut buffer).ok()? {
            0 => return None,
            n => text.extend_from_slice(&buffer[..n]),
        }
        if let Ok(told) = serde_json::from_slice::<Info>(&text) {
            return Pid::from_raw(told.child_pid);
        }
    }
    None
}

/// A bubblewrap that another program has started, and paused the build in.
pub fn taken_over(paused: PausedMachine, received: &mut Received) -> io::Result<Running> {
    let PausedMachine::Namespace { pid, init, stderr, scratch: (dir, lock) } = paused else {
        return Err(io::Error::other("not a namespace sandbox"));
    };
    usage::pidfd_of_child(pid)?;
    let init = init.map(|number| received.take(number)).transpose()?;
    let stderr = received.take(stderr)?.into();
    let scratch = received.share(lock, |lock| Scratch::taken_over(dir, lock))?;
    Ok(Running { pid: Some(pid), init, stderr, scratch, usage: Usage::default() })
}

impl Running {
    /// Kills every process of the sandbox and waits until the last is gone.
    fn kill(&mut self) {
        let Some(pid) = self.pid.take() else { return };
        match &self.init {
            Some(init) => {
                // The end of this process ends the PID namespace; then bubblewrap outside ends by itself.
                let _ = pidfd_send_signal(init.as_fd(), Signal::KILL);
                let mut fds = [PollFd::new(init, PollFlags::IN)];
                while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
            }
            None => {
                // Not reaped yet, so the number is still its own.
                let _ = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, Signal::KILL));
            }
        }
        // bubblewrap has waited for the first process of the sandbox, and the kernel ended all others with
        // that process.
        if let Ok((_, cpu)) = usage::reap(pid) {
            self.usage.cpu = cpu;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl FarEnd for Running {
    fn last_words(&mut self) -> String {
        last_words(&self.stderr)
    }

    fn written_down(&self) -> Option<PausedMachine> {
        let (init, stderr) = (self.init.as_ref().map(AsRawFd::as_raw_fd), self.stderr.as_raw_fd());
        let scratch = self.scratch.written_down();
        self.pid.map(|pid| PausedMachine::Namespace { pid, init, stderr, scratch })
    }

    fn end(&mut self) -> Usage {
        self.kill();
        self.usage
    }
}

/// The end of what bubblewrap and the guest, or the stage before them, wrote to stderr.
fn last_words(mut stderr: &File) -> String {
    let mut bytes = Vec::new();
    let read = stderr.seek(SeekFrom::End(0)).and_then(|end| {
        stderr.seek(SeekFrom::Start(end.saturating_sub(LAST_WORDS)))?;
        stderr.take(LAST_WORDS).read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(text::rest(&bytes)).into_owned(),
        Err(e) => format!("(its messages cannot be read: {e})"),
    }
}
