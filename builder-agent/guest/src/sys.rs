//! System calls that the guest needs and std does not offer, each behind a safe function. All `unsafe` of
//! this crate.
//!
//! The guest is single-threaded until the builder is forked, so the child may allocate and use std. A home starts its
//! programs otherwise ([`before_start`]).

pub mod block;
pub mod seccomp;

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use libc::{c_int, c_ulong, pid_t};

fn cvt(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn cvt_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A C string for the kernel; fails if the text has a NUL.
pub fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} contains a NUL byte")))
}

/// Whether a call failed because the machine has run out of a resource, or has a defect. Then the builder is not the
/// cause, and the same build may work at another time.
pub fn is_of_the_machine(error: &io::Error) -> bool {
    let lacking = [libc::EIO, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EAGAIN];
    error.raw_os_error().is_some_and(|code| lacking.contains(&code))
}

/// mount(2), with an error that names the source and the target.
pub fn mount(source: &str, target: &Path, kind: &str, flags: c_ulong, data: &str) -> io::Result<()> {
    let [c_source, c_kind, c_data] = [source, kind, data].map(|s| c_string(OsStr::new(s)));
    let (c_source, c_kind, c_data, c_target) = (c_source?, c_kind?, c_data?, c_string(target.as_os_str())?);
    // SAFETY: four NUL-terminated strings that live until the call returns.
    let result = unsafe {
        libc::mount(c_source.as_ptr(), c_target.as_ptr(), c_kind.as_ptr(), flags, c_data.as_ptr().cast())
    };
    cvt(result).map(drop).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("cannot mount {kind} {source} on {} ({data}): {e}", target.display()),
        )
    })
}

/// Takes a mount out of sight. Whatever still uses it keeps it.
pub fn unmount(target: &Path) -> io::Result<()> {
    rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot unmount {}: {e}", target.display())))
}

/// Makes the mount at `root` the root of this process.
///
/// It is mounted over the old root rather than beside it: then no path leads to the old root any more, and the kernel lets
/// users make user namespaces, as it does in no chroot. pivot_root(2) cannot be used, because the kernel's first root is
/// not a mount that it could move.
pub fn become_root(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    mount(".", Path::new("/"), "", libc::MS_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Loads a kernel module; succeeds if it is loaded already.
pub fn load_module(file: &File) -> io::Result<()> {
    let none: &CStr = c"";
    // SAFETY: the descriptor is open for the whole call, the parameter string is static.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0 as c_int) };
    match cvt_long(result) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

/// Has `prepare` called in the process of a command, right before its program starts.
///
/// `prepare` runs in a copy of a process that may have had other threads, so it makes system calls and nothing else: it
/// must not allocate or take locks.
pub fn before_start(command: &mut Command, prepare: fn(BorrowedFd<'_>) -> io::Result<()>, with: Arc<File>) {
    let prepare = move || prepare(with.as_fd());
    // SAFETY: by this function's contract `prepare` makes system calls only. It is a function and no closure, so that it
    // can have nothing but the open file.
    unsafe { command.pre_exec(prepare) };
}

/// Creates the node of a character device, for everyone.
pub fn make_device(path: &Path, major: u32, minor: u32) -> io::Result<()> {
    make_node(path, libc::S_IFCHR, 0o666, libc::makedev(major, minor))
}

/// Creates the node of a device, for root. `kind`: S_IFBLK or S_IFCHR.
pub fn make_private_device(path: &Path, kind: libc::mode_t, major: u32, minor: u32) -> io::Result<()> {
    make_node(path, kind, 0o600, libc::makedev(major, minor))
}

fn make_node(path: &Path, kind: libc::mode_t, mode: libc::mode_t, device: libc::dev_t) -> io::Result<()> {
    let path = c_string(path.as_os_str())?;
    // SAFETY: a NUL-terminated string that lives until the call returns.
    cvt(unsafe { libc::mknod(path.as_ptr(), kind | mode, device) })?;
    // mknod obeys the umask, chmod does not.
    // SAFETY: as above.
    cvt(unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
}

/// Connects to a port of another vsock context.
pub fn connect_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_vm is plain integers; zero is a valid value for each.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_vm of exactly `length` bytes.
    cvt(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(fd)
}

/// Sets the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: ifreq is integers and a union of them; zero is valid for each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives until the call returns.
    cvt(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }).map(drop)
}

/// Mixes `seed` into the kernel's random numbers, and has every generator of the kernel begin anew with it: what was drawn
/// before says nothing of what is drawn from now on. Linux: drivers/char/random.c.
pub fn reseed(seed: &[u8]) -> io::Result<()> {
    /// `_IOW('R', 3, int[2])`
    const RNDADDENTROPY: c_ulong = 0x4008_5203;
    /// `_IO('R', 7)`
    const RNDRESEEDCRNG: c_ulong = 0x5207;
    let device = File::options().write(true).open("/dev/urandom")?;
    // struct rand_pool_info: bits of entropy, number of bytes, the bytes.
    let length = u32::try_from(seed.len()).map_err(io::Error::other)?;
    let mut pool: Vec<u8> = [length * 8, length].into_iter().flat_map(u32::to_ne_bytes).collect();
    pool.extend_from_slice(seed);
    // SAFETY: reads the two numbers and as many bytes as the second one says, which is what `pool` has.
    cvt(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, pool.as_ptr()) })?;
    // SAFETY: no pointers.
    cvt(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) }).map(drop)
}

