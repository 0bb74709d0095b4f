//! The VMM process: from the agent's descriptors to a running, jailed VM.
//!
//! This process runs one VM and then ends. It is started by `launch` as `<agent> __vmm` with a socket as stdin.
//! Whatever goes wrong is reported there once; there is no cleaning up, the process' end is that.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::Instant;

use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::arch::{self, Architecture, MmioSlot, Native, Processor};
use super::bus::{self, Bus};
use super::devices::blk::Blk;
use super::devices::console::{Console, Ring};
use super::devices::mmio::{Transport, register};
use super::devices::pmem::Pmem;
use super::devices::rng::Rng;
use super::devices::vsock::Vsock;
use super::devices::{Device, Interrupt};
use super::events::{Events, Kick};
use super::handover::{self, ClosureDevice, Config, Files, Report};
use super::jail::{self, seccomp};
use super::memory::{self, Closure};
use super::vcpu::{self, End};

/// vsock port of the agent.
pub const AGENT_PORT: u32 = 1024;

/// Where reports go; for the panic hook, which can be given nothing.
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
    Memory(#[from] memory::MemoryError),
    #[error(transparent)]
    Load(#[from] arch::LoadError),
    #[error(transparent)]
    Setup(#[from] arch::SetupError),
    #[error("cannot {what}")]
    Kvm { what: &'static str, source: kvm_ioctls::Error },
    #[error("cannot {what}")]
    Io { what: &'static str, source: io::Error },
    #[error("KVM here has API version {got}, not {want}")]
    KvmVersion { got: i32, want: u32 },
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmmError {
    move |source| VmmError::Kvm { what, source }
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Io { what, source }
}

/// The whole life of the process.
pub fn main(stdin: OwnedFd) -> ! {
    let born = Instant::now();
    let agent = AGENT.get_or_init(|| UnixStream::from(stdin));
    std::panic::set_hook(Box::new(|panic| fail(&format!("the VMM panicked: {panic}"))));
    match start(agent, born) {
        Ok(never) => match never {},
        Err(e) => fail(&chain(&e)),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
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
    // Not `std::process::exit`: no destructor has anything to save, and other threads are in the guest.
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
        seccomp::install(&seccomp::filter()?)?;
        jail_report.active("seccomp");
        say(&Report::Started { jail: jail_report, guest: Vec::new(), micros: [received, jailed, 0, 0] });
        quit(0);
    }

    let mut vm = Vm::build(&config, files, closure)?;
    let loaded = micros(born);
    let guest = vm.guest_ranges();

    // Two waits. After the first every thread is past what the C library does to begin one (rseq, robust lists),
    // which the filter forbids; the second lets them go when the filter is on.
    let gate = Arc::new(Barrier::new(usize::from(config.vcpus) + 2));
    vm.start_threads(&gate)?;
    let filter = seccomp::filter()?;
    gate.wait();
    seccomp::install(&filter)?;
    jail_report.active("seccomp");
    say(&Report::Started { jail: jail_report, guest, micros: [received, jailed, loaded, micros(born)] });
    gate.wait();
    // The threads end the process. `vm` stays: KVM uses its memory.
    loop {
        std::thread::park();
    }
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

/// Raises an interrupt line of the interrupt controller, which is inside KVM.
struct Irq(EventFd);

impl Interrupt for Irq {
    fn trigger(&self) {
        // Fails only at 2^64 - 1 untaken interrupts.
        let _ = self.0.write(1);
    }
}

struct Vm {
    vm: VmFd,
    vcpus: Vec<kvm_ioctls::VcpuFd>,
    machine: Arc<Bus>,
    kicks: Vec<Kick>,
    memory: GuestMemoryMmap,
    closure: Arc<Closure>,
}

impl Vm {
    fn build(config: &Config, files: Files<OwnedFd>, closure: Closure) -> Result<Vm, VmmError> {
        use std::os::fd::FromRawFd;
        // SAFETY: the descriptor is /dev/kvm, opened by the agent, and ownership passes to `Kvm` here.
        let hypervisor = unsafe { Kvm::from_raw_fd(files.kvm.into_raw_fd()) };
        let version = hypervisor.get_api_version();
        if version != kvm_bindings::KVM_API_VERSION as i32 {
            return Err(VmmError::KvmVersion { got: version, want: kvm_bindings::KVM_API_VERSION });
        }
        let vm = hypervisor.create_vm().map_err(kvm("create a VM"))?;
        let ram = Native::ram_ranges(u64::from(config.memory_mib) << 20);
        let memory = memory::ram(config.memory_mib.into())?;
        let closure = Arc::new(closure);
        let processor = Native::prepare_vm(&hypervisor, &vm, config.vcpus)?;

        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        let stream = UnixStream::from(files.stream);
        stream.set_nonblocking(true).map_err(io("prepare the agent's stream"))?;
        devices.push(Box::new(Vsock::new(stream, AGENT_PORT)));
        let base = Native::closure_base(&ram);
        let shown = match config.closure_device {
            // A job without inputs has nothing to show.
            _ if closure.image_len() == 0 => None,
            ClosureDevice::Pmem => {
                let end = base + closure.len();
                if end > processor.address_limit() {
                    let limit = processor.address_limit();
                    return Err(memory::MemoryError::BeyondAddresses { end, limit }.into());
                }
                devices.push(Box::new(Pmem::new(base, closure.len())));
                Some((&*closure, base))
            }
            ClosureDevice::Blk => {
                devices.push(Box::new(Blk::new(closure.clone())));
                None
            }
        };
        devices.push(Box::new(Rng));
        memory::give_to_kvm(&vm, &memory, shown)?;

        let slots = bus::slots(devices.len());
        let mut kicks = Vec::new();
        let mut transports = Vec::new();
        for (index, (device, slot)) in devices.into_iter().zip(&slots).enumerate() {
            let transport = Transport::new(device, memory.clone(), Box::new(irq(&vm, slot.gsi)?));
            for queue in 0..transport.queue_count() {
                kicks.push(Kick { event: kick(&vm, slot, queue as u32)?, device: index, queue });
            }
            transports.push(transport);
        }
        let console =
            Console::new(Ring::new(File::from(files.console)), Box::new(irq(&vm, Native::CONSOLE_GSI)?));
        let machine = Bus::new(console, transports);

        let entry = Native::load(
            &memory,
            arch::Boot {
                kernel: &mut File::from(files.kernel),
                initrd: &mut File::from(files.initrd),
                cmdline: &config.cmdline,
                vcpus: config.vcpus,
                ram: &ram,
                slots: &slots,
            },
        )?;
        let vcpus = (0..config.vcpus)
            .map(|id| {
                let vcpu = vm.create_vcpu(id.into()).map_err(kvm("create a vCPU"))?;
                processor.prepare_vcpu(&vcpu, id, entry)?;
                Ok(vcpu)
            })
            .collect::<Result<Vec<_>, VmmError>>()?;
        Ok(Vm { vm, vcpus, machine, kicks, memory, closure })
    }

    fn guest_ranges(&self) -> Vec<(u64, u64)> {
        let ram = self.memory.iter().map(|r| (r.as_ptr() as u64, r.len()));
        ram.chain([self.closure.host_range()]).collect()
    }

    /// Each thread waits at the gate twice before it does anything.
    fn start_threads(&mut self, gate: &Arc<Barrier>) -> Result<(), VmmError> {
        debug_assert!(self.vm.as_raw_fd() >= 0);
        let events = Events::new(self.machine.clone(), std::mem::take(&mut self.kicks))
            .map_err(io("wait for the devices' events"))?;
        let opened = gate.clone();
        spawn("events", move || {
            opened.wait();
            opened.wait();
            fail(&format!("the event loop failed: {}", events.run()))
        })?;
        for (id, mut vcpu) in self.vcpus.drain(..).enumerate() {
            let (machine, gate) = (self.machine.clone(), gate.clone());
            spawn(&format!("vcpu{id}"), move || {
                gate.wait();
                gate.wait();
                let end = vcpu::run(&mut vcpu, &machine);
                machine.console().sync();
                match end {
                    End::Guest(stop) => say(&Report::Stopped { why: format!("{stop:?}") }),
                    End::Crashed(how) => say(&Report::Stopped { why: how.to_owned() }),
                    End::Kvm(why) => fail(&why),
                }
                quit(0)
            })?;
        }
        Ok(())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), VmmError> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map(drop).map_err(io("start a thread"))
}

fn irq(vm: &VmFd, gsi: u32) -> Result<Irq, VmmError> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(io("create an eventfd"))?;
    vm.register_irqfd(&event, gsi).map_err(kvm("connect an interrupt"))?;
    Ok(Irq(event))
}

fn kick(vm: &VmFd, slot: &MmioSlot, queue: u32) -> Result<EventFd, VmmError> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(io("create an eventfd"))?;
    let address = IoEventAddress::Mmio(slot.base + register::QUEUE_NOTIFY);
    vm.register_ioevent(&event, &address, queue).map_err(kvm("connect a queue notification"))?;
    Ok(event)
}
