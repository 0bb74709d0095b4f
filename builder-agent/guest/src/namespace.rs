//! The guest as PID 1 of a bubblewrap sandbox: bubblewrap made the file system and the namespaces, and left us all
//! capabilities in a user namespace of one user, none of which the builder gets.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use guest::protocol::{FailureKind, Hello, Tag, VERSION};

use crate::builder::{self, Place};
use crate::run;
use crate::stream::Stream;
use crate::sys;
use crate::watch::Meter;

/// Where the backend puts this program; taken away before the builder starts.
const OWN_DIR: &str = "/.guest";

/// The writable file systems; they are memory, so they count as memory.
const DISKS: [&str; 4] = ["/build", "/tmp", "/nix/store", "/dev/shm"];

/// Serves one job on `fd`. Errors are those of the stream: nobody is left to tell.
pub fn main(fd: OwnedFd, init_ns: u64) -> io::Result<()> {
    let mut stream = Stream::new(fd);
    let kernel = sys::kernel_release();
    stream
        .send_json(Tag::Hello, &Hello { version: VERSION, kernel, init_ns, ready_ns: sys::monotonic_ns() })?;
    let job = stream.read_job()?;
    let prepared = builder::write_files(&mut stream, &job, Path::new("/"), false)
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

/// With a user namespace of its own a builder reaches much more of the kernel, and it is the host's kernel.
fn forbid_user_namespaces() -> io::Result<()> {
    let knob = "/proc/sys/user/max_user_namespaces";
    fs::write(knob, "0").map_err(|e| io::Error::new(e.kind(), format!("cannot write {knob}: {e}")))
}