/// Sets the time, in nanoseconds since 1970.
pub fn set_time(unix_ns: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_ns / 1_000_000_000).map_err(io::Error::other)?;
    let time = rustix::time::Timespec { tv_sec: seconds, tv_nsec: (unix_ns % 1_000_000_000) as _ };
    Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
}

pub fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: no pointers; the guest is single-threaded here, so no other thread keeps the old namespaces.
    cvt(unsafe { libc::unshare(flags) }).map(drop)
}

pub enum Fork {
    Parent(pid_t),
    Child,
}

/// fork(2), with the child as PID 1 of a new pid namespace. Must be called before any thread is started.
///
/// Not unshare(2) and fork(2): after that unshare the kernel refuses to start threads, and the guest needs
/// one.
pub fn fork_into_pid_namespace() -> io::Result<Fork> {
    let flags = (libc::SIGCHLD | libc::CLONE_NEWPID) as libc::c_long;
    // SAFETY: without a stack of its own the child gets a copy of ours, as with fork. The process has one thread, so
    // no lock is held by a thread that the child will not have; the child only prepares and executes a program.
    match cvt_long(unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            0 as libc::c_long,
            0 as libc::c_long,
            0 as libc::c_long,
            0 as libc::c_long,
        )
    })? {
        0 => Ok(Fork::Child),
        // A pid fits into an int by the kernel's own limit.
        pid => Ok(Fork::Parent(pid as pid_t)),
    }
}

/// Ends this process at once, without destructors; for a forked child.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

pub fn kill(pid: pid_t, signal: c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Puts the calling thread into a scheduling class that runs before all ordinary threads, sched(7). Its children are
/// ordinary again.
pub fn run_before_others() -> io::Result<()> {
    let lowest_of_the_class = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param, which lives until the call returns.
    cvt(unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &lowest_of_the_class)
    })
    .map(drop)
}

/// The largest memory of a single process, of all children that ended and were waited for, in bytes. Zero if
/// there are none.
pub fn largest_child() -> u64 {
    // SAFETY: rusage is integers only; zero is valid for each.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage, which lives until the call returns. On failure it stays zero.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut used) };
    // Linux: in KiB.
    u64::try_from(used.ru_maxrss).unwrap_or(0).saturating_mul(1024)
}

/// Waits for one child; returns the raw status of wait(2).
pub fn wait(pid: pid_t) -> io::Result<c_int> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        match cvt(unsafe { libc::waitpid(pid, &raw mut status, 0) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|_| status),
        }
    }
}

/// A descriptor that polls readable when the process has ended.
pub fn pidfd(pid: pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = cvt_long(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0 as c_int) })?;
    // SAFETY: just made, owned by nobody else; a descriptor fits into an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes over a descriptor that was inherited from the parent process.
