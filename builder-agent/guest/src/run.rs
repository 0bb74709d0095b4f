//! One job from its start to its last frame, the same in both kinds of sandbox.
//!
//! Log bytes are sent to the host as they come; if the host does not read them, the builder waits, and the
//! watch thread continues. If the host hangs up, the build ends.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process;
use std::sync::Arc;

use guest::protocol::{Exit, ExitStatus, FailureKind, Job, Tag};
use rustix::event::{PollFd, PollFlags, poll};

use crate::builder::{self, Place, StartError};
use crate::listing;
use crate::outputs;
use crate::stream::Stream;
use crate::sys;
use crate::watch::{self, Meter};

/// The first line of every log: the kind of the sandbox, with properties of this kernel.
pub fn banner(kind: &str) -> String {
    format!(
        "barnraiser: building in {kind}, kernel {}, network devices: {}\n",
        sys::kernel_release(),
        network_devices()
    )
}

/// Devices of the guest's network namespace, which is also the builder's.
fn network_devices() -> String {
    let Ok(text) = std::fs::read_to_string("/proc/self/net/dev") else { return "unknown".into() };
    let names: Vec<_> =
        text.lines().skip(2).filter_map(|l| l.split_once(':')).map(|(n, _)| n.trim()).collect();
    if names.is_empty() { "none".into() } else { names.join(" ") }
}

/// Runs the builder and sends all frames after `Hello`. Errors are those of the stream.
pub fn run(
    stream: &mut Stream,
    job: &Job,
    place: &Place,
    meter: Meter,
    join: impl FnOnce(libc::pid_t) -> io::Result<()>,
) -> io::Result<()> {
    let running = match builder::start(job, place, join) {
        Ok(running) => running,
        Err(StartError::Exec(why)) => return stream.send_failure(FailureKind::CannotStart, &why),
        Err(StartError::Setup(e)) => return stream.send_failure(FailureKind::Sandbox, &e.to_string()),
    };
    let meter = Arc::new(meter);
    let verdict = watch::spawn(Arc::clone(&meter), job.limits.clone(), running.pid)?;
    if let Some(Err(e)) = running.listings.map(listing::spawn) {
        meter.kill(running.pid);
        return stream.send_failure(FailureKind::Sandbox, &format!("cannot list directories: {e}"));
    }
    stream.send(Tag::Started, &[])?;

    // Kept until the end of this function.
    let _mounts = running.mounts;
    let status = match follow(stream, running.pid, running.output) {
        Ok(status) => process::ExitStatus::from_raw(status),
        Err(e) => {
            meter.kill(running.pid);
            return Err(e);
        }
    };
    let exit = Exit {
        status: match (status.code(), status.signal()) {
            (Some(code), _) => ExitStatus::Exited(code),
            (None, signal) => ExitStatus::Signalled(signal.unwrap_or(0)),
        },
        out_of_memory: verdict.out_of_memory() || meter.kernel_killed_for_memory(),
        process_limit: verdict.process_limit() || meter.kernel_refused_process(),
        peak_memory: meter.peak_memory(&verdict),
    };
    let succeeded = exit.status == ExitStatus::Exited(0);
    stream.send_json(Tag::Exit, &exit)?;
    if !succeeded {
        return stream.send(Tag::Done, &[]);
    }
    let root = match place {
        Place::Machine { root } => root.as_path(),
        Place::Namespace { .. } => Path::new("/"),
    };
    outputs::send(stream, root, &job.outputs)
}

/// Forwards output until the builder has ended and all its output was sent. Returns its wait status.
fn follow(stream: &mut Stream, pid: libc::pid_t, output: OwnedFd) -> io::Result<i32> {
    let ended = sys::pidfd(pid)?;
    let mut output = File::from(output);
    let mut buffer = vec![0; 64 * 1024];
    let mut open = true;
    loop {
        let (readable, over, hung_up) = {
            let mut fds = [
                PollFd::new(&ended, PollFlags::IN),
                PollFd::new(&*stream, PollFlags::IN),
                PollFd::new(&output, PollFlags::IN),
            ];
            // A closed pipe polls ready for ever.
            let count = if open { 3 } else { 2 };
            match poll(&mut fds[..count], None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            (open && !fds[2].revents().is_empty(), !fds[0].revents().is_empty(), !fds[1].revents().is_empty())
        };
        if hung_up {
            // The host sends nothing after the job. If the stream is readable, the host has hung up.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if readable {
            match output.read(&mut buffer)? {
                0 => open = false,
                n => stream.send(Tag::Log, &buffer[..n])?,
            }
            // Read the pipe before the end is handled: when both are ready, there may be more to read.
            continue;
        }
        if over {
            // The pipe is empty, and no process is left that could write.
            return sys::wait(pid);
        }
    }
}
