//! Measures how fast a builder runs and what the VMM costs: this VMM beside `qemu-system-x86_64 -M microvm`,
//! in turn.
//!
//! ```text
//! bench-vm --guest DIR [--runs N] [--memory MIB] [--qemu PROGRAM]
//! ```
//! DIR is made by `netboot-image guest`. Both VMs boot the same kernel and initrd, with one processor and the same
//! memory; the same guest program reaches the same session code, over vsock in both (QEMU's through the kernel's
//! vhost_vsock). So what differs is the VMM. Prints a table; asserts nothing.
//! Measured from the start of the VMM process to the start of the builder, which is `/bin/sh -c 'true'`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sandbox::kvm::{KvmBackend, KvmConfig, jail};
use sandbox::{
    Backend, Cancel, FarEnd, Host, Image, Inputs, Job, JobRunner, Limits, Machine, OutputSink, Phases, Run,
    SandboxError, Started, Streams, Usage, child_main_if_requested,
};

type Failure = Box<dyn std::error::Error>;

/// The guest connects to this port of the host (`guest::protocol`).
const PORT: u32 = 1024;

fn main() -> Result<(), Failure> {
    child_main_if_requested();
    let (mut guest, mut runs, mut memory_mib) = (None, 5usize, 512u32);
    let mut qemu = "qemu-system-x86_64".to_owned();
    let mut args = std::env::args().skip(1);
    while let Some(argument) = args.next() {
        let mut value = || args.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--guest" => guest = Some(value()?),
            "--runs" => runs = value()?.parse()?,
            "--memory" => memory_mib = value()?.parse()?,
            "--qemu" => qemu = value()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let guest = guest.ok_or("--guest DIR is needed")?;
    let mut config = KvmConfig::new(format!("{guest}/vmlinux"), format!("{guest}/initrd"));
    // The example runs on developers' machines, which may lack steps of the jail.
    config.allow_missing = jail::Step::ALL.to_vec();
    let backend = KvmBackend::new(config);
    let qemu = QemuBackend { program: qemu, guest, listener: vsock_listener()? };

    let (mut ours, mut theirs) = (Runs::default(), Runs::default());
    // The first run of each fills caches and is not counted.
    for run in 0..=runs {
        let one = backend.run(job(memory_mib), &mut Quiet, &Cancel::new());
        let other = qemu.run(job(memory_mib), &mut Quiet, &Cancel::new());
        if run > 0 {
            ours.add(one)?;
            theirs.add(other)?;
        }
        eprintln!("bench-vm: run {run} of {runs}");
    }
    println!("micro-VM, {memory_mib} MiB, 1 processor, median of {runs} runs in turn:");
    println!("  {:<28} {:>12} {:>14} {:>8}", "", "barnraiser", "qemu microvm", "ratio");
    // QEMU's machine counts as started when its guest has connected, ours when its processor runs: so both
    // phases together.
    row("guest ready", ours.to_ready(), theirs.to_ready(), "ms");
    for phase in ["job sent", "builder started"] {
        row(phase, ours.phase(phase), theirs.phase(phase), "ms");
    }
    row("accepted to builder started", ours.to_builder(), theirs.to_builder(), "ms");
    row("VMM memory beside the guest's", ours.overhead(), theirs.overhead(), "MiB");
    Ok(())
}

fn row(name: &str, ours: f64, theirs: f64, unit: &str) {
    println!("  {name:<28} {ours:>9.1} {unit:<3} {theirs:>9.1} {unit:<3} {:>8.2}", ours / theirs);
}

#[derive(Default)]
struct Runs(Vec<(Phases, Usage)>);

impl Runs {
    fn add(&mut self, run: Run) -> Result<(), SandboxError> {
        run.result?;
        self.0.push((run.phases, run.usage));
        Ok(())
    }

    /// Milliseconds.
    fn phase(&self, name: &str) -> f64 {
        let of =
            |phases: &Phases| phases.named().find(|(phase, _)| *phase == name).map(|(_, time)| millis(time));
        median(self.0.iter().filter_map(|(phases, _)| of(phases)))
    }

    fn to_ready(&self) -> f64 {
        self.sum(|phases| [phases.machine_started, phases.guest_ready, None, None])
    }

    fn to_builder(&self) -> f64 {
        self.sum(|phases| {
            [phases.machine_started, phases.guest_ready, phases.job_sent, phases.builder_started]
        })
    }

    fn sum(&self, of: fn(&Phases) -> [Option<Duration>; 4]) -> f64 {
        median(self.0.iter().map(|(phases, _)| of(phases).into_iter().flatten().map(millis).sum()))
    }

    /// MiB.
    fn overhead(&self) -> f64 {
        median(
            self.0.iter().filter_map(|(_, usage)| usage.vmm_overhead.map(|b| b as f64 / f64::from(1 << 20))),
        )
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Quiet;

impl Host for Quiet {
    fn log(&mut self, _bytes: &[u8]) {}

    fn output(&mut self, _name: &str) -> io::Result<Box<dyn OutputSink>> {
        Err(io::Error::other("this job has no outputs"))
    }
}

fn job(memory_mib: u32) -> Job {
    Job {
        id: "bench".into(),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec!["-c".into(), "true".into()],
        env: Default::default(),
        files: Vec::new(),
        etc: Vec::new(),
        outputs: Default::default(),
        inputs: Inputs::Image(Image { segments: Vec::new() }),
        random_order: false,
        network: false,
        limits: Limits {
            vcpus: 1,
            memory_mib,
            wall: Some(Duration::from_secs(120)),
            silent: None,
            log_bytes: 1 << 20,
            output_bytes: 1 << 20,
            processes: 100,
        },
    }
}

/// QEMU's smallest machine, as one more backend. It gets our kernel command line, apart from `pci=off`, which
/// QEMU's own tables make needless. Its "machine started" ends when the guest has connected, so it includes
/// the boot.
struct QemuBackend {
    program: String,
    guest: String,
    listener: OwnedFd,
}

impl Backend for QemuBackend {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn start(&self, machine: Machine<'_>, _cancel: &Cancel) -> Result<Started, SandboxError> {
        let QemuBackend { program, guest, listener } = self;
        let child = Command::new(program)
            .args([
                "-M",
                "microvm,acpi=on,pit=off,pic=off,rtc=off",
                "-enable-kvm",
                "-cpu",
                "host",
                "-smp",
                "1",
            ])
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "null"])
            .args(["-m", &format!("{}M", machine.memory_mib), "-kernel", &format!("{guest}/vmlinux")])
            .args(["-initrd", &format!("{guest}/initrd"), "-device", "vhost-vsock-device,guest-cid=77"])
            .args(["-device", "virtio-rng-device", "-append", &sandbox::kvm::cmdline("")])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| SandboxError::Unavailable { why: format!("cannot start {program}: {e}") })?;
        let far_end = Qemu { child, memory: u64::from(machine.memory_mib) << 20 };
        let guest = accept(listener, Duration::from_secs(60))
            .map_err(|e| SandboxError::Unavailable { why: e.to_string() })?;
        let streams = Streams { guest };
        Ok(Started { far_end: Box::new(far_end), streams, network: None, plugs: None })
    }
}

