//! The system calls of a running VMM. Any other ends the process.
//!
//! Installed on all threads at once, after the last thread, file and mapping was made and before the first guest
//! instruction. So there is no opening, no connecting, no cloning, no executing, and of the ioctls only KVM_RUN. A home
//! gets files, which its VMM maps, and streams while it runs: the filter of its VMM allows just that in addition.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::kvm::arch::{Architecture, Native};
use crate::kvm::handover::Shape;

/// KVM_RUN, `_IO(KVMIO, 0x80)`; not exported by kvm-ioctls.
const KVM_RUN: u64 = 0xae80;
/// The bits of an ioctl's number that say whose it is: for KVM's, those of `KVMIO`.
const KVM_TYPE: u64 = 0xff00;

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("cannot compile the system call filter")]
    Compile(#[from] seccompiler::BackendError),
    #[error("cannot install the system call filter")]
    Install(#[from] seccompiler::Error),
}

/// Calls allowed with any arguments, each with the code that needs it. The architecture adds its own.
#[rustfmt::skip]
const ALLOWED: &[(libc::c_long, &str)] = &[
    (libc::SYS_read, "eventfds of the event thread"),
    (libc::SYS_write, "interrupts (eventfd), the agent's stream, the status line"),
    (libc::SYS_recvfrom, "the agent's stream, as std reads a socket; frames for the guest"),
    (libc::SYS_sendto, "the agent's stream, as std writes a socket; frames of the guest"),
    (libc::SYS_shutdown, "tells the agent that the guest is done"),
    (libc::SYS_pwrite64, "the console ring"),
    (libc::SYS_epoll_pwait, "the event thread waits, as some libcs call it"),
    (libc::SYS_epoll_ctl, "the event thread changes what it waits for"),
    (libc::SYS_futex, "locks between vCPUs and the event thread; the main thread waits"),
    (libc::SYS_getrandom, "virtio-rng"),
    (libc::SYS_brk, "malloc"),
    (libc::SYS_munmap, "malloc"),
    (libc::SYS_mremap, "malloc"),
    (libc::SYS_madvise, "malloc gives memory back"),
    (libc::SYS_sched_yield, "contended locks"),
    (libc::SYS_clock_gettime, "when the vDSO cannot answer"),
    (libc::SYS_restart_syscall, "the kernel, after a stop and continue"),
    (libc::SYS_rt_sigreturn, "return from a signal"),
    (libc::SYS_close, "an eventfd dropped on the way out; what a home was given"),
    (libc::SYS_exit, "a thread ends"),
    (libc::SYS_exit_group, "the VMM ends"),
];

/// What the VMM of a machine with a growing disk needs beside those. No other VMM may receive descriptors.
#[rustfmt::skip]
const ALLOWED_WITH_A_DISK: &[(libc::c_long, &str)] = &[
    (libc::SYS_recvmsg, "the files of an image, with a byte for each batch; a stream"),
    (libc::SYS_fstat, "a file is not mapped beyond its end"),
];

/// What the VMM of a template needs beside those, to stop its vCPUs and to read what they are at. No program but this project's
/// own has run in its guest.
#[rustfmt::skip]
const ALLOWED_FOR_A_TEMPLATE: &[(libc::c_long, &str)] = &[
    (libc::SYS_tgkill, "a signal stops a vCPU that is in the guest"),
    (libc::SYS_getpid, "likewise, as the C library sends it"),
    (libc::SYS_gettid, "likewise"),
    (libc::SYS_rt_sigprocmask, "likewise: no other signal meanwhile"),
];

/// The filter of a VMM of this shape.
pub fn filter(shape: &Shape, is_template: bool) -> Result<BpfProgram, SeccompError> {
    let with_disk = if shape.has_disk() { ALLOWED_WITH_A_DISK } else { &[] };
    let of_template = if is_template { ALLOWED_FOR_A_TEMPLATE } else { &[] };
    let allowed = ALLOWED.iter().chain(Native::SYSTEM_CALLS).chain(with_disk).chain(of_template);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed.map(|(number, _reason)| (*number, Vec::new())).collect();
    // vCPU threads enter the guest. Nothing else of KVM: no new memory slots, no new VMs.
    let (which, number) = match is_template {
        false => (SeccompCmpOp::Eq, KVM_RUN),
        true => (SeccompCmpOp::MaskedEq(KVM_TYPE), KVM_RUN & KVM_TYPE),
    };
    rules.insert(libc::SYS_ioctl, vec![argument(1, SeccompCmpArgLen::Dword, which, number)?]);
    // malloc, for large buffers; the images of a growing disk. Never executable memory.
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    rules.insert(libc::SYS_mmap, vec![argument(2, SeccompCmpArgLen::Dword, executable.clone(), 0)?]);
    rules.insert(libc::SYS_mprotect, vec![argument(2, SeccompCmpArgLen::Dword, executable, 0)?]);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    compile(rules, arch)
}

/// These calls, with any arguments, and no others: for a process that is no VMM.
pub fn filter_of(calls: &[(libc::c_long, &str)]) -> Result<BpfProgram, SeccompError> {
    let rules = calls.iter().map(|(number, _reason)| (*number, Vec::new())).collect();
    compile(rules, TargetArch::try_from(std::env::consts::ARCH)?)
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, arch: TargetArch) -> Result<BpfProgram, SeccompError> {
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

fn argument(
    index: u8,
    len: SeccompCmpArgLen,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, SeccompError> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(index, len, op, value)?])?)
}

