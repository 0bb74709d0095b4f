//! The guest as PID 1 of a bubblewrap sandbox: bubblewrap has made the file system and the namespaces, and
//! has given the guest all capabilities in a user namespace of one user; the builder gets none of them.
//! `/nix/store` comes as a tree of mounts behind a descriptor.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use guest::protocol::{FailureKind, Job, Tag};
use rustix::mount::{MoveMountFlags, move_mount};

use crate::builder::{self, Place};
use crate::run;
use crate::stream::{Stream, Task};
use crate::sys;
use crate::watch::Meter;

/// The directory of this program, which the backend made; hidden before the builder starts.
const OWN_DIR: &str = "/.guest";

/// The writable file systems; their contents are in memory and count as memory.
const DISKS: [&str; 4] = ["/build", "/tmp", "/nix/store", "/dev/shm"];

/// Serves one job on `fd`. `store` is the tree that becomes `/nix/store`. Errors are those of the stream, over which they cannot be reported.
pub fn main(fd: OwnedFd, store: OwnedFd, init_ns: u64) -> io::Result<()> {
    let mut stream = Stream::new(fd);
    let kernel = sys::kernel_release();
    stream.send_hello(kernel, init_ns)?;
    let job = match stream.read_task()? {
        Task::Build(job) => job,
        Task::Home(_) => {
            return stream.send_failure(FailureKind::Sandbox, "a namespace sandbox cannot be a home");
        }
        Task::Resume(_) => {
            return stream
                .send_failure(FailureKind::Sandbox, "a namespace sandbox is no copy of another one");
        }
    };
    let prepared = nothing_of_a_machine(&job)
        .and_then(|()| show_store(store))
        .and_then(|()| builder::write_files(&mut stream, &job, Path::new("/"), false))
        .and_then(|()| forbid_user_namespaces());
    if let Err(e) = prepared {
        return stream.send_failure(FailureKind::Sandbox, &e.to_string());
    }
    stream.send(Tag::Log, run::banner("a namespace sandbox (weaker than KVM)").as_bytes())?;
    let meter = Meter::Proc { disks: DISKS.iter().map(PathBuf::from).collect() };
    let place = Place::Namespace { own_dir: PathBuf::from(OWN_DIR) };
    run::run(&mut stream, &job, &place, meter, |_| Ok(()))?;
    stream.wait_for_hangup();
    Ok(())
}

/// The namespaces have no network card, and their /etc is the backend's.
fn nothing_of_a_machine(job: &Job) -> io::Result<()> {
    if job.network.is_none() && job.etc.is_empty() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "a namespace sandbox has no network and no files of a network",
    ))
}

/// Mounts the store in a new mount namespace, because the current one belongs to an outer user namespace.
fn show_store(tree: OwnedFd) -> io::Result<()> {
    let place = "/nix/store";
    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot show the inputs at {place}: {e}"));
    sys::unshare(libc::CLONE_NEWNS).map_err(named)?;
    sys::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", rustix::fs::CWD, place, flags).map_err(|e| named(e.into()))
}

/// A builder with a user namespace of its own could reach much more of the kernel, which is the host's kernel
/// here.
fn forbid_user_namespaces() -> io::Result<()> {
    let knob = "/proc/sys/user/max_user_namespaces";
    fs::write(knob, "0").map_err(|e| io::Error::new(e.kind(), format!("cannot write {knob}: {e}")))
}
