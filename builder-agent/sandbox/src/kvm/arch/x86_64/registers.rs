//! Registers of a vCPU at reset. Formats: Intel SDM vol. 3, 3.4.5 (segments), 11.11 (MTRRs), 12.5 (LVT).

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::{SetupError, failed};
use crate::kvm::arch::Entry;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_EXTERNAL: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const RFLAGS_RESERVED: u64 = 2;

pub fn common(vcpu: &VcpuFd) -> Result<(), SetupError> {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        // Without it all guest memory is uncached where KVM honours guest memory types.
        msr(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
    .expect("two entries fit the MSR list");
    // KVM stops at the first MSR it does not know; the kernel runs without either, only slower.
    vcpu.set_msrs(&msrs).map_err(failed("set the model-specific registers"))?;
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })
        .map_err(failed("set the floating-point registers"))?;
    let mut lapic = vcpu.get_lapic().map_err(failed("read the local APIC"))?;
    for (register, mode) in [(LVT_LINT0, DELIVERY_EXTERNAL), (LVT_LINT1, DELIVERY_NMI)] {
        for (i, byte) in mode.to_le_bytes().into_iter().enumerate() {
            lapic.regs[register + i] = byte as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(failed("set the local APIC"))
}

/// PVH start state: 32-bit protected mode, flat segments, no paging, the start info's address in EBX.
/// Source: xen docs/misc/pvh.pandoc, "x86/HVM direct boot ABI".
pub fn boot(vcpu: &VcpuFd, entry: Entry) -> Result<(), SetupError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read the system registers"))?;
    let code = segment(0x8, 0xb, 0xffff_ffff, true);
    let data = segment(0x10, 0x3, 0xffff_ffff, true);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(0x18, 0xb, 0x67, false);
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(failed("set the system registers"))?;
    let regs = kvm_regs {
        rip: entry.instruction,
        rbx: entry.argument,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("set the general registers"))
}

fn segment(selector: u16, type_: u8, limit: u32, flat: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: flat.into(),
        s: flat.into(),
        l: 0,
        g: flat.into(),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
