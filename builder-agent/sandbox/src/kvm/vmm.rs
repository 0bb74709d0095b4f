//! The VMM process: from the agent's descriptors to a running, jailed VM.
//!
//! This process runs one VM and then ends. It is started by `launch` as `<agent> __vmm` with a socket as stdin.
//! An error is reported over that socket once. Nothing is cleaned up, because the end of the process does that.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_ioctls::Kvm;

use super::arch::{Boot, Processor};
use super::devices::lock;
use super::end::End;
use super::events::Events;
use super::handover::{self, Config, Files, Origin, Report};
use super::jail::{self, seccomp};
use super::memory::{self, Backing, Closure, MemoryError};
use super::snapshot::{self, Snapshot, StandStill};
use super::vcpu;
use super::vm::{self, Parts, Vm, VmError};

/// The socket to the agent. Static, because a panic hook takes no arguments.
static AGENT: OnceLock<UnixStream> = OnceLock::new();

#[derive(Debug, thiserror::Error)]
enum VmmError {
    #[error("cannot take over from the agent")]
    Handover(#[source] io::Error),
    #[error(transparent)]
    Jail(#[from] jail::JailError),
    #[error(transparent)]
    Incomplete(#[from] jail::Incomplete),
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("cannot read the snapshot of the template")]
    Snapshot(#[source] io::Error),
    #[error(transparent)]
    StandStill(#[from] snapshot::StandStillError),
}

impl From<MemoryError> for VmmError {
    fn from(error: MemoryError) -> VmmError {
        VmmError::Vm(error.into())
    }
}

/// Runs the process from its start to its end.
pub fn main(stdin: OwnedFd) -> ! {
    let born = Instant::now();
    let agent = AGENT.get_or_init(|| UnixStream::from(stdin));
    std::panic::set_hook(Box::new(|panic| fail(&format!("the VMM panicked: {panic}"))));
    match start(agent, born) {
        Ok(never) => match never {},
        Err(e) => fail(&chain(&e)),
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn fail(why: &str) -> ! {
    say(&Report::Failed { why: why.chars().take(1000).collect() });
    quit(1)
}

fn say(report: &Report) {
    if let Some(agent) = AGENT.get() {
        handover::report(agent, report);
    }
}

fn quit(code: i32) -> ! {
    // Not `std::process::exit`: no destructor has anything to save, and other threads are inside the guest.
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(code) }
}

enum Never {}

fn start(agent: &UnixStream, born: Instant) -> Result<Never, VmmError> {
    jail::privileges::die_with_parent()?;
    jail::privileges::go_first_when_memory_is_short()?;
    let (config, files) = handover::receive(agent).map_err(VmmError::Handover)?;
    let closure = map_closure(agent, &config)?;
    let received = micros(born);

    let mut jail_report = jail::Report::default();
    jail::enter(config.uid, &mut jail_report)?;
    jail_report.accept(&config.allow_missing)?;
    let jailed = micros(born);
    if config.only_jail {
        seccomp::install(&seccomp::filter(&config.shape, false)?)?;
        jail_report.active("seccomp");
        say(&Report::Started { jail: jail_report, guest: Vec::new(), micros: [received, jailed, 0, 0] });
        quit(0);
    }

    let mut vm = make(&config, files, closure)?;
    let loaded = micros(born);
    let guest = vm.guest_ranges();

    // Every thread waits twice. Before the first wait the C library makes the system calls that begin a thread (rseq,
    // robust lists), which the filter forbids; the second wait ends when the filter is installed.
    let threads = usize::from(config.shape.vcpus) + usize::from(config.shape.has_disk()) + 2;
    let gate = Arc::new(Barrier::new(threads));
    let is_template = config.origin == Origin::Template;
    if is_template {
        snapshot::handle_signals()?;
    }
    let stand_still = start_threads(&mut vm, &gate)?;
    let filter = seccomp::filter(&config.shape, is_template)?;
    gate.wait();
    seccomp::install(&filter)?;
    jail_report.active("seccomp");
    say(&Report::Started { jail: jail_report, guest, micros: [received, jailed, loaded, micros(born)] });
    gate.wait();
    if is_template {
        serve_template(agent, &vm, &stand_still)?;
    }
    // The other threads end the process. `vm` stays alive, because KVM uses its memory.
    loop {
        std::thread::park();
    }
}

/// Waits until the agent wants the VM to be written down, and does that.
fn serve_template(mut agent: &UnixStream, vm: &Vm, stand_still: &StandStill) -> Result<Never, VmmError> {
    let mut byte = [0];
    // An agent that is gone, or wants no template any more, has hung up.
    if io::Read::read_exact(&mut agent, &mut byte).is_err() {
        quit(0);
    }
    let snapshot = vm.snapshot(stand_still.all()?)?;
    handover::send_json(agent, &snapshot).map_err(VmmError::Handover)?;
    quit(0)
}

/// A machine of the agent's shape, ready to run: with the guest kernel loaded, or where a template stood still.
fn make(config: &Config, files: Files<OwnedFd>, closure: Closure) -> Result<Vm, VmmError> {
    // SAFETY: the descriptor is /dev/kvm, opened by the agent, and ownership passes to `Kvm` here.
    let hypervisor = unsafe { Kvm::from_raw_fd(files.kvm.into_raw_fd()) };
    let memory = memory::ram(config.shape.memory_mib.into())?;
    let backing = files.memory.map(std::fs::File::from);
    let snapshot = match &config.origin {
        Origin::Boot => None,
        Origin::Template => {
            let file = backing.ok_or_else(incomplete)?;
            memory::lay_over(&memory, &file, &memory::whole(&memory), Backing::Shared)?;
            None
        }
        Origin::Copy { memory: parts, written } => {
            let file = backing.ok_or_else(incomplete)?;
            memory::lay_over(&memory, &file, parts, Backing::Copied)?;
            memory::copy_in_advance(&memory, written);
            let snapshot = files.snapshot.ok_or_else(incomplete)?;
            Some(Snapshot::read(&snapshot.into()).map_err(VmmError::Snapshot)?)
        }
    };
    let parts = Parts {
        memory,
        closure,
        stream: files.stream.map(UnixStream::from),
        net: files.net,
        additions: files.additions.map(UnixStream::from),
        console: files.console.into(),
        console_state: snapshot.as_ref().map(|snapshot| snapshot.console.clone()),
    };
    let mut vm = Vm::new(&hypervisor, &config.shape, parts)?;
    match snapshot {
        Some(snapshot) => {
            vm.restore(&snapshot)?;
            if let Origin::Copy { written, .. } = &config.origin {
                vm.map_in_advance(written);
            }
        }
        None => vm.boot(Boot {
            kernel: &mut files.kernel.into(),
            initrd: &mut files.initrd.into(),
            cmdline: &config.cmdline,
        })?,
    }
    Ok(vm)
}

fn incomplete() -> VmmError {
    VmmError::Handover(io::Error::other("a file of the template is missing"))
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

fn map_closure(agent: &UnixStream, config: &Config) -> Result<Closure, VmmError> {
    let total = config.segments.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len));
    let mut closure = Closure::reserve(total.unwrap_or(u64::MAX))?;
    let mut at = 0;
    let files = handover::Segments { socket: agent, left: config.segments.len() };
    let mut index = 0;
    for batch in files {
        for file in batch.map_err(VmmError::Handover)? {
            let (offset, len) = config.segments[index];
            closure.map(index, at, &file, offset, len)?;
            at += len;
            index += 1;
        }
    }
    Ok(closure)
}

/// Each thread waits at the gate twice before it does anything.
fn start_threads(vm: &mut Vm, gate: &Arc<Barrier>) -> Result<StandStill, VmmError> {
    let events = Events::new(vm.bus.clone(), std::mem::take(&mut vm.kicks))
        .map_err(vm::io("wait for the devices' events"))?;
    let opened = gate.clone();
    spawn("events", move || {
        opened.wait();
        opened.wait();
        fail(&format!("the event loop failed: {}", events.run()))
    })?;
    if let Some(additions) = vm.additions.take() {
        let opened = gate.clone();
        spawn("additions", move || {
            opened.wait();
            opened.wait();
            additions.run();
            // The agent adds no more. Not the end of the thread: that takes system calls that the filter forbids.
            loop {
                std::thread::park();
            }
        })?;
    }
    let processor = vm.processor();
    let mut stand_still = StandStill::default();
    for (id, mut vcpu) in vm.vcpus.drain(..).enumerate() {
        let (bus, gate, processor) = (vm.bus.clone(), gate.clone(), processor.clone());
        let report = stand_still.vcpu(id);
        let thread = spawn(&format!("vcpu{id}"), move || {
            gate.wait();
            gate.wait();
            let end = vcpu::run(&mut vcpu, &bus, report.is_wanted());
            lock(&bus.console).sync();
            match end {
                End::Paused => report.stands_still(processor.save_vcpu(&vcpu)),
                End::Guest(stop) => say(&Report::Stopped { why: format!("{stop:?}") }),
                End::Crashed(how) => say(&Report::Stopped { why: how.to_owned() }),
                End::Kvm(why) => fail(&why),
            }
            quit(0)
        })?;
        stand_still.runs_in(&thread);
    }
    Ok(stand_still)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, VmmError> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    Ok(builder.spawn(work).map_err(vm::io("start a thread"))?)
}
