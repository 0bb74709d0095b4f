//! x86_64: PVH boot of an ELF kernel, in-kernel APICs, hardware-reduced ACPI.

mod acpi;
mod boot;
mod cpuid;
pub mod layout;
mod registers;

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::Entry;
pub use boot::{Boot, LoadError, load};

/// `_S5` writes here (ACPI sleep control register): power off.
const SLEEP_PORT: u16 = 0x600;
const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
const RESET_PORT: u16 = 0x602;
/// Keyboard controller command port; 0xfe pulses the reset line. Linux falls back to it (`reboot=k`).
const KEYBOARD_PORT: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct SetupError {
    pub what: &'static str,
    pub source: kvm_ioctls::Error,
}

pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SetupError {
    move |source| SetupError { what, source }
}

/// What every vCPU of this VM has in common.
pub struct Processor {
    supported: kvm_bindings::CpuId,
    tsc_deadline: bool,
    vcpus: u8,
}

/// Everything KVM wants to know before the first vCPU is made.
pub fn prepare_vm(kvm: &Kvm, vm: &VmFd, vcpus: u8) -> Result<Processor, SetupError> {
    vm.set_tss_address(layout::TSS).map_err(failed("place the TSS"))?;
    // In-kernel PIC, IOAPIC and local APICs: interrupts never pass through this process.
    vm.create_irq_chip().map_err(failed("create the interrupt controllers"))?;
    switch_counters_off(vm)?;
    let (supported, tsc_deadline) =
        cpuid::supported(kvm).map_err(failed("ask KVM which CPU features it has"))?;
    Ok(Processor { supported, tsc_deadline, vcpus })
}

/// No performance counter works in this VM, whatever its guest believes to have. Kernels from 5.18 on can; before, the
/// guest is only not told of any.
fn switch_counters_off(vm: &VmFd) -> Result<(), SetupError> {
    let offered = vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if offered <= 0 || offered as u32 & KVM_PMU_CAP_DISABLE == 0 {
        return Ok(());
    }
    let cap = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(failed("switch the guest's performance counters off"))
}

impl Processor {
    /// First guest-physical address that does not exist.
    pub fn address_limit(&self) -> u64 {
        1 << cpuid::physical_bits(&self.supported).clamp(32, 52)
    }

    /// Sets up vCPU `id`; the first one is given `entry`, the others wait to be started by it.
    pub fn prepare_vcpu(&self, vcpu: &VcpuFd, id: u8, entry: Entry) -> Result<(), SetupError> {
        let cpuid = cpuid::for_vcpu(&self.supported, self.tsc_deadline, id, self.vcpus);
        vcpu.set_cpuid2(&cpuid).map_err(failed("describe the CPU to the guest"))?;
        registers::common(vcpu)?;
        if id == 0 {
            registers::boot(vcpu, entry)?;
        }
        Ok(())
    }
}

/// Why the guest wants the machine to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    PowerOff,
    Reset,
}

/// A write to a port that is no device. Everything but the ways to stop goes nowhere.
pub fn port_write(port: u16, data: &[u8]) -> Option<Stop> {
    match (port, data) {
        (SLEEP_PORT, [_]) => Some(Stop::PowerOff),
        (RESET_PORT, [_]) => Some(Stop::Reset),
        (KEYBOARD_PORT, [KEYBOARD_RESET]) => Some(Stop::Reset),
        _ => None,
    }
}

/// A read from a port that is no device.
pub fn port_read(port: u16, data: &mut [u8]) {
    // The keyboard controller's status must say "ready", or the kernel polls it before it asks for a reset.
    // An absent device floats high.
    data.fill(if matches!(port, KEYBOARD_PORT | SLEEP_STATUS_PORT) { 0 } else { 0xff });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_ways_to_stop_stop_the_machine() {
        assert_eq!(port_write(SLEEP_PORT, &[0x34]), Some(Stop::PowerOff));
        assert_eq!(port_write(RESET_PORT, &[1]), Some(Stop::Reset));
        assert_eq!(port_write(KEYBOARD_PORT, &[0xfe]), Some(Stop::Reset));
        for port in 0..=u16::MAX {
            if ![SLEEP_PORT, RESET_PORT].contains(&port) {
                assert_eq!(port_write(port, &[1]), None, "{port:#x}");
            }
            assert_eq!(port_write(port, &[]), None);
            assert_eq!(port_write(port, &[1, 2, 3, 4]), None);
        }
    }
}
