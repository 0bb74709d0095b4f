//! What differs between processors, behind one small interface.
//!
//! The rest of the VMM says `arch::…` and never names a register. Another architecture is a folder beside
//! `x86_64` with the same items:
//!
//! - `layout::{ram_ranges, closure_base, MMIO_BASE, MMIO_STRIDE, FIRST_GSI}`: where things are in guest memory;
//! - `prepare_vm`: interrupt controller and whatever must exist before the first vCPU;
//! - `load`: kernel, initrd, command line and the description of the hardware, into guest memory; gives an [`Entry`];
//! - `prepare_vcpu`: registers of one vCPU, ready to run at the entry point;
//! - `PlatformIo`: the ports that are not a device of ours, of which only the ways to stop matter.

#[cfg(target_arch = "x86_64")]
#[path = "x86_64/x86_64.rs"]
mod current;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the kvm backend has no `arch` folder for this processor yet");

pub use current::*;

/// One virtio-mmio device as the hardware description must tell it to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioSlot {
    pub base: u64,
    pub size: u64,
    pub gsi: u32,
}

/// Where the boot vCPU starts. Opaque to everybody but the architecture.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub instruction: u64,
    pub argument: u64,
}
