//! The guard process: starts passt, jails itself, and relays frames until the machine ends.
//!
//! It is started by `network` as `<agent> __network` with a socket as stdin, over which come an [`Order`] and the machine's end
//! of the frames, and over which go one [`Begun`] and then events, a line each.

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use egress::{Link, Policy};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};

use crate::kvm::handover;
use crate::kvm::jail::{self, seccomp};
use crate::kvm::vmm;

/// Room for frames on their way, in each direction.
const SEND_BUFFER: usize = 4 << 20;

#[derive(Serialize, Deserialize)]
pub struct Order {
    pub policy: Policy,
    pub passt: PathBuf,
    /// Of the guard and of passt, if the agent may choose any.
    pub users: Option<(u32, u32)>,
    pub allow_missing: Vec<jail::Step>,
}

/// How it went.
#[derive(Serialize, Deserialize)]
#[serde(tag = "begun", rename_all = "lowercase")]
pub enum Begun {
    Ready,
    Failed { why: String },
}

#[derive(Debug, thiserror::Error)]
enum GuardError {
    #[error("cannot take over from the agent")]
    Handover(#[source] io::Error),
    #[error("cannot list this host's addresses")]
    Addresses(#[source] io::Error),
    #[error("cannot start {}", program.display())]
    Passt { program: PathBuf, source: io::Error },
    #[error(transparent)]
    Jail(#[from] jail::JailError),
    #[error(transparent)]
    Incomplete(#[from] jail::Incomplete),
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
}

/// The system calls of a relay that runs, each with what needs it.
#[rustfmt::skip]
const CALLS: &[(libc::c_long, &str)] = &[
    (libc::SYS_ppoll, "waits for frames"),
    (libc::SYS_recvfrom, "frames"),
    (libc::SYS_sendto, "frames and events"),
    (libc::SYS_getrandom, "hash tables"),
    (libc::SYS_mmap, "malloc"),
    (libc::SYS_mprotect, "malloc"),
    (libc::SYS_brk, "malloc"),
    (libc::SYS_munmap, "malloc"),
    (libc::SYS_mremap, "malloc"),
    (libc::SYS_madvise, "malloc gives memory back"),
    (libc::SYS_clock_gettime, "when the vDSO cannot answer"),
    (libc::SYS_restart_syscall, "the kernel, after a stop and continue"),
    (libc::SYS_rt_sigreturn, "return from a signal"),
    (libc::SYS_close, "the descriptors at the end"),
    (libc::SYS_exit_group, "the end"),
];

/// Runs the process from its start to its end.
pub fn main(stdin: OwnedFd) -> ! {
    let agent = UnixStream::from(stdin);
    match start(&agent) {
        Ok((policy, frames, passt)) => {
            say(&agent, &Begun::Ready);
            // An error of the relay is the end of one side; the agent sees it at its own.
            let _ = egress::run(frames, passt.into(), agent, policy);
        }
        Err(error) => say(&agent, &Begun::Failed { why: vmm::chain(&error) }),
    }
    // SAFETY: _exit takes a number and does not return. Nothing has to be saved.
    unsafe { libc::_exit(0) }
}

fn say(mut agent: &UnixStream, begun: &Begun) {
    if let Ok(mut line) = serde_json::to_vec(begun) {
        line.push(b'\n');
        // If the agent is gone, so is this process.
        let _ = agent.write_all(&line);
    }
}

fn start(agent: &UnixStream) -> Result<(Policy, OwnedFd, UnixStream), GuardError> {
    jail::privileges::die_with_parent()?;
    jail::privileges::go_first_when_memory_is_short()?;
    let Order { mut policy, passt, users, allow_missing } =
        handover::receive_json(agent).map_err(GuardError::Handover)?;
    let [frames] = handover::receive_batch(agent)
        .and_then(|got| got.try_into().map_err(|_| io::Error::other("expected one descriptor")))
        .map_err(GuardError::Handover)?;
    policy.own.extend(own_addresses().map_err(GuardError::Addresses)?);

    let (network, theirs) = UnixStream::pair().map_err(GuardError::Handover)?;
    for socket in [frames.as_fd(), network.as_fd(), theirs.as_fd()] {
        widen(socket).map_err(GuardError::Handover)?;
    }
    let (own, of_passt) = users.unzip();
    start_passt(&passt, &policy.link, of_passt, theirs)
        .map_err(|source| GuardError::Passt { program: passt, source })?;

    let mut report = jail::Report::default();
    jail::enter(own, &mut report)?;
    // Memory and processes are limited by the machine's cgroup, which the agent has checked.
    report.accept(&allow_missing)?;
    seccomp::install(&seccomp::filter_of(CALLS)?)?;
    Ok((policy, frames, network))
}

/// passt drops a frame for which its socket has no room, and four downloads at a time were then four times slower. Only root may
/// have more room than the host's usual.
fn widen(socket: BorrowedFd<'_>) -> io::Result<()> {
    let forced = sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER);
    Ok(forced.or_else(|_| sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER))?)
}

/// It goes on in its own namespaces and as its own user, and ends when the socket closes.
fn start_passt(program: &Path, link: &Link, user: Option<u32>, socket: UnixStream) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args(["--foreground", "--quiet", "--stderr", "--fd", "0"]);
    command.args(arguments(link));
    if let Some(user) = user {
        command.arg("--runas").arg(format!("{user}:{user}"));
    }
    command.env_clear().stdin(OwnedFd::from(socket)).stdout(Stdio::null());
    command.spawn().map(drop)
}

/// What passt offers to the guest by itself is switched off: it asks for nothing. Its own ways to this host as well.
fn arguments(link: &Link) -> Vec<String> {
    let Link { guest_v4, gateway_v4, guest_v6, gateway_v6, gateway_mac, .. } = link;
    let with_values = [
        ("--mtu", "1500".to_owned()),
        ("--mac-addr", gateway_mac.to_string()),
        ("--address", guest_v4.to_string()),
        ("--netmask", "24".to_owned()),
        ("--gateway", gateway_v4.to_string()),
        ("--address", guest_v6.to_string()),
        ("--gateway", gateway_v6.to_string()),
    ];
    let with_values = with_values.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    let switches = ["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra", "--no-icmp"].map(str::to_owned);
    with_values.chain(switches).collect()
}

/// The addresses of this host's interfaces now. Those that it gets later are the firewall's matter.
fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is valid for the call to write a pointer to.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (mut addresses, mut next) = (Vec::new(), first);
    // SAFETY: getifaddrs gave a list, which ends with null and stays until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: null, or a socket address of the size that its family says.
        match unsafe { entry.ifa_addr.as_ref() }.map(|address| i32::from(address.sa_family)) {
            Some(libc::AF_INET) => {
                // SAFETY: the family says that it is a sockaddr_in.
                let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in>() };
                addresses.push(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()));
            }
            Some(libc::AF_INET6) => {
                // SAFETY: the family says that it is a sockaddr_in6.
                let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in6>() };
                addresses.push(IpAddr::from(address.sin6_addr.s6_addr));
            }
            _ => {}
        }
        next = entry.ifa_next;
    }
    // SAFETY: the list of above, which nothing refers to any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_this_hosts_addresses() {
        let addresses = own_addresses().unwrap();
        assert!(addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
    }
}
