//! System calls of a builder that the guest answers (seccomp_unotify(2)): those that list a directory.
//!
//! A filter in the builder and in all that it starts hands these calls to a listener; a caller waits until it has an
//! answer. Everything in a [`Call`] comes from a hostile builder, which may end, or change its memory and descriptors, at
//! any moment. Not here: what the answers are (`listing`).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU8;

use libc::{c_int, c_long, pid_t};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::{cvt, cvt_long};

/// linux/audit.h: the convention by which a call was made.
const X86_64: u32 = 0xC000_003E;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xC000_00B7;

const GETDENTS64_OF_X86_64: u32 = 217;
const GETDENTS_OF_X86_64: u32 = 78;
const GETDENTS64_OF_I386: u32 = 220;
const GETDENTS64_OF_AARCH64: u32 = 61;

/// The calls that are handed over. Not among them: `getdents` and `readdir` of 32-bit programs, whose records have another
/// layout, and which the C libraries of today do not use; and the x32 convention, which Debian's kernels do not offer.
const CALLS: [(u32, &[u32]); 3] = [
    (X86_64, &[GETDENTS64_OF_X86_64, GETDENTS_OF_X86_64]),
    (I386, &[GETDENTS64_OF_I386]),
    (AARCH64, &[GETDENTS64_OF_AARCH64]),
];

/// The layout of the records that a caller expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `struct linux_dirent64`.
    Large,
    /// `struct linux_dirent` of a 64-bit program: the type is the last byte.
    Old,
}

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    id: u64,
    /// The thread that waits.
    thread: pid_t,
    fd: RawFd,
    /// Where the records go, in the memory of the caller.
    buffer: u64,
    /// Bytes of the buffer.
    pub room: u32,
    pub layout: Layout,
}

/// classic BPF: which calls are handed over. linux/seccomp.h, `struct seccomp_data`: the number of the call, then the
/// convention.
fn program() -> Vec<libc::sock_filter> {
    let (load, equal, give) = (
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        (libc::BPF_RET | libc::BPF_K) as u16,
    );
    let step = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // Goes on with the next step if the loaded word is `k`, and `over` steps later if not.
    let unless = |k, over| libc::sock_filter { code: equal, jt: 0, jf: over, k };
    let mut all = vec![step(load, 4)];
    for (convention, calls) in CALLS {
        all.push(unless(convention, 2 + 2 * calls.len() as u8));
        all.push(step(load, 0));
        for call in calls {
            all.extend([unless(*call, 1), step(give, libc::SECCOMP_RET_USER_NOTIF)]);
        }
        all.push(step(give, libc::SECCOMP_RET_ALLOW));
    }
    all.push(step(give, libc::SECCOMP_RET_ALLOW));
    all
}

/// From now on the calls of this thread, and of all that it starts, wait for whoever has the returned listener. Cannot be
/// taken back. The thread must not be able to gain privileges any more.
pub fn hand_over() -> io::Result<OwnedFd> {
    let mut program = program();
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // Without the second one a signal could interrupt a caller whose call is being answered: it would lose a part of the
    // listing.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `program` describes the steps above it, which live until the call returns, and which the kernel checks.
    let made = cvt_long(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            c_long::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            &raw const program,
        )
    });
    let fd = made.map_err(|e| {
        let lack =
            "this kernel does not let the guest answer system calls (seccomp user notification, Linux 5.19)";
        io::Error::new(e.kind(), format!("{lack}: {e}"))
    })?;
    // SAFETY: just made, owned by nobody else; a descriptor fits into an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The next call; `None` if its caller has gone. Blocks unless the listener polls readable.
pub fn next(listener: &OwnedFd) -> io::Result<Option<Call>> {
    // SAFETY: integers only; the kernel wants zeros.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one seccomp_notif, which lives until the call returns.
    let got =
        cvt(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) });
    match got {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => return Ok(None),
        other => other?,
    };
    let is_old = (call.data.arch, call.data.nr) == (X86_64, GETDENTS_OF_X86_64 as c_int);
    Ok(Some(Call {
        id: call.id,
        thread: call.pid as pid_t,
        // The kernel takes the low half of these registers, too.
        fd: call.data.args[0] as RawFd,
        buffer: call.data.args[1],
        room: call.data.args[2] as u32,
        layout: if is_old { Layout::Old } else { Layout::Large },
    }))
}

