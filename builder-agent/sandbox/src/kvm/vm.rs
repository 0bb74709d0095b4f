//! A VM: created from a [`Shape`], then loaded with a program.
//!
//! [`Vm::new`] makes everything that a shape describes, memory and devices; it does not know which program will run.
//! [`Vm::boot`] then loads a kernel and makes vCPUs that start at its entry point. [`Vm::restore`] takes its place in the copy of a
//! template, whose memory has the program already: it sets devices and vCPUs to where they were.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use guest::protocol::VSOCK_PORT;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::additions::{Additions, Ports};
use super::arch::{self, Architecture, Boot, Hardware, MmioSlot, Native, Processor};
use super::bus::{self, Bus};
use super::devices::blk::Blk;
use super::devices::console::{Console, ConsoleState, Ring};
use super::devices::mmio::{Transport, register};
use super::devices::net::Net;
use super::devices::pmem::Pmem;
use super::devices::restore_error::RestoreError;
use super::devices::rng::Rng;
use super::devices::vsock::Vsock;
use super::devices::{Device, Interrupt};
use super::events::Kick;
use super::handover::{ClosureDevice, DeviceKind, Shape};
use super::memory::growing::Growing;
use super::memory::{self, Closure, MemoryError};
use super::prefault;
use super::snapshot::{Snapshot, VcpuState};

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Load(#[from] arch::LoadError),
    #[error(transparent)]
    Setup(#[from] arch::SetupError),
    #[error("cannot {what}")]
    Kvm { what: &'static str, source: kvm_ioctls::Error },
    #[error("cannot {what}")]
    Io { what: &'static str, source: io::Error },
    #[error("cannot go on where the template stood still")]
    Restore(#[from] RestoreError),
    #[error("cannot write the generation of the VM to its memory")]
    Generation(#[source] vm_memory::GuestMemoryError),
    #[error("the template had {saved} vCPUs, and its copy has {here}")]
    Vcpus { saved: usize, here: u8 },
    #[error("KVM here has API version {got}, not {want}")]
    KvmVersion { got: i32, want: u32 },
    #[error("a vsock has a stream to the agent, and the shape has more of them than there are streams")]
    NoStream,
    #[error("a network card has a socket of its own, and the shape has more cards than there are sockets")]
    NoNetwork,
    #[error("a growing disk has a socket of its own, and the shape has more disks than there are sockets")]
    NoAdditions,
    #[error("the shape has a growing disk, and no vsock for the streams that are plugged in with it")]
    NoVsock,
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}

pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> VmError {
    move |source| VmError::Io { what, source }
}

/// The host's side of the devices.
pub struct Parts {
    /// As large as the shape says.
    pub memory: GuestMemoryMmap,
    pub closure: Closure,
    /// The stream of the vsock, if the shape has one.
    pub stream: Option<UnixStream>,
    /// The socket of the network card, if the shape has one.
    pub net: Option<OwnedFd>,
    /// The socket over which the agent adds images and streams, if the shape has a growing disk.
    pub additions: Option<UnixStream>,
    /// The ring that keeps the end of the console's output.
    pub console: File,
    /// The console of the template, if this is a copy.
    pub console_state: Option<ConsoleState>,
}

pub struct Vm {
    vm: VmFd,
    processor: Arc<<Native as Architecture>::Processor>,
    hardware: Hardware,
    memory: GuestMemoryMmap,
    /// Kept because KVM uses its mapping.
    _closure: Arc<Closure>,
    /// Address ranges of this process with files that the guest sees.
    mapped: Vec<(u64, u64)>,
    pub bus: Arc<Bus>,
    pub kicks: Vec<Kick>,
    /// Receives images for the growing disk, and streams, if there is one.
    pub additions: Option<Additions>,
    /// Empty before [`Vm::boot`].
    pub vcpus: Vec<VcpuFd>,
    /// Tells the guest of another generation.
    generation: Irq,
}

impl Vm {
    pub fn new(hypervisor: &Kvm, shape: &Shape, parts: Parts) -> Result<Vm, VmError> {
        let version = hypervisor.get_api_version();
        if version != kvm_bindings::KVM_API_VERSION as i32 {
            return Err(VmError::KvmVersion { got: version, want: kvm_bindings::KVM_API_VERSION });
        }
        let Parts { memory, closure, mut stream, mut net, additions: mut agent, console, console_state } =
            parts;
        let vm = hypervisor.create_vm().map_err(kvm("create a VM"))?;
        let ram = Native::ram_ranges(u64::from(shape.memory_mib) << 20);
        let closure = Arc::new(closure);
        let processor = Arc::new(Native::prepare_vm(hypervisor, &vm, shape.vcpus)?);

        if let Some(stream) = &stream {
            stream.set_nonblocking(true).map_err(io("prepare the agent's stream"))?;
        }
        let base = Native::closure_base(&ram);
        let (mut shown, mut growing) = (None, None);
        let mut mapped = vec![closure.host_range()];
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        for kind in &shape.devices {
            devices.push(match kind {
                DeviceKind::Vsock => {
                    Box::new(Vsock::new(VSOCK_PORT, stream.take().ok_or(VmError::NoStream)?))
                }
                DeviceKind::Closure(ClosureDevice::Pmem) => {
                    let (end, limit) = (base + closure.len(), processor.address_limit());
                    if end > limit {
                        return Err(MemoryError::BeyondAddresses { end, limit }.into());
                    }
                    shown = Some((&*closure, base));
                    Box::new(Pmem::new(base, closure.len()))
                }
                DeviceKind::Closure(ClosureDevice::Blk) => Box::new(Blk::new(closure.clone())),
                DeviceKind::Disk => {
                    let (bytes, grower) = Growing::reserve()?;
                    mapped.push(bytes.addresses());
                    growing = Some((agent.take().ok_or(VmError::NoAdditions)?, grower));
                    Box::new(Blk::new(bytes))
                }
                DeviceKind::Rng => Box::new(Rng),
                DeviceKind::Net => Box::new(Net::new(net.take().ok_or(VmError::NoNetwork)?)),
            });
        }
        memory::give_to_kvm(&vm, &memory, shown)?;

        let slots = bus::slots(devices.len());
        let (transports, mut kicks) = connect(&vm, &memory, devices, &slots)?;
        let (ring, interrupt) = (Ring::new(console), Box::new(irq(&vm, Native::CONSOLE_GSI)?));
        let console = match &console_state {
            Some(state) => Console::restore(state, ring, interrupt)?,
            None => Console::new(ring, interrupt),
        };
        let bus = Bus::new(console, transports);
        let mut additions = None;
        if let Some((agent, grower)) = growing {
            let vsock = shape.devices.iter().position(|kind| *kind == DeviceKind::Vsock);
            let vsock = vsock.ok_or(VmError::NoVsock)?;
            let (ports, plugged) = Ports::new(bus.clone(), vsock).map_err(io("create an eventfd"))?;
            kicks.push(plugged);
            additions = Some(Additions::new(agent, grower, ports));
        }
        let generation = irq(&vm, Native::GENERATION_GSI)?;
        let hardware = Hardware { vcpus: shape.vcpus, ram, slots };
        let vcpus = Vec::new();
        Ok(Vm {
            vm,
            processor,
            hardware,
            memory,
            _closure: closure,
            mapped,
            bus,
            kicks,
            additions,
            vcpus,
            generation,
        })
    }

    /// Loads a kernel, and makes the vCPUs that will start it.
    pub fn boot(&mut self, boot: Boot<'_>) -> Result<(), VmError> {
        let entry = Native::load(&self.memory, &self.hardware, boot)?;
        self.begin_generation()?;
        for id in 0..self.hardware.vcpus {
            let vcpu = self.vm.create_vcpu(id.into()).map_err(kvm("create a vCPU"))?;
            self.processor.prepare_vcpu(&vcpu, id, entry)?;
            self.vcpus.push(vcpu);
        }
        Ok(())
    }

    /// Makes vCPUs that go on where those of the template stood still. The memory is a copy of the template's already.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), VmError> {
        let (saved, here) = (snapshot.vcpus.len(), self.hardware.vcpus);
        if saved != usize::from(here) {
            return Err(VmError::Vcpus { saved, here });
        }
        for id in 0..here {
            self.vcpus.push(self.vm.create_vcpu(id.into()).map_err(kvm("create a vCPU"))?);
        }
        Native::restore_vm(&self.vm, &snapshot.vm)?;
        for ((id, vcpu), state) in (0..).zip(&self.vcpus).zip(&snapshot.vcpus) {
            self.processor.restore_vcpu(vcpu, id, state)?;
        }
        // Last: what they have to tell the guest goes through the interrupt controllers.
        self.bus.restore(&snapshot.devices)?;
        // The guest's kernel begins anew with its random numbers, before it gets a seed over the stream.
        self.begin_generation()?;
        self.generation.trigger();
        Ok(())
    }

    /// Gives the machine a generation that no other one has.
    fn begin_generation(&self) -> Result<(), VmError> {
        let mut generation = [0; arch::GENERATION];
        // So few bytes come whole (getrandom(2)).
        rustix::rand::getrandom(&mut generation[..], rustix::rand::GetRandomFlags::empty())
            .map_err(|e| VmError::Io { what: "draw the generation of a VM", source: e.into() })?;
        let at = GuestAddress(Native::GENERATION_BASE);
        self.memory.write_slice(&generation, at).map_err(VmError::Generation)
    }

    /// Has KVM map these pages of RAM, by their place in the template's memory, so that the guest does not have to stop for them.
    /// Only a matter of time.
    pub fn map_in_advance(&self, pages: &[(u64, u64)]) {
        let Some(vcpu) = self.vcpus.first() else { return };
        for &(offset, len) in pages {
            let Some((guest, _)) = memory::place(&self.memory, (offset, len)) else { continue };
            if prefault::map(vcpu, guest, len).is_err() {
                return;
            }
        }
    }

    /// The VM as it stands still, with these vCPUs of it.
    pub fn snapshot(&self, vcpus: Vec<VcpuState>) -> Result<Snapshot, VmError> {
        let (console, devices) = self.bus.save();
        Ok(Snapshot { vm: Native::save_vm(&self.vm)?, vcpus, devices, console })
    }

    /// What reads the state of this VM's vCPUs.
    pub fn processor(&self) -> Arc<<Native as Architecture>::Processor> {
        self.processor.clone()
    }

    /// Address ranges of this process that are guest RAM, closure or growing disk.
    pub fn guest_ranges(&self) -> Vec<(u64, u64)> {
        let ram = self.memory.iter().map(|r| (r.as_ptr() as u64, r.len()));
        ram.chain(self.mapped.iter().copied()).collect()
    }
}

/// Puts each device behind its registers, and connects its interrupt and its queue notifications.
fn connect(
    vm: &VmFd,
    memory: &GuestMemoryMmap,
    devices: Vec<Box<dyn Device>>,
    slots: &[MmioSlot],
) -> Result<(Vec<Transport>, Vec<Kick>), VmError> {
    let (mut transports, mut kicks) = (Vec::new(), Vec::new());
    for (index, (device, slot)) in devices.into_iter().zip(slots).enumerate() {
        let transport = Transport::new(device, memory.clone(), Box::new(irq(vm, slot.gsi)?));
        for queue in 0..transport.queue_count() {
            kicks.push(Kick { event: kick(vm, slot, queue as u32)?, device: index, queue });
        }
        transports.push(transport);
    }
    Ok((transports, kicks))
}

/// Raises an interrupt line of the interrupt controller, which is inside KVM.
struct Irq(EventFd);

impl Interrupt for Irq {
    fn trigger(&self) {
        // Fails only at 2^64 - 1 pending interrupts.
        let _ = self.0.write(1);
    }
}

fn irq(vm: &VmFd, gsi: u32) -> Result<Irq, VmError> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(io("create an eventfd"))?;
    vm.register_irqfd(&event, gsi).map_err(kvm("connect an interrupt"))?;
    Ok(Irq(event))
}

fn kick(vm: &VmFd, slot: &MmioSlot, queue: u32) -> Result<EventFd, VmError> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(io("create an eventfd"))?;
    let address = IoEventAddress::Mmio(slot.base + register::QUEUE_NOTIFY);
    vm.register_ioevent(&event, &address, queue).map_err(kvm("connect a queue notification"))?;
    Ok(event)
}
