//! Measures how fast a builder runs and what the VMM costs: this VMM, which boots or copies a template, beside
//! `qemu-system-x86_64 -M microvm`, which boots or goes on from a state that it has saved, in turn.
//!
//! ```text
//! bench-vm --guest DIR [--runs N] [--memory MIB] [--qemu PROGRAM] [--at-once N]
//! ```
//! DIR is made by `netboot-image guest`. All VMs have the same kernel and initrd, one processor and the same memory. The same guest
//! program reaches the same session code, over vsock in both VMMs (QEMU's through the kernel's vhost_vsock). So what differs is the
//! VMM. Prints tables; asserts nothing.
//! Measured from the start of the VMM process to the start of the builder, which is `/bin/sh -c 'true'`. A vsock connection does not
//! survive in a saved state of QEMU. So there a shell waits at the serial console, and the time ends when it answers: without
//! the job, the sandbox inside and the builder, which the others have.
//! With `--at-once`, so many copies are started and kept, none of which has a job.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
    let (mut qemu, mut at_once) = ("qemu-system-x86_64".to_owned(), 0usize);
    let mut args = std::env::args().skip(1);
    while let Some(argument) = args.next() {
        let mut value = || args.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--guest" => guest = Some(value()?),
            "--runs" => runs = value()?.parse()?,
            "--memory" => memory_mib = value()?.parse()?,
            "--qemu" => qemu = value()?,
            "--at-once" => at_once = value()?.parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let guest = guest.ok_or("--guest DIR is needed")?;
    let mut config = KvmConfig::new(format!("{guest}/vmlinux"), format!("{guest}/initrd"));
    // The example runs on developers' machines, which may lack steps of the jail.
    config.allow_missing = jail::Step::ALL.to_vec();
    let cold = KvmBackend::new(config.clone());
    config.templates = 1;
    let warm = KvmBackend::new(config);
    let began = Instant::now();
    warm.make_template(job(memory_mib).machine())?;
    println!("a template takes {:.1} s", began.elapsed().as_secs_f64());
    let saved = Saved::new(&qemu, &guest, memory_mib)?;
    let qemu = QemuBackend { program: qemu, guest, listener: vsock_listener()? };

    let (mut ours, mut theirs, mut copies, mut restored) =
        (Runs::default(), Runs::default(), Runs::default(), Vec::new());
    // The first run of each fills caches and is not counted.
    for run in 0..=runs {
        let one = cold.run(job(memory_mib), &mut Quiet, &Cancel::new());
        let other = qemu.run(job(memory_mib), &mut Quiet, &Cancel::new());
        let copy = warm.run(job(memory_mib), &mut Quiet, &Cancel::new());
        let again = saved.restore()?;
        if run > 0 {
            ours.add(one)?;
            theirs.add(other)?;
            copies.add(copy)?;
            restored.push(millis(again));
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
    println!("\nfrom the start of the VMM process to the builder's first instruction, {runs} runs in turn:");
    println!("  {:<28} {:>12} {:>12}", "", "p50", "p99");
    let all = [
        ("barnraiser, boots", ours.builders()),
        ("barnraiser, copies a template", copies.builders()),
        ("qemu microvm, boots", theirs.builders()),
        ("qemu microvm, restored", restored.clone()),
    ];
    for (name, times) in &all {
        println!("  {name:<28} {:>9.1} ms {:>9.1} ms", quantile(times, 50), quantile(times, 99));
    }
    let [_, copied, booted, again] = all.map(|(_, times)| quantile(&times, 50));
    println!(
        "  the copy takes 1/{:.1} of QEMU's boot, and 1/{:.1} of its restore",
        booted / copied,
        again / copied
    );
    println!("  of the copy's time: {:.1} ms to a guest that is ready", copies.to_ready());
    if at_once > 0 {
        keep(&warm, memory_mib, at_once)?;
    }
    Ok(())
}

/// Starts copies without a job, and keeps them until all are there.
fn keep(backend: &KvmBackend, memory_mib: u32, count: usize) -> Result<(), Failure> {
    let free = available()?;
    let began = Instant::now();
    let (mut kept, mut times) = (Vec::new(), Vec::new());
    let job = job(memory_mib);
    for _ in 0..count {
        let began = Instant::now();
        let mut started = backend.start(job.machine(), &Cancel::new())?;
        // The first byte of its hello.
        io::Read::read_exact(&mut started.streams.guest, &mut [0])?;
        times.push(millis(began.elapsed()));
        kept.push(started);
    }
    let took = began.elapsed().as_secs_f64();
    let used = free.saturating_sub(available()?);
    let (guests, monitors): (Vec<_>, Vec<_>) = vmms()?.into_iter().unzip();
    println!("\n{count} idle copies at once, all there after {took:.1} s; each until its hello:");
    println!("  p50 {:.1} ms, p99 {:.1} ms", quantile(&times, 50), quantile(&times, 99));
    println!("  private guest memory of each: {:.2} MiB (median)", median(guests.into_iter().map(mib)));
    println!(
        "  memory of its VMM process beside that, shared code included: {:.2} MiB (median)",
        median(monitors.into_iter().map(mib))
    );
    println!("  memory of the host that is gone, for each: {:.2} MiB", mib(used) / count as f64);
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn available() -> Result<u64, Failure> {
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).ok_or("no MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Of each VMM process: its private guest memory, and the rest of its resident memory.
fn vmms() -> Result<Vec<(u64, u64)>, Failure> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if cmdline.split(|byte| *byte == 0).nth(1) == Some(b"__vmm") {
            all.push(memory_of(&std::fs::read_to_string(entry.path().join("smaps"))?));
        }
    }
    Ok(all)
}

/// Guest memory is what a template's file is mapped in, and the anonymous memory right beside it.
fn memory_of(smaps: &str) -> (u64, u64) {
    let mut mappings: Vec<(u64, u64, bool, u64, u64)> = Vec::new();
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        let range = first.split_once('-').and_then(|(start, end)| {
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        });
        let number = || line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10;
        if let Some((start, end)) = range {
            mappings.push((start, end, line.contains("memfd:template"), 0, 0));
        } else if let Some(mapping) = mappings.last_mut() {
            match first {
                "Rss:" => mapping.3 = number(),
                "Anonymous:" => mapping.4 = number(),
                _ => {}
            }
        }
    }
    let files: Vec<(u64, u64)> = mappings.iter().filter(|m| m.2).map(|m| (m.0, m.1)).collect();
    let is_guest = |m: &(u64, u64, bool, u64, u64)| {
        m.2 || (m.1 - m.0 >= 1 << 20 && files.iter().any(|(start, end)| *start == m.1 || *end == m.0))
    };
    let guest = mappings.iter().filter(|m| is_guest(m)).map(|m| m.4).sum();
    (guest, mappings.iter().filter(|m| !is_guest(m)).map(|m| m.3).sum())
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

    /// Of each run.
    fn builders(&self) -> Vec<f64> {
        let one = |phases: &Phases| {
            let Phases { machine_started, guest_ready, job_sent, builder_started, .. } = *phases;
            [machine_started, guest_ready, job_sent, builder_started].into_iter().flatten().map(millis).sum()
        };
        self.0.iter().map(|(phases, _)| one(phases)).collect()
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

fn quantile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or(f64::NAN)
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

/// QEMU's smallest machine, with the arguments that all of its have.
fn microvm(program: &str, guest: &str, memory_mib: u32) -> Command {
    let mut command = Command::new(program);
    let machine = "microvm,acpi=on,pit=off,pic=off,rtc=off";
    command
        .args(["-M", machine, "-enable-kvm", "-cpu", "host", "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .args(["-m", &format!("{memory_mib}M"), "-kernel", &format!("{guest}/vmlinux")])
        .args(["-initrd", &format!("{guest}/initrd"), "-device", "virtio-rng-device"]);
    command
}

/// A state that QEMU has saved, of a guest in which a shell waits for a line.
struct Saved {
    program: String,
    guest: String,
    memory_mib: u32,
    state: String,
}

/// What the shell says when it waits, and when it has read a line.
const WAITS: &str = "bench: waiting";
const GOES: &str = "bench: going";

impl Saved {
    fn new(program: &str, guest: &str, memory_mib: u32) -> Result<Saved, Failure> {
        let state = format!("/dev/shm/bench-vm-{}.state", std::process::id());
        let saved = Saved { program: program.to_owned(), guest: guest.to_owned(), memory_mib, state };
        let monitor = format!("/dev/shm/bench-vm-{}.monitor", std::process::id());
        let mut child =
            saved.command().args(["-qmp", &format!("unix:{monitor},server=on,wait=off")]).spawn()?;
        let mut said = BufReader::new(child.stdout.take().ok_or("QEMU has no stdout")?);
        wait_for(&mut said, WAITS)?;
        let mut qmp = UnixStream::connect(&monitor)?;
        let mut answers = BufReader::new(qmp.try_clone()?).lines();
        for command in [
            "{\"execute\":\"qmp_capabilities\"}".to_owned(),
            format!("{{\"execute\":\"migrate\",\"arguments\":{{\"uri\":\"exec:cat > {}\"}}}}", saved.state),
        ] {
            io::Write::write_all(&mut qmp, command.as_bytes())?;
        }
        loop {
            io::Write::write_all(&mut qmp, b"{\"execute\":\"query-migrate\"}")?;
            let answer = answers.next().ok_or("QEMU's monitor has ended")??;
            if answer.contains("\"completed\"") {
                break;
            }
            if answer.contains("\"failed\"") {
                return Err(format!("QEMU cannot save its state: {answer}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
        let _ = std::fs::remove_file(&monitor);
        Ok(saved)
    }

    fn command(&self) -> Command {
        let mut command = microvm(&self.program, &self.guest, self.memory_mib);
        let cmdline = sandbox::kvm::cmdline("").replace("rdinit=/init", "rdinit=/bin/busybox");
        let script = format!("echo {WAITS}; read line; echo {GOES}; sleep 1000");
        command
            .args(["-serial", "stdio", "-append", &format!("{cmdline} -- sh -c \"{script}\"")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// How long it takes until the shell goes on.
    fn restore(&self) -> Result<Duration, Failure> {
        let began = Instant::now();
        let mut child = self.command().args(["-incoming", &format!("exec:cat {}", self.state)]).spawn()?;
        let mut stdin = child.stdin.take().ok_or("QEMU has no stdin")?;
        let mut said = BufReader::new(child.stdout.take().ok_or("QEMU has no stdout")?);
        // What comes before the state is loaded is lost.
        let typing = std::thread::spawn(move || {
            while io::Write::write_all(&mut stdin, b"\n").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let gone = wait_for(&mut said, GOES);
        let took = began.elapsed();
        let _ = child.kill();
        let _ = child.wait();
        let _ = typing.join();
        gone.map(|()| took)
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.state);
    }
}

fn wait_for(said: &mut impl BufRead, words: &str) -> Result<(), Failure> {
    let mut all = String::new();
    for line in said.lines() {
        let line = line?;
        if line.contains(words) {
            return Ok(());
        }
        all = all + &line + "\n";
    }
    Err(format!("QEMU has ended before its guest said {words:?}; it said: {all}").into())
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
        let child = microvm(program, guest, machine.memory_mib)
            .args(["-serial", "null", "-device", "vhost-vsock-device,guest-cid=77"])
            .args(["-append", &sandbox::kvm::cmdline("")])
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