impl Call {
    /// Whether the caller still waits. Only then the thread's number is still that of the caller.
    pub fn waits(&self, listener: &OwnedFd) -> bool {
        // SAFETY: the kernel reads one number, which lives until the call returns.
        let valid = unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const self.id)
        };
        valid == 0
    }

    /// Ends the call: the caller gets this result. Nothing happens if it waits no more.
    pub fn answer(&self, listener: &OwnedFd, result: Result<u32, Errno>) {
        let (val, error) = match result {
            Ok(bytes) => (i64::from(bytes), 0),
            Err(e) => (0, -e.raw_os_error()),
        };
        let mut answer = libc::seccomp_notif_resp { id: self.id, val, error, flags: 0 };
        // SAFETY: the kernel reads one seccomp_notif_resp, which lives until the call returns.
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }

    /// The caller's descriptor, as one of ours: both have one position.
    pub fn descriptor(&self) -> Result<OwnedFd, Errno> {
        let thread = Pid::from_raw(self.thread).ok_or(Errno::SRCH)?;
        // PIDFD_THREAD, Linux 6.9. Before, only the first thread of a process had such a descriptor; the others have the
        // same table of files, unless they have made one of their own.
        let of_thread = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);
        let process = match pidfd_open(thread, of_thread) {
            Err(Errno::INVAL) => pidfd_open(self.process()?, PidfdFlags::empty())?,
            other => other?,
        };
        pidfd_getfd(process, self.fd, PidfdGetfdFlags::empty())
    }

    /// The process to which the thread belongs (proc(5)).
    fn process(&self) -> Result<Pid, Errno> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread)).map_err(|_| Errno::SRCH)?;
        let number = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
        number.and_then(Pid::from_raw).ok_or(Errno::SRCH)
    }

    /// Copies the bytes into the caller's buffer. On an error a part of them may be there.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Errno> {
        write_memory(self.thread, self.buffer, bytes)
    }
}

/// Copies into the memory of another process.
fn write_memory(process: pid_t, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let from = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let to = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: `from` describes the bytes, which are only read; the address in `to` is not one of ours, and the kernel
    // checks it.
    let written = unsafe { libc::process_vm_writev(process, &raw const from, 1, &raw const to, 1, 0) };
    match usize::try_from(written) {
        Ok(written) if written == bytes.len() => Ok(()),
        // Some bytes: the buffer ends before its stated end.
        Ok(_) => Err(Errno::FAULT),
        Err(_) => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::FAULT)),
    }
}

/// Takes the listener, which has this number in a child that was forked and waits. Fails if the guest may not do with the
/// child what every answer needs.
pub fn take(child: pid_t, listener: RawFd) -> io::Result<OwnedFd> {
    let process = Pid::from_raw(child).ok_or(Errno::SRCH)?;
    let taken = pidfd_getfd(pidfd_open(process, PidfdFlags::empty())?, listener, PidfdGetfdFlags::empty());
    // The child's copy of this program has it at the same address.
    static PROBE: AtomicU8 = AtomicU8::new(0);
    let address = (&raw const PROBE) as u64;
    let both = taken.and_then(|taken| write_memory(child, address, &[0]).map(|()| taken));
    both.map_err(|e| {
        io::Error::new(
            io::Error::from(e).kind(),
            format!("the guest may not use the memory and descriptors of the builder (ptrace(2)): {e}"),
        )
    })
}

/// Waits until there is a call; false once no process is left that could make one.
pub fn wait(listener: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};

    loop {
        let mut fds = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(fds[0].revents().contains(PollFlags::IN)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a descriptor is found before Linux 6.9, for a thread that is not the first of its process.
    #[test]
    fn the_process_of_a_thread_is_found() {
        let process = std::thread::spawn(|| {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            let call = Call { id: 0, thread, fd: 0, buffer: 0, room: 0, layout: Layout::Large };
            (thread, call.process())
        });
        let (thread, process) = process.join().unwrap();
        let own = std::process::id().cast_signed();
        assert_ne!(thread, own);
        assert_eq!(process.map(|process| process.as_raw_nonzero().get()), Ok(own));
    }
}
