//! Has KVM map guest memory before the guest touches it. kvm-ioctls does not have the call yet.

use std::io;
use std::os::fd::AsRawFd;

use kvm_ioctls::VcpuFd;

/// Linux: Documentation/virt/kvm/api.rst, KVM_PRE_FAULT_MEMORY; include/uapi/linux/kvm.h, `_IOWR(KVMIO, 0xd5, struct
/// kvm_pre_fault_memory)`.
const KVM_PRE_FAULT_MEMORY: u64 = 0xc040_aed5;

/// struct kvm_pre_fault_memory.
#[repr(C)]
struct Range {
    guest: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

/// Maps whole pages. Linux before 6.11 cannot; neither can a processor without second-level page tables.
pub fn map(vcpu: &VcpuFd, guest: u64, len: u64) -> io::Result<()> {
    let mut range = Range { guest, size: len, flags: 0, padding: [0; 5] };
    while range.size > 0 {
        // SAFETY: the kernel reads and writes the one structure, which has the size that is in the number of the call.
        let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_PRE_FAULT_MEMORY as _, &raw mut range) };
        // After a part of the range it may want to be called again for the rest.
        match done {
            0 => {}
            _ => match io::Error::last_os_error() {
                e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}
