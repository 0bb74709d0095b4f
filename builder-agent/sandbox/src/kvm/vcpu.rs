//! One vCPU: enters the guest, serves what it stops for, for ever.

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::arch::Stop;
use super::machine::Machine;

/// Why the VM is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest asked for it, in one of the ways the platform has.
    Guest(Stop),
    /// The guest's CPU gave up: a triple fault.
    TripleFault,
    /// KVM could not go on.
    Kvm(String),
}

/// Returns when the machine must stop.
pub fn run(vcpu: &mut VcpuFd, machine: &Machine) -> End {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => machine.mmio_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => machine.mmio_write(address, data),
            Ok(VcpuExit::IoIn(port, data)) => machine.port_read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(stop) = machine.port_write(port, data) {
                    return End::Guest(stop);
                }
            }
            Ok(VcpuExit::Shutdown) => return End::TripleFault,
            Ok(VcpuExit::SystemEvent(..)) => return End::Guest(Stop::Reset),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return End::Kvm(format!(
                    "the processor refused to enter the guest (reason {reason:#x}, cpu {cpu})"
                ));
            }
            Ok(VcpuExit::InternalError) => {
                // The suberror is the kernel's; it is all there is to tell two of these apart.
                // SAFETY: KVM filled this member of the union for this exit reason.
                let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                return End::Kvm(format!("KVM gave up with internal error {suberror}"));
            }
            Ok(other) => return End::Kvm(format!("KVM stopped for a reason unknown to us: {other:?}")),
            // A signal, or KVM wants to be called again.
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return End::Kvm(format!("KVM_RUN failed: {e}")),
        }
    }
}
