//! The parent of all sandbox processes: one thread of this process.
//!
//! Every sandbox asks the kernel to kill it when its parent ends (PR_SET_PDEATHSIG), so that none survives the agent. The
//! kernel means the *thread* that started it, and execve(2) ends every thread but the one that calls it. Therefore one thread
//! starts all sandboxes and, when another program takes the place of this one, executes that program. For the kernel that is
//! the same parent before and after, and sandboxes still die with it. After an execve(2) the thread is the main thread, so it
//! is the main thread from the beginning ([`run`]). A program without [`run`], such as a test, gets a thread for it.
//!
//! A start takes the thread until the sandbox's program is executed: a millisecond for a VMM, and for the namespace sandbox
//! some microseconds more for each input. Starts wait for each other.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver, SendError, Sender};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::usage;

enum Request {
    Spawn { command: Box<Command>, own_pids: bool, started: Sender<io::Result<Child>> },
    Replace { command: Box<Command>, keep: Vec<RawFd>, failed: Sender<io::Error> },
    End,
}

/// One for the process, because a process has one parenthood.
static PARENT: OnceLock<Sender<Request>> = OnceLock::new();

/// Does `work` on another thread. Meanwhile the calling thread, which is the main thread, is the parent of all sandboxes. To
/// be called before the first of them is started.
pub fn run<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let (sender, requests) = mpsc::channel();
    if PARENT.set(sender.clone()).is_err() {
        return work();
    }
    std::thread::scope(|scope| {
        let working = std::thread::Builder::new().name("agent".to_owned()).spawn_scoped(scope, move || {
            // Sent also after a panic.
            let _end = End(sender);
            work()
        });
        match working {
            Ok(working) => {
                attend(&requests);
                working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
            Err(error) => panic!("the system refuses the agent's first thread: {error}"),
        }
    })
}

struct End(Sender<Request>);

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.0.send(Request::End);
    }
}

fn parent() -> io::Result<&'static Sender<Request>> {
    if let Some(parent) = PARENT.get() {
        return Ok(parent);
    }
    let (sender, requests) = mpsc::channel();
    // Of two threads that are made at the same moment one finds its channel closed, and ends.
    std::thread::Builder::new().name("sandbox-parent".to_owned()).spawn(move || attend(&requests))?;
    Ok(PARENT.get_or_init(|| sender))
}

/// Processes that a program which takes over would know nothing of.
static NOT_PASSED_ON: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// While this is there, the process, a child of this one, ends before another program takes the place of this one.
pub(crate) struct NotPassedOn(u32);

impl NotPassedOn {
    pub fn process(pid: u32) -> NotPassedOn {
        not_passed_on().insert(pid);
        NotPassedOn(pid)
    }
}

impl Drop for NotPassedOn {
    fn drop(&mut self) {
        not_passed_on().remove(&self.0);
    }
}

fn not_passed_on() -> MutexGuard<'static, BTreeSet<u32>> {
    NOT_PASSED_ON.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_ending<T>(_: T) -> io::Error {
    io::Error::other("the agent is ending")
}

/// Starts a process that asks to die with its parent. `own_pids`: in a PID namespace of its own, if this process is root; the
/// process finds out whether it is.
pub(crate) fn spawn(command: Command, own_pids: bool) -> io::Result<Child> {
    let (started, start) = mpsc::channel();
    parent()?.send(Request::Spawn { command: Box::new(command), own_pids, started }).map_err(is_ending)?;
    start.recv().map_err(is_ending)?
}

/// Executes another program in the place of this one, which keeps the process, its children, and the descriptors `keep`.
/// Returns only if that fails; then everything is as before. For the moment of the attempt SIGPIPE is not ignored: nobody
/// should be writing to clients.
pub fn replace(command: Command, keep: Vec<RawFd>) -> io::Error {
    let (failed, failure) = mpsc::channel();
    let sent = parent()
        .and_then(|parent| {
            parent.send(Request::Replace { command: Box::new(command), keep, failed }).map_err(is_ending)
        })
        .and_then(|()| failure.recv().map_err(is_ending));
    sent.unwrap_or_else(|error| error)
}

