//! The state of processors and interrupt controllers, for a VM that continues where another one was.
//!
//! It is written and read on the same host by the same program, so that it needs no version. Order matters: KVM looks at
//! some registers when it is given others (Linux: arch/x86/kvm/x86.c, Documentation/virt/kvm/api.rst).

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data, kvm_debugregs,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{SetupError, failed};

const MSR_TSC: u32 = 0x10;
/// Set last: KVM compares it with the time-stamp counter, and wants the APIC's timer to be in the mode that uses it.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

#[derive(Serialize, Deserialize)]
pub struct VmState {
    chips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    mp: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

pub fn save_vm(vm: &VmFd) -> Result<VmState, SetupError> {
    let chip = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(failed("read an interrupt controller"))?;
        Ok(chip)
    };
    let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].map(chip);
    let clock = vm.get_clock().map_err(failed("read the guest's clock"))?;
    Ok(VmState { chips: chips.into_iter().collect::<Result<_, SetupError>>()?, clock })
}

pub fn restore_vm(vm: &VmFd, state: &VmState) -> Result<(), SetupError> {
    for chip in &state.chips {
        vm.set_irqchip(chip).map_err(failed("set an interrupt controller"))?;
    }
    // Without flags: the guest's clock goes on from here, as if no time had passed.
    let clock = kvm_clock_data { clock: state.clock.clock, ..Default::default() };
    vm.set_clock(&clock).map_err(failed("set the guest's clock"))
}

/// The model-specific registers that a guest can change, as KVM lists them.
pub fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, SetupError> {
    let list = kvm.get_msr_index_list().map_err(failed("ask KVM for the model-specific registers"))?;
    let mut indices = list.as_slice().to_vec();
    indices.sort_by_key(|index| *index == MSR_TSC_DEADLINE);
    Ok(indices)
}

/// The vCPU must not be running.
pub fn save_vcpu(vcpu: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, SetupError> {
    Ok(VcpuState {
        // First: KVM settles what is pending when it is asked for this (api.rst, KVM_GET_MP_STATE and INIT signals).
        mp: vcpu.get_mp_state().map_err(failed("read whether a vCPU runs"))?,
        regs: vcpu.get_regs().map_err(failed("read the general registers"))?,
        sregs: vcpu.get_sregs().map_err(failed("read the system registers"))?,
        xsave: vcpu.get_xsave().map_err(failed("read the extended registers"))?,
        xcrs: vcpu.get_xcrs().map_err(failed("read the extended control registers"))?,
        debug: vcpu.get_debug_regs().map_err(failed("read the debug registers"))?,
        lapic: vcpu.get_lapic().map_err(failed("read the local APIC"))?,
        msrs: get_msrs(vcpu, msrs)?,
        events: vcpu.get_vcpu_events().map_err(failed("read what is pending in a vCPU"))?,
    })
}

/// The vCPU has its CPUID, and the VM its interrupt controllers.
pub fn restore_vcpu(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), SetupError> {
    vcpu.set_mp_state(state.mp).map_err(failed("set whether a vCPU runs"))?;
    vcpu.set_regs(&state.regs).map_err(failed("set the general registers"))?;
    vcpu.set_sregs(&state.sregs).map_err(failed("set the system registers"))?;
    // SAFETY: KVM reads as many bytes as the structure has, unless a feature was switched on for guests that needs more; this
    // process switches none on (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM).
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(failed("set the extended registers"))?;
    vcpu.set_xcrs(&state.xcrs).map_err(failed("set the extended control registers"))?;
    vcpu.set_debug_regs(&state.debug).map_err(failed("set the debug registers"))?;
    // After the system registers, which have the APIC's base; before its deadline timer.
    vcpu.set_lapic(&state.lapic).map_err(failed("set the local APIC"))?;
    set_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(failed("set what is pending in a vCPU"))?;
    // The guest's watchdogs must not count the time for which it did not run. Fails where the guest has no such clock.
    let _ = vcpu.kvmclock_ctrl();
    Ok(())
}

/// KVM lists registers for all processors, and stops at the first that this one does not have.
fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, SetupError> {
    let mut left = indices;
    let mut found = Vec::new();
    while !left.is_empty() {
        let wanted: Vec<_> =
            left.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = list(&wanted);
        let count = vcpu.get_msrs(&mut msrs).map_err(failed("read the model-specific registers"))?;
        found.extend_from_slice(&msrs.as_slice()[..count]);
        left = &left[(count + 1).min(left.len())..];
    }
    Ok(found)
}

fn set_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), SetupError> {
    let mut left = entries;
    while !left.is_empty() {
        let what = "set the model-specific registers";
        let count = vcpu.set_msrs(&list(left)).map_err(failed(what))?;
        let Some(refused) = left.get(count) else { break };
        // Some can only be read. That is no loss if they have the value already.
        let here = get_msrs(vcpu, &[refused.index])?;
        if here.first().map(|msr| msr.data) != Some(refused.data) && refused.index != MSR_TSC {
            return Err(failed(what)(kvm_ioctls::Error::new(libc::EINVAL)));
        }
        left = &left[count + 1..];
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry]) -> Msrs {
    Msrs::from_entries(entries).expect("KVM's own list of registers fits its list of registers")
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Cap;

    use super::*;
    use crate::kvm::arch::{Architecture, Entry, Native, Processor};

    fn machine(kvm: &Kvm) -> (VmFd, super::super::Cpu) {
        let vm = kvm.create_vm().unwrap();
        let cpu = Native::prepare_vm(kvm, &vm, 1).unwrap();
        (vm, cpu)
    }

    #[test]
    fn a_vcpu_that_was_restored_is_at_the_same_as_the_saved_one() {
        let kvm = match Kvm::new() {
            Ok(kvm) if kvm.check_extension(Cap::Irqchip) => kvm,
            other => {
                println!("skipped: no KVM here that could make a vCPU: {:?}", other.err());
                return;
            }
        };
        let (vm, cpu) = machine(&kvm);
        let vcpu = vm.create_vcpu(0).unwrap();
        cpu.prepare_vcpu(&vcpu, 0, Entry { instruction: 0x1234, argument: 0x5678 }).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        regs.r13 = 0xfeed;
        vcpu.set_regs(&regs).unwrap();
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: the member of the union that this chip has.
        unsafe { chip.chip.ioapic.redirtbl[7].bits = 0x1_0042 };
        vm.set_irqchip(&chip).unwrap();
        let text = |state: &VcpuState| serde_json::to_value(state).unwrap();
        let (vm_state, state) = (save_vm(&vm).unwrap(), cpu.save_vcpu(&vcpu).unwrap());
        assert!(state.msrs.len() > 20, "{}", state.msrs.len());
        let json = serde_json::to_string(&(&vm_state, &state)).unwrap();

        let (vm, cpu) = machine(&kvm);
        let vcpu = vm.create_vcpu(0).unwrap();
        let (vm_state, state): (VmState, VcpuState) = serde_json::from_str(&json).unwrap();
        restore_vm(&vm, &vm_state).unwrap();
        cpu.restore_vcpu(&vcpu, 0, &state).unwrap();
        assert_eq!(vcpu.get_regs().unwrap().r13, 0xfeed);
        let again = cpu.save_vcpu(&vcpu).unwrap();
        for part in ["mp", "regs", "sregs", "xcrs", "debug", "events"] {
            assert_eq!(text(&again)[part], text(&state)[part], "{part}");
        }
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { chip.chip.ioapic.redirtbl[7].bits }, 0x1_0042);
    }
}
