//! Everything that differs between processor architectures, behind one trait.
//!
//! The rest of the VMM says [`Native`] and names no register, no port and no address. Another architecture is a folder
//! beside `x86_64` with one type that implements [`Architecture`], and a line below that makes it `Native`. Until then
//! the crate does not compile for that processor, and the only error lists the items that are missing.

use std::error::Error;
use std::fs::File;
use std::sync::Mutex;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_memory::GuestMemoryMmap;

use super::devices::console::Console;
use super::end::End;

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::X86_64 as Native;

#[cfg(not(target_arch = "x86_64"))]
mod missing;

#[cfg(not(target_arch = "x86_64"))]
pub use missing::Missing as Native;

/// Bytes of a machine's generation: a number that no other machine has. A copy gets another one than its template, and its kernel
/// notices. "Virtual Machine Generation ID", Microsoft, 2012; Linux: drivers/virt/vmgenid.c.
pub const GENERATION: usize = 16;

/// The functions and constants that the VMM needs from an architecture.
pub trait Architecture {
    /// Words for the guest kernel's command line: the name of its console, how a panic resets the machine, which
    /// hardware not to look for.
    const CMDLINE: &'static str;

    /// Most vCPUs that the interrupt controller and the description of the hardware can name.
    const VCPUS_MAX: u8;

    /// Guest address of the registers of the first virtio-mmio device.
    const MMIO_BASE: u64;
    /// Distance between the registers of one device and the next.
    const MMIO_STRIDE: u64;
    /// Interrupt line of the first virtio-mmio device; each other device has the next one.
    const FIRST_GSI: u32;
    /// Interrupt line of the console.
    const CONSOLE_GSI: u32;
    /// Guest address of the machine's generation, of [`GENERATION`] bytes, outside of all that the kernel may use.
    const GENERATION_BASE: u64;
    /// Interrupt line that tells the guest of another generation.
    const GENERATION_GSI: u32;

    /// System calls of the running VMM whose names exist, or are used, on this architecture only. Each has its reason.
    const SYSTEM_CALLS: &'static [(libc::c_long, &'static str)];

    /// RAM of `bytes` as (guest address, length), around the addresses of devices.
    fn ram_ranges(bytes: u64) -> Vec<(u64, u64)>;

    /// The guest address of the closure, above all RAM and all devices.
    fn closure_base(ram: &[(u64, u64)]) -> u64;

    /// The properties that the vCPUs of one VM share.
    type Processor: Processor;

    /// Makes the interrupt controller and whatever else must exist before the first vCPU.
    fn prepare_vm(kvm: &Kvm, vm: &VmFd, vcpus: u8) -> Result<Self::Processor, SetupError>;

    /// What the interrupt controllers and the clock of a VM are at. For a copy of the VM, on the same host.
    type VmState: Serialize + DeserializeOwned + Send;

    /// No vCPU may be running.
    fn save_vm(vm: &VmFd) -> Result<Self::VmState, SetupError>;

    /// All vCPUs have been made, and not restored yet.
    fn restore_vm(vm: &VmFd, state: &Self::VmState) -> Result<(), SetupError>;

    /// Puts kernel, initrd, command line and the description of the hardware into guest memory.
    fn load(memory: &GuestMemoryMmap, hardware: &Hardware, boot: Boot<'_>) -> Result<Entry, LoadError>;

    /// Serves an exit that only this architecture has, such as port I/O or a processor that has shut down.
    /// Returns the exits that all architectures have. The console is the only device that an architecture finds itself.
    fn serve<'a>(exit: VcpuExit<'a>, console: &Mutex<Console>) -> Served<'a>;
}

/// The properties that the vCPUs of one VM share.
pub trait Processor: Send + Sync + 'static {
    /// What a vCPU is at.
    type State: Serialize + DeserializeOwned + Send;

    /// The first guest-physical address that does not exist.
    fn address_limit(&self) -> u64;

    /// Sets up vCPU `id`. The first one starts at `entry`; the others wait until it starts them.
    fn prepare_vcpu(&self, vcpu: &VcpuFd, id: u8, entry: Entry) -> Result<(), SetupError>;

    /// The vCPU must not be running.
    fn save_vcpu(&self, vcpu: &VcpuFd) -> Result<Self::State, SetupError>;

    /// In place of `prepare_vcpu`: the vCPU goes on where the one with this state stopped.
    fn restore_vcpu(&self, vcpu: &VcpuFd, id: u8, state: &Self::State) -> Result<(), SetupError>;
}

/// The outcome of handling a vCPU's exit.
pub enum Served<'a> {
    /// The vCPU goes on.
    Done,
    /// The VM is over.
    End(End),
    /// An exit that all architectures have.
    Common(VcpuExit<'a>),
}

/// One virtio-mmio device as the description of the hardware must show it to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    pub base: u64,
    pub size: u64,
    pub gsi: u32,
}

/// The start address of the boot vCPU, in the architecture's own form.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub instruction: u64,
    pub argument: u64,
}

/// The parts of the machine that its description for the guest must list.
pub struct Hardware {
    pub vcpus: u8,
    /// (guest address, length).
    pub ram: Vec<(u64, u64)>,
    pub slots: Vec<MmioSlot>,
}

/// The kernel to boot. The files are the agent's own, not a member's.
pub struct Boot<'a> {
    pub kernel: &'a mut File,
    pub initrd: &'a mut File,
    pub cmdline: &'a str,
}

/// KVM refused a step of setting up the VM or a vCPU.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct SetupError {
    pub what: &'static str,
    pub source: kvm_ioctls::Error,
}

/// The guest's memory could not be filled. The message is the architecture's.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LoadError(#[from] Box<dyn Error + Send + Sync>);