/// Installs the filter in this thread and all others of the process.
pub fn install(filter: &BpfProgram) -> Result<(), SeccompError> {
    keep_malloc_within_the_filter();
    Ok(seccompiler::apply_filter_all_threads(filter)?)
}

/// glibc's malloc opens `/proc/sys/vm/overcommit_memory` before it gives free memory of a thread other than the main one back for
/// the first time, and counts the processors before it makes a ninth arena. So it does neither. What is large is mapped, and
/// goes back at once.
#[cfg(target_env = "gnu")]
fn keep_malloc_within_the_filter() {
    let settings =
        [(libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_ARENA_MAX, 1)];
    for (name, value) in settings {
        // SAFETY: takes two numbers, and may be called at any time. It fails for names that it does not know, and knows these.
        unsafe { libc::mallopt(name, value) };
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_malloc_within_the_filter() {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::handover::DeviceKind;

    const BUILD: &[DeviceKind] = &[DeviceKind::Vsock, DeviceKind::Rng, DeviceKind::Net];
    const HOME: &[DeviceKind] = &[DeviceKind::Vsock, DeviceKind::Disk, DeviceKind::Net];

    fn filter_with(devices: &[DeviceKind]) -> BpfProgram {
        filter(&Shape { vcpus: 1, memory_mib: 128, devices: devices.to_vec() }, false).unwrap()
    }

    /// What a filter says of a system call, as the kernel would run it.
    fn verdict(filter: &BpfProgram, number: u32, arguments: [u64; 6]) -> u32 {
        // linux/seccomp.h: struct seccomp_data. linux/audit.h: AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64.
        let arch: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let mut data = Vec::new();
        data.extend([number, arch, 0, 0].into_iter().flat_map(u32::to_ne_bytes));
        data.extend(arguments.into_iter().flat_map(u64::to_ne_bytes));
        let (mut at, mut a) = (0, 0u32);
        loop {
            let instruction = &filter[at];
            let k = instruction.k;
            at += 1;
            let jump = |is: bool| usize::from(if is { instruction.jt } else { instruction.jf });
            // linux/bpf_common.h: class, size or operation, mode or source.
            match instruction.code {
                0x20 => {
                    let word = data[k as usize..][..4].try_into().unwrap();
                    a = u32::from_ne_bytes(word);
                }
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(a == k),
                0x25 => at += jump(a > k),
                0x35 => at += jump(a >= k),
                0x45 => at += jump(a & k != 0),
                0x06 => return k,
                other => panic!("an instruction {other:#x} that filters do not have"),
            }
        }
    }

    /// The system calls up to a number that Linux does not have yet, which a filter lets through with these arguments.
    fn allowed(filter: &BpfProgram, arguments: [u64; 6]) -> Vec<i64> {
        const ALLOW: u32 = 0x7fff_0000;
        (0..1000).filter(|number| verdict(filter, *number, arguments) == ALLOW).map(i64::from).collect()
    }

    #[test]
    fn each_filter_allows_what_its_vmm_needs_and_nothing_else() {
        let (build, home) = (filter_with(BUILD), filter_with(HOME));
        // Whatever the arguments are, but for the three calls that look at them.
        for arguments in [[0; 6], [1, KVM_RUN, 3, 4, 5, 6], [u64::MAX; 6]] {
            let listed = ALLOWED.iter().chain(Native::SYSTEM_CALLS).map(|(number, _)| *number);
            let mut expected: Vec<_> = listed.collect();
            if arguments[1] == KVM_RUN {
                expected.push(libc::SYS_ioctl);
            }
            if arguments[2] & libc::PROT_EXEC as u64 == 0 {
                expected.extend([libc::SYS_mmap, libc::SYS_mprotect]);
            }
            expected.sort_unstable();
            assert_eq!(allowed(&build, arguments), expected, "{arguments:?}");
            expected.extend([libc::SYS_recvmsg, libc::SYS_fstat]);
            expected.sort_unstable();
            assert_eq!(allowed(&home, arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn the_vmm_of_a_template_may_stop_its_vcpus_and_ask_kvm_for_anything_and_no_more() {
        let shape = Shape { vcpus: 1, memory_mib: 128, devices: BUILD.to_vec() };
        let (template, build) = (filter(&shape, true).unwrap(), filter_with(BUILD));
        // KVM_GET_REGS; an ioctl of terminals; one of KVM's number with another's type.
        for (ioctl, is_kvm) in [(KVM_RUN, true), (0x8090_ae81, true), (0x5401, false), (0xaf80, false)] {
            let arguments = [3, ioctl, 0, 0, 0, 0];
            let mut expected = allowed(&build, arguments);
            expected.extend([libc::SYS_tgkill, libc::SYS_getpid, libc::SYS_gettid, libc::SYS_rt_sigprocmask]);
            if is_kvm && ioctl != KVM_RUN {
                expected.push(libc::SYS_ioctl);
            }
            expected.sort_unstable();
            assert_eq!(allowed(&template, arguments), expected, "{ioctl:#x}");
        }
    }

    /// Runs `call` in a process of its own under the filter of a home; true if it was killed by it.
    fn is_killed(call: fn()) -> bool {
        let filter = filter_with(HOME);
        // SAFETY: the child only makes system calls and ends with _exit: it takes no lock another thread may hold.
        // `apply_filter` allocates nothing.
        unsafe {
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                if seccompiler::apply_filter(&filter).is_err() {
                    libc::_exit(3);
                }
                call();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
            if libc::WIFSIGNALED(status) {
                assert_eq!(libc::WTERMSIG(status), libc::SIGSYS);
                return true;
            }
            assert_eq!(libc::WEXITSTATUS(status), 0, "the filter could not be installed");
            false
        }
    }

    /// In threads that have memory of their own. Each way of allocating is used: from heaps that grow and shrink, and by mappings.
    #[test]
    fn memory_is_allocated_and_freed_in_any_amount_without_another_system_call() {
        let filter = filter_with(BUILD);
        // SAFETY: under nextest a test has a process of its own, whose other thread only waits for this one: no lock is held
        // that the child would miss. The child ends with _exit.
        unsafe {
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                let gate = std::sync::Arc::new(std::sync::Barrier::new(13));
                for _ in 0..12 {
                    let gate = gate.clone();
                    std::thread::spawn(move || {
                        gate.wait();
                        gate.wait();
                        for size in [1 << 10, 64 << 10, 256 << 10, 64 << 10] {
                            let all: Vec<Vec<u8>> = (0..64).map(|_| vec![1; size]).collect();
                            drop(std::hint::black_box(all));
                        }
                        gate.wait();
                        loop {
                            std::thread::park();
                        }
                    });
                }
                gate.wait();
                if install(&filter).is_err() {
                    libc::_exit(3);
                }
                gate.wait();
                gate.wait();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
            assert_eq!(status, 0, "killed, or not installed");
        }
    }

    /// A system call with numbers and the addresses of constants as arguments; its result does not matter here.
    fn call(number: libc::c_long, arguments: [libc::c_long; 6]) {
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: the callers pass constant strings, closed descriptors and null; no memory of this process changes
        // but for fresh anonymous mappings, which nothing uses.
        unsafe {
            libc::syscall(number, a, b, c, d, e, f);
        }
    }

    const ANONYMOUS: libc::c_long = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as libc::c_long;

    fn map(protection: i32) {
        call(libc::SYS_mmap, [0, 4096, protection.into(), ANONYMOUS, -1, 0]);
    }

    #[test]
    fn opening_connecting_cloning_executing_and_other_ioctls_end_the_process() {
        let forbidden: [(&str, fn()); 6] = [
            ("open", || call(libc::SYS_openat, [libc::AT_FDCWD.into(), c"/".as_ptr() as _, 0, 0, 0, 0])),
            ("socket", || {
                call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0]);
            }),
            ("clone", || call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0, 0])),
            ("exec", || call(libc::SYS_execve, [c"/bin/true".as_ptr() as _, 0, 0, 0, 0, 0])),
            ("ioctl", || call(libc::SYS_ioctl, [0, 0xae01, 0, 0, 0, 0])),
            ("mmap exec", || map(libc::PROT_READ | libc::PROT_EXEC)),
        ];
        for (name, call) in forbidden {
            assert!(is_killed(call), "{name} was allowed");
        }
    }

    #[test]
    fn what_a_running_vmm_does_is_allowed() {
        assert!(!is_killed(|| {
            // The descriptor is closed: the call gets through the filter and fails with EBADF.
            call(libc::SYS_ioctl, [-1, KVM_RUN as libc::c_long, 0, 0, 0, 0]);
            call(libc::SYS_write, [-1, 0, 0, 0, 0, 0]);
            call(libc::SYS_futex, [0, libc::FUTEX_WAKE.into(), 0, 0, 0, 0]);
            map(libc::PROT_READ | libc::PROT_WRITE);
        }));
    }
}