struct Qemu {
    child: Child,
    /// Bytes of the guest.
    memory: u64,
}

impl FarEnd for Qemu {
    fn last_words(&mut self) -> String {
        "see the output of QEMU above".to_owned()
    }

    fn end(&mut self) -> Usage {
        let vmm_overhead = overhead(self.child.id(), self.memory);
        let _ = self.child.kill();
        let _ = self.child.wait();
        Usage { vmm_overhead, ..Usage::default() }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of all mappings except the guest's, which is recognised by its size.
fn overhead(pid: u32, guest: u64) -> Option<u64> {
    let smaps = BufReader::new(File::open(format!("/proc/{pid}/smaps")).ok()?);
    let (mut total, mut own) = (0, true);
    for line in smaps.lines().map_while(Result::ok) {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            own = end - start < guest;
        } else if own && let Some(kib) = line.strip_prefix("Rss:") {
            total += kib.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024;
        }
    }
    Some(total)
}

fn vsock_listener() -> io::Result<OwnedFd> {
    // SAFETY: plain system calls on a descriptor made here; `address` is a whole sockaddr_vm and lives until bind
    // returns. Zero is a valid value of each of its fields.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_vm = mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = PORT;
        let length = mem::size_of_val(&address) as libc::socklen_t;
        if libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) < 0
            || libc::listen(fd.as_raw_fd(), 4) < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(fd)
    }
}

/// A vsock connection as a stream: the session only reads, writes and polls.
fn accept(listener: &OwnedFd, patience: Duration) -> Result<UnixStream, Failure> {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, and a descriptor that is open.
    if unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as libc::c_int) } != 1 {
        return Err(format!("the guest in QEMU did not connect within {} s", patience.as_secs()).into());
    }
    // SAFETY: no address is asked for; the descriptor is checked before it is owned.
    unsafe {
        let fd = libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        );
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(UnixStream::from(OwnedFd::from_raw_fd(fd)))
    }
}