///
/// Fails when it is not open. Must be called once per number, before anything else opens descriptors.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers. Also proves that the number is open, and keeps it from the builder.
    cvt(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: open, and by this function's contract nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for the two descriptors that pipe2 writes.
    cvt(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Makes `fd` also be descriptor `number`, which stays open over exec.
pub fn dup_to(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::dup2(fd, number) }).map(drop)
}

/// Makes the next exec close all descriptors from 3 on.
pub fn close_others_on_exec() -> io::Result<()> {
    // SAFETY: no pointers; marking descriptors does not close any that Rust still owns.
    cvt_long(unsafe {
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as c_int)
    })
    .map(drop)
}

pub fn set_session() -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::setsid() }).map(drop)
}

/// Default actions and an empty mask for every signal, as a fresh program expects.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; numbers that cannot be set are refused, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: sigset_t is plain bits, filled by sigemptyset before use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Sets soft and hard limit to the same value.
pub fn set_limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    set_limits(resource, (value, value))
}

/// Sets soft and hard limit.
pub fn set_limits(resource: libc::__rlimit_resource_t, (soft, hard): (u64, u64)) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives until the call returns.
    cvt(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

pub fn set_umask(mask: libc::mode_t) {
    // SAFETY: no pointers, cannot fail.
    unsafe { libc::umask(mask) };
}

pub fn set_host_name(host: &str, domain: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe one string each, alive until the calls return.
    unsafe {
        cvt(libc::sethostname(host.as_ptr().cast(), host.len()))?;
        cvt(libc::setdomainname(domain.as_ptr().cast(), domain.len()))?;
    }
    Ok(())
}

/// Changes user and group of this process, and removes all other groups. Needs root.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: an empty list needs no pointer; the others take integers. Groups first: without root they stay.
    unsafe {
        cvt(libc::setgroups(0, std::ptr::null()))?;
        cvt(libc::setresgid(gid, gid, gid))?;
        cvt(libc::setresuid(uid, uid, uid))?;
    }
    Ok(())
}

fn prctl(option: c_int, a: c_ulong, b: c_ulong) -> io::Result<c_int> {
    // SAFETY: only options that take integers are used in this file.
    cvt(unsafe { libc::prctl(option, a, b, 0 as c_ulong, 0 as c_ulong) })
}

/// Empties the capability bounding set. Needs CAP_SETPCAP, so it must be called before the user changes.
pub fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            // Past the last capability that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && capability > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Empties the permitted, effective, inheritable and ambient sets.
pub fn drop_capabilities() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong, 0)?;
    // linux/capability.h: version 3, 64 bits as two sets of three words.
    let header: [u32; 2] = [0x2008_0522, 0];
    let sets = [0u32; 6];
    // SAFETY: header and sets have the layout of __user_cap_header_struct and two __user_cap_data_struct.
    cvt_long(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }).map(drop)
}

/// Makes set-user-id programs gain no rights from now on.
pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Makes the kernel kill this process when its parent ends.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0).map(drop)
}

/// personality(2): `persona` is one of the PER_ values with flags.
pub fn set_personality(persona: c_ulong) -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::personality(persona) }).map(drop)
}

/// Replaces the program of this process. Only returns on failure.
pub fn exec(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: NULL-ended arrays of NUL-terminated strings, all borrowed until the call returns.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// `uname -r`.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Nanoseconds of the monotonic clock: the time since boot, on a machine that never sleeps.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// Bytes in use on the file system at `path`.
pub fn used_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_blocks - stat.f_bfree).saturating_mul(stat.f_frsize))
}

/// Ends the machine. A micro-VM has no power switch; its VMM treats a reset as the end.
pub fn power_off() -> ! {
    // SAFETY: no pointers. There is nothing on disk to sync.
    unsafe {
        libc::reboot(libc::RB_AUTOBOOT);
        libc::reboot(libc::RB_POWER_OFF);
    }
    // Both calls return only if the right is missing, and PID 1 of a machine has it.
    loop {
        std::thread::park();
    }
}
