//! x86_64: PVH boot of an ELF kernel, in-kernel APICs, hardware-reduced ACPI, a console behind port I/O.

mod acpi;
mod boot;
mod cpuid;
mod layout;
mod ports;
mod registers;
mod state;

use std::sync::Mutex;

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::{Architecture, Boot, Entry, Hardware, LoadError, Processor, Served, SetupError};
use crate::kvm::devices::console::Console;
use crate::kvm::end::End;

pub struct X86_64;

impl Architecture for X86_64 {
    /// - `console=ttyS0 8250.nr_uarts=1`: COM1, and no other port to look for.
    /// - `reboot=k`: a reset goes through the keyboard controller's reset line, which needs no firmware.
    /// - `pci=off`: there is no bus to probe.
    /// - `nokaslr`: the kernel starts unpacked, where nothing could move it; this only avoids a warning.
    /// - `tsc=reliable no_timer_check`: the clock is KVM's; there is no other to compare it with.
    const CMDLINE: &'static str =
        "console=ttyS0 8250.nr_uarts=1 reboot=k pci=off nokaslr tsc=reliable no_timer_check";
    /// More than any builder uses well, and fewer than an 8-bit APIC id can name.
    const VCPUS_MAX: u8 = 128;
    const MMIO_BASE: u64 = layout::MMIO_BASE;
    const MMIO_STRIDE: u64 = layout::MMIO_STRIDE;
    const FIRST_GSI: u32 = layout::FIRST_GSI;
    const CONSOLE_GSI: u32 = layout::COM1_GSI;
    const GENERATION_BASE: u64 = layout::GENERATION;
    const GENERATION_GSI: u32 = layout::GENERATION_GSI;
    const SYSTEM_CALLS: &'static [(libc::c_long, &'static str)] = &[(
        libc::SYS_epoll_wait,
        "the event thread waits; libcs of other architectures only have epoll_pwait",
    )];

    fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
        layout::ram_ranges(bytes)
    }

    fn closure_base(ram: &[(u64, u64)]) -> u64 {
        layout::closure_base(ram)
    }

    type Processor = Cpu;

    fn prepare_vm(kvm: &Kvm, vm: &VmFd, vcpus: u8) -> Result<Cpu, SetupError> {
        vm.set_tss_address(layout::TSS).map_err(failed("place the TSS"))?;
        // In-kernel PIC, IOAPIC and local APICs: interrupts never pass through this process.
        vm.create_irq_chip().map_err(failed("create the interrupt controllers"))?;
        switch_counters_off(vm)?;
        let (supported, tsc_deadline) =
            cpuid::supported(kvm).map_err(failed("ask KVM which CPU features it has"))?;
        Ok(Cpu { supported, tsc_deadline, vcpus, msrs: state::msr_indices(kvm)? })
    }

    type VmState = state::VmState;

    fn save_vm(vm: &VmFd) -> Result<state::VmState, SetupError> {
        state::save_vm(vm)
    }

    fn restore_vm(vm: &VmFd, state: &state::VmState) -> Result<(), SetupError> {
        state::restore_vm(vm, state)
    }

    fn load(memory: &GuestMemoryMmap, hardware: &Hardware, boot: Boot<'_>) -> Result<Entry, LoadError> {
        boot::load(memory, hardware, boot).map_err(|error| LoadError(error.into()))
    }

    fn serve<'a>(exit: VcpuExit<'a>, console: &Mutex<Console>) -> Served<'a> {
        match exit {
            VcpuExit::IoIn(port, data) => ports::read(port, data, console),
            VcpuExit::IoOut(port, data) => {
                if let Some(stop) = ports::write(port, data, console) {
                    return Served::End(End::Guest(stop));
                }
            }
            VcpuExit::Shutdown => return Served::End(End::Crashed("triple fault")),
            VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
            other => return Served::Common(other),
        }
        Served::Done
    }
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SetupError {
    move |source| SetupError { what, source }
}

/// The properties that all vCPUs of this VM share.
pub struct Cpu {
    supported: kvm_bindings::CpuId,
    tsc_deadline: bool,
    vcpus: u8,
    /// The model-specific registers that belong to a vCPU's state.
    msrs: Vec<u32>,
}

impl Cpu {
    fn describe(&self, vcpu: &VcpuFd, id: u8) -> Result<(), SetupError> {
        let cpuid = cpuid::for_vcpu(&self.supported, self.tsc_deadline, id, self.vcpus);
        vcpu.set_cpuid2(&cpuid).map_err(failed("describe the CPU to the guest"))
    }
}

/// Switches performance counters off, whatever CPUID tells the guest. Possible from Linux 5.18 on; on older
/// kernels CPUID only hides them.
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

impl Processor for Cpu {
    type State = state::VcpuState;

    fn address_limit(&self) -> u64 {
        1 << cpuid::physical_bits(&self.supported).clamp(32, 52)
    }

    fn prepare_vcpu(&self, vcpu: &VcpuFd, id: u8, entry: Entry) -> Result<(), SetupError> {
        self.describe(vcpu, id)?;
        registers::common(vcpu)?;
        if id == 0 {
            registers::boot(vcpu, entry)?;
        }
        Ok(())
    }

    fn save_vcpu(&self, vcpu: &VcpuFd) -> Result<state::VcpuState, SetupError> {
        state::save_vcpu(vcpu, &self.msrs)
    }

    fn restore_vcpu(&self, vcpu: &VcpuFd, id: u8, state: &state::VcpuState) -> Result<(), SetupError> {
        self.describe(vcpu, id)?;
        state::restore_vcpu(vcpu, state)
    }
}
