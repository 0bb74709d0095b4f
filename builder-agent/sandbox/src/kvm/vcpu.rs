//! The loop of one vCPU: enters the guest, handles the reason of its exit, and enters it again.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::arch::{Architecture, Native, Served};
use super::bus::Bus;
use super::end::{End, Stop};

/// Runs the vCPU. Returns when the machine must stop, or after a signal when `pause` is set: then everything that the guest had
/// begun outside of the processor is complete.
pub fn run(vcpu: &mut VcpuFd, machine: &Bus, pause: &AtomicBool) -> End {
    loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            // A signal arrived. KVM has noted the answer to the exit before.
            Err(e) if e.errno() == libc::EINTR && pause.load(Ordering::SeqCst) => return End::Paused,
            // KVM must be called again.
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Err(e) => return End::Kvm(format!("KVM_RUN failed: {e}")),
        };
        let exit = match Native::serve(exit, &machine.console) {
            Served::Done => continue,
            Served::End(end) => return end,
            Served::Common(exit) => exit,
        };
        match exit {
            VcpuExit::MmioRead(address, data) => machine.mmio_read(address, data),
            VcpuExit::MmioWrite(address, data) => machine.mmio_write(address, data),
            VcpuExit::SystemEvent(..) => return End::Guest(Stop::Reset),
            VcpuExit::Intr => {}
            VcpuExit::FailEntry(reason, cpu) => {
                return End::Kvm(format!(
                    "the processor refused to enter the guest (reason {reason:#x}, cpu {cpu})"
                ));
            }
            VcpuExit::InternalError => {
                // The kernel's suberror is the only thing that distinguishes two such exits.
                // SAFETY: KVM filled this member of the union for this exit reason.
                let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                return End::Kvm(format!("KVM gave up with internal error {suberror}"));
            }
            other => return End::Kvm(format!("KVM stopped for a reason unknown to us: {other:?}")),
        }
    }
}
