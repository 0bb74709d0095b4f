//! The guest as PID 1 of a bubblewrap sandbox: bubblewrap made the file system and the namespaces, and left us all
//! capabilities in a user namespace of one user, none of which the builder gets. `/nix/store` comes as a tree of mounts
//! behind a descriptor.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use guest::protocol::{FailureKind, Hello, Tag, VERSION};
use rustix::mount::{MoveMountFlags, move_mount};

use crate::builder::{self, Place};
use crate::run;
use crate::stream::Stream;
use crate::sys;
use crate::watch::Meter;

/// Where the backend puts this program; taken away before the builder starts.
const OWN_DIR: &str = "/.guest";

/// The writable file systems; they are memory, so they count as memory.
const DISKS: [&str; 4] = ["/build", "/tmp", "/nix/store", "/dev/shm"];

/// Serves one job on `fd`. `store` is the tree that becomes `/nix/store`. Errors are those of the stream, over which they cannot be reported.
pub fn main(fd: OwnedFd, store: OwnedFd, init_ns: u64) -> io::Result<()> {
    let mut stream = Stream::new(fd);
    let kernel = sys::kernel_release();
    stream
        .send_json(Tag::Hello, &Hello { version: VERSION, kernel, init_ns, ready_ns: sys::monotonic_ns() })?;
    let job = stream.read_job()?;
    let prepared = show_store(store)
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

/// In a mount namespace of our own, because the one we are in belongs to an outer user namespace.
fn show_store(tree: OwnedFd) -> io::Result<()> {
    let place = "/nix/store";
    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot show the inputs at {place}: {e}"));
    sys::unshare(libc::CLONE_NEWNS).map_err(named)?;
    sys::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", rustix::fs::CWD, place, flags).map_err(|e| named(e.into()))
}

/// With a user namespace of its own a builder reaches much more of the kernel, and it is the host's kernel.
fn forbid_user_namespaces() -> io::Result<()> {
    let knob = "/proc/sys/user/max_user_namespaces";
    fs::write(knob, "0").map_err(|e| io::Error::new(e.kind(), format!("cannot write {knob}: {e}")))
}