fn attend(requests: &Receiver<Request>) {
    for request in requests {
        match request {
            Request::Spawn { mut command, own_pids, started } => {
                let spawned = start(&mut command, own_pids);
                // Its descriptors must not be open here when the requester goes on: the end of a stream would not be seen.
                drop(command);
                if let Err(SendError(Ok(mut child))) = started.send(spawned) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
            Request::Replace { mut command, keep, failed } => {
                not_passed_on().iter().for_each(|pid| usage::end_child(*pid));
                set_flags(&keep, FdFlags::empty());
                let error = command.exec();
                // `exec` sets the default before it executes, and does not take that back: the next write to a client or to a
                // pipe that is closed would end the agent.
                // SAFETY: ignoring a signal runs no code of ours, and SIGPIPE exists.
                unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
                set_flags(&keep, FdFlags::CLOEXEC);
                let _ = failed.send(error);
            }
            Request::End => return,
        }
    }
}

/// The descriptors stay open over execve(2), or do not.
fn set_flags(numbers: &[RawFd], flags: FdFlags) {
    for &number in numbers {
        // SAFETY: only the flags are set; a number that is not open gives an error.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        // The program that takes over notices what is missing.
        let _ = fcntl_setfd(fd, flags);
    }
}

fn start(command: &mut Command, own_pids: bool) -> io::Result<Child> {
    if !own_pids || !rustix::process::geteuid().is_root() {
        return command.spawn();
    }
    // Only the children of this thread are affected, and only this one: the thread returns at once, because a thread can leave its
    // namespace once only.
    let Ok(ours) = File::open("/proc/thread-self/ns/pid") else { return command.spawn() };
    // SAFETY: takes no pointers; for the thread itself nothing changes.
    let is_apart = unsafe { libc::unshare(libc::CLONE_NEWPID) } == 0;
    let child = command.spawn();
    // SAFETY: takes an open descriptor, and no pointers.
    if is_apart && unsafe { libc::setns(ours.as_raw_fd(), libc::CLONE_NEWPID) } != 0 {
        let error = io::Error::last_os_error();
        tracing::error!(%error, "cannot come back from the PID namespace of a VM; no more can be started");
    }
    child
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_gets_pids_of_its_own_and_the_thread_stays_where_it_is() {
        let pids = |own| {
            let mut command = Command::new("readlink");
            command.arg("/proc/self/ns/pid").stdout(std::process::Stdio::piped());
            let output = spawn(command, own).unwrap().wait_with_output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let ours = pids(false);
        assert!(ours.starts_with("pid:["), "{ours}");
        if rustix::process::geteuid().is_root() {
            let (one, two) = (pids(true), pids(true));
            assert!(one != ours && two != ours && one != two, "{ours} {one} {two}");
        }
        assert_eq!(pids(false), ours);
    }

    #[test]
    fn a_program_that_cannot_be_executed_leaves_everything_as_it_was() {
        let file = File::open("/dev/null").unwrap();
        let of_this_one_alone = spawn(
            {
                let mut sleep = Command::new("sleep");
                sleep.arg("600");
                sleep
            },
            false,
        )
        .unwrap()
        .id();
        let guard = NotPassedOn::process(of_this_one_alone);
        let error = replace(Command::new("/nowhere/agent"), vec![file.as_raw_fd()]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(FdFlags::CLOEXEC));
        assert!(usage::pidfd_of_child(of_this_one_alone).is_err(), "it has ended, and was reaped");
        drop(guard);
        assert!(!not_passed_on().contains(&of_this_one_alone));
        assert!(spawn(Command::new("true"), false).unwrap().wait().unwrap().success());
        // The test ends here if the signal is deadly.
        let (read, mut write) = io::pipe().unwrap();
        drop(read);
        let broken = io::Write::write(&mut write, b"x").unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
    }
}
