//! The guest as PID 1 of a home: makes the member's machine, and then does what the host asks for, until it hangs up.
//!
//! The host connects a member by asking for an sshd on a stream of its own, and shows new store paths by an image on the
//! growing disk, or as small files. Whatever the member does, this process goes on: the member is another user, in a cgroup
//! of its own, and nothing here waits for what runs in it.

mod account;
mod attach;
mod disk;
mod groups;
mod root;
mod sshds;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use guest::protocol::{self, Answer, DISK_BYTES, FailureKind, Home, Open, SSH_PORTS, Tag};

use self::attach::Store;
use self::disk::Disk;
use self::groups::Groups;
use self::sshds::Sshds;
use super::{MODULES, closure, connect, modules, network};
use crate::builder;
use crate::stream::{Request, Stream};
use crate::sys;

const BLOCK_DEVICES: &str = "/sys/block";
const STORE: &str = "/nix/store";
const STAGING: &str = "/run/home/image";

/// The host listens before it asks.
const CONNECT_TRIES: u32 = 20;

/// Mounts in this machine appear in the member's own mount namespaces too, which costs memory for each.
const MOUNT_NAMESPACES: u32 = 256;

/// Errors are those of the stream.
pub fn serve(stream: &mut Stream, home: &Home) -> io::Result<()> {
    let (mut store, sshds) = match prepare(stream, home) {
        Ok(prepared) => prepared,
        Err(e) => {
            stream.send_failure(FailureKind::Sandbox, &e.to_string())?;
            stream.wait_for_hangup();
            return Ok(());
        }
    };
    stream.send(Tag::Started, &[])?;
    while let Some(request) = stream.read_request()? {
        let (tag, number, done) = match request {
            Request::Attach(attach) => (Tag::Attached, attach.number, store.attach(&attach, stream)?),
            Request::Open(Open { number, port }) => (Tag::Opened, number, open(&sshds, port)),
        };
        let error = done.err().map(|e| protocol::bounded(&e.to_string()));
        stream.send_json(tag, &Answer { number, error })?;
    }
    Ok(())
}

fn open(sshds: &Sshds, port: u32) -> io::Result<()> {
    if !SSH_PORTS.contains(&port) {
        let why = format!("port {port} is none of those for sshds");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    sshds.start(connect(port, CONNECT_TRIES)?)
}

fn prepare(stream: &mut Stream, home: &Home) -> io::Result<(Store, Sshds)> {
    modules::load_for_home(Path::new(MODULES));
    let memory = super::root::memory_bytes()?;
    let groups = Groups::new(home.processes, super::root::available_bytes()?)?;
    let disk = disk::find(Path::new(BLOCK_DEVICES), DISK_BYTES, closure::DEVICE_WAIT)?;
    let image = closure::mount_compressed(&disk)?;
    let root = root::build(&image, Path::new("/"), memory)?;
    account::create(home, &root)?;
    builder::write_etc_files(stream, &home.etc, &root, true)?;
    if let Some(network) = &home.network {
        network::up(network, &root)?;
    }
    fs::write("/proc/sys/user/max_mnt_namespaces", MOUNT_NAMESPACES.to_string())?;
    sys::set_host_name(&home.hostname, "(none)")?;
    enter(&root)?;

    let sshds = Sshds::new(groups.sshd.clone(), Path::new("/").join(account::LOG))?;
    groups.watch()?;
    let disk = Disk::open(&disk, Path::new(BLOCK_DEVICES), Path::new("/dev"))?;
    Ok((Store::new([STORE.into(), "/".into()], STAGING.into(), disk), sshds))
}

/// Makes the home's root the root of this process, and so of all that it starts.
fn enter(root: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(root.join(STAGING.trim_start_matches('/')))?;
    sys::become_root(root)?;
    // Then store paths that are shown later also appear in mount namespaces that a member has made before.
    sys::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_SHARED, "")
}

#[cfg(test)]
#[path = "home_test.rs"]
mod tests;
