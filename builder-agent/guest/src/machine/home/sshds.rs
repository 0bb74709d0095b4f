//! Starts sshds, one for each stream, and takes in every process that ends.
//!
//! Not here: their cgroup (`groups`), and the files that they read (`account`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};

use crate::sys;

const SSHD: &str = "/usr/sbin/sshd";
/// One connection, which is there already; messages to stderr.
const ARGUMENTS: [&str; 4] = ["-i", "-e", "-f", "/etc/ssh/sshd_config"];

/// As many as there are ports.
const MOST: usize = 64;

/// Its own end, or that of the connection.
const ORDINARY: [i32; 2] = [0, 255];

/// Most bytes of the log that are quoted.
const QUOTED: usize = 400;

/// What the member's programs can have open: the usual, and what they may raise it to.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// The sshds that run. The reaper has another.
#[derive(Clone)]
pub struct Sshds(Arc<Inner>);

struct Inner {
    /// The processes file of their cgroup.
    group: Arc<File>,
    log: PathBuf,
    running: Mutex<BTreeSet<i32>>,
    started: Condvar,
}

impl Sshds {
    /// Also starts the thread that takes in what has ended.
    pub fn new(group: Arc<File>, log: PathBuf) -> io::Result<Sshds> {
        let sshds = Sshds(Arc::new(Inner { group, log, running: Mutex::default(), started: Condvar::new() }));
        let reaper = sshds.clone();
        let thread = std::thread::Builder::new().name("reaper".into()).stack_size(256 * 1024);
        thread.spawn(move || reaper.reap())?;
        Ok(sshds)
    }

    /// Starts an sshd whose client is at the other end of this stream.
    pub fn start(&self, stream: OwnedFd) -> io::Result<()> {
        // Held until the process is in the list. The reaper takes it in after that, and leaves a start that fails to std.
        let mut running = self.running();
        if running.len() >= MOST {
            return Err(io::Error::other(format!("{MOST} sshds run already; close a connection")));
        }
        let log = File::options().append(true).create(true).open(&self.0.log)?;
        let mut command = Command::new(SSHD);
        command.args(ARGUMENTS).env_clear().current_dir("/");
        command.stdin(Stdio::from(stream.try_clone()?)).stdout(Stdio::from(stream)).stderr(Stdio::from(log));
        sys::before_start(&mut command, prepare, Arc::clone(&self.0.group));
        let started =
            command.spawn().map_err(|e| io::Error::new(e.kind(), format!("cannot start {SSHD}: {e}")))?;
        running.insert(started.id().try_into().map_err(io::Error::other)?);
        self.0.started.notify_all();
        Ok(())
    }

    fn running(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        // Never left half-changed.
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in children that have ended, of whomever they were.
    fn reap(&self) -> ! {
        loop {
            // Looks only, because a start that fails takes in its process by itself.
            let ended = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            let mut running = self.running();
            if ended.is_err() {
                // There are no children: the next is an sshd.
                let none = |running: &mut BTreeSet<i32>| running.is_empty();
                drop(self.0.started.wait_while(running, none).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if running.remove(&pid.as_raw_nonzero().get()) {
                    self.report(status);
                }
            }
        }
    }

    /// Says on the console, the end of which the host keeps, how an sshd has ended that should not have.
    fn report(&self, status: WaitStatus) {
        if status.exit_status().is_some_and(|code| ORDINARY.contains(&code)) {
            return;
        }
        let log = fs::read(&self.0.log).unwrap_or_default();
        let end = String::from_utf8_lossy(&log[log.len().saturating_sub(QUOTED)..]).into_owned();
        let how = match status.exit_status() {
            Some(code) => format!("with status {code}"),
            None => format!("by signal {}", status.terminating_signal().unwrap_or(0)),
        };
        let _ = writeln!(io::stderr(), "guest: an sshd has ended {how}: {}", printable::line(end.trim_end()));
    }
}

/// In the process that becomes an sshd. Its score is that of the guest: the kernel never ends it for memory.
fn prepare(group: BorrowedFd<'_>) -> io::Result<()> {
    // The process that writes.
    rustix::io::write(group, b"0")?;
    sys::set_session()?;
    sys::set_umask(0o022);
    // Always possible in a machine of our own. Elsewhere, in a test, the limits that there are do.
    let _ = sys::set_limits(libc::RLIMIT_NOFILE, OPEN_FILES);
    // No program of a home makes anybody root.
    sys::no_new_privileges()
}
