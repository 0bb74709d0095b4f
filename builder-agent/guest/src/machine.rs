//! The guest as PID 1 of a micro-VM, a build's or a home's. The kernel starts it from the initrd, and no other program runs.
//!
//! An error before the stream is connected is written to the console and ends the machine; the host keeps the end of the
//! console's output. A later error is sent to the host as a `Failed` frame.

mod closure;
mod devices;
mod group;
mod home;
mod identity;
mod modules;
mod netlink;
mod network;
mod root;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use guest::protocol::{FailureKind, Job, Tag, VSOCK_CID, VSOCK_PORT};

use crate::builder::{self, Place};
use crate::run;
use crate::stream::{Stream, Task};
use crate::sys;
use crate::watch::Meter;

/// Most attempts to connect, until the vsock device has appeared and the host listens.
const CONNECT_TRIES: u32 = 200;
const CONNECT_PAUSE: Duration = Duration::from_millis(25);

const MODULES: &str = "/modules";

/// Never returns: the machine ends with its only task.
pub fn main(init_ns: u64) -> ! {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("guest: {panic}");
        sys::power_off();
    }));
    if let Err(e) = serve(init_ns) {
        eprintln!("guest: {e}");
    }
    sys::power_off()
}

fn serve(init_ns: u64) -> io::Result<()> {
    mount_own()?;
    // When the machine runs out of memory, the kernel must kill the build and not the guest.
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    modules::load_all(Path::new(MODULES));
    devices::probe_first();
    sys::loopback_up()?;
    let mut stream = Stream::new(connect(VSOCK_PORT, CONNECT_TRIES)?);
    let kernel = sys::kernel_release();
    loop {
        stream.send_hello(kernel.clone(), init_ns)?;
        // A machine that is copied is copied while it waits here.
        let task = stream.read_task()?;
        if !matches!(task, Task::Resume(_)) {
            devices::probe_all();
        }
        match task {
            Task::Resume(resume) => identity::take(&resume)?,
            Task::Build(job) => return build(&mut stream, &job),
            Task::Home(home) => return home::serve(&mut stream, &home),
        }
    }
}

fn build(stream: &mut Stream, job: &Job) -> io::Result<()> {
    let (root, group) = match prepare(stream, job) {
        Ok(prepared) => prepared,
        Err(e) => {
            stream.send_failure(FailureKind::Sandbox, &e.to_string())?;
            stream.wait_for_hangup();
            return Ok(());
        }
    };
    stream.send(Tag::Log, run::banner(&format!("a {}micro-VM", hypervisor())).as_bytes())?;
    let place = Place::Machine { root };
    run::run(stream, job, &place, Meter::Cgroup(group.dir().to_owned()), |pid| group.join(pid))?;
    // If the power goes off first, bytes that the host has not read yet are lost.
    stream.wait_for_hangup();
    Ok(())
}

fn prepare(stream: &mut Stream, job: &Job) -> io::Result<(std::path::PathBuf, group::Group)> {
    let memory = root::memory_bytes()?;
    let group = group::Group::new(job.limits.processes, memory)?;
    let closure = if job.closure { Some(closure::mount()?) } else { None };
    let root = root::build(closure.as_deref(), memory)?;
    builder::write_files(stream, job, &root, true)?;
    builder::write_etc_files(stream, &job.etc, &root, false)?;
    if let Some(network) = &job.network {
        network::up(network, &root)?;
    }
    root::seal(&root)?;
    Ok((root, group))
}

/// The file systems that the guest itself needs. The builder sees none of them.
fn mount_own() -> io::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(target)?;
        match sys::mount(kind, Path::new(target), kind, libc::MS_NOSUID | libc::MS_NOEXEC, "") {
            // The kernel may have mounted /dev on its own.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
            other => other?,
        }
    }
    // From an initrd without /dev/console the kernel starts the guest without any descriptors.
    if let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") {
        for fd in 0..3 {
            sys::dup_to(console.as_raw_fd(), fd)?;
        }
        if console.as_raw_fd() < 3 {
            // It is one of the three standard descriptors now and must stay open.
            std::mem::forget(console);
        }
    }
    Ok(())
}

fn connect(port: u32, tries: u32) -> io::Result<OwnedFd> {
    let mut last = None;
    for _ in 0..tries {
        match sys::connect_vsock(VSOCK_CID, port) {
            Ok(fd) => return Ok(fd),
            Err(e) => last = Some(e),
        }
        std::thread::sleep(CONNECT_PAUSE);
    }
    let why = last.map_or_else(|| "never tried".into(), |e| e.to_string());
    Err(io::Error::other(format!("cannot connect to the host on vsock port {port}: {why}")))
}

/// The hypervisor's name from CPUID; empty, or followed by a space.
#[cfg(target_arch = "x86_64")]
fn hypervisor() -> String {
    use std::arch::x86_64::__cpuid;

    // Leaf 1, ecx bit 31: there is a hypervisor. Leaf 0x4000_0000: its twelve letters in ebx, ecx, edx.
    if __cpuid(1).ecx & (1 << 31) == 0 {
        return String::new();
    }
    let leaf = __cpuid(0x4000_0000);
    let letters: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
    match letters.as_slice() {
        b"KVMKVMKVM\0\0\0" => "KVM ".into(),
        b"TCGTCGTCGTCG" => "TCG (emulated) ".into(),
        _ => String::new(),
    }
}

/// Other architectures have no such instruction; the device tree or ACPI would have the name.
#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> String {
    String::new()
}
