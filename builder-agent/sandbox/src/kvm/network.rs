//! The network of a machine.
//!
//! ```text
//! guest ─ virtio-net in the VMM ─ frames ─ guard ─ frames ─ passt ─ sockets of this host
//! ```
//!
//! Each part trusts none of the others. The guard is this executable again (`__network`), jailed like a VMM: it lets through
//! what the policy allows, and says what was connected to what (`egress`). passt, which makes ordinary sockets of what is left,
//! has a user of its own, by which the host's firewall knows it. It is a child of the guard, in the same PID namespace, so it
//! ends with it; and the guard ends when the VMM does. So there is one process to watch, and to hand to another program.
//! Not here: the policy and frames (crate `egress`), and which machine has a network.

mod guard;
mod ports;
mod resolver;

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use egress::{Event, Link, Policy};
use guest::protocol;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{handover, jail};
use crate::cancel::Cancel;
use crate::descriptors::Received;
use crate::error::SandboxError;
use crate::paused::PausedNetwork;
use crate::process::{self, Process};
use ports::Ports;

pub(crate) use guard::main as guard_main;
use guard::{Begun, Order};

/// First argument of a guard. `child_main_if_requested` looks for it.
pub(crate) const ARGUMENT: &str = "__network";
/// For passt to start, and for the jail.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a guard to end by itself, after its machine, and to say the last things.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// Most bytes of one event. A name has 255 bytes, and a policy's words come with reasons.
const MAX_EVENT: usize = 4096;
/// Events of one machine that are listened to. A guard limits them itself, and to fewer.
const MOST_EVENTS: usize = 1_000_000;
/// First uid of guards and of passts; the guard's process id is added. As for VMMs (`kvm::UID_BASE`), and apart from those.
const GUARDS: u32 = 0x7100_0000;
const PASSTS: u32 = 0x7200_0000;
/// The largest process id (PID_MAX_LIMIT): so many uids follow each of these.
const PIDS: u32 = 1 << 22;
/// An address of each family that is as public as any.
const PUBLIC: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(1, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 1))];

/// The users of the passt processes of this host: whatever sockets they have are those of guests.
pub const USERS: std::ops::RangeInclusive<u32> = PASSTS..=PASSTS + PIDS;

#[derive(Debug, Clone)]
pub struct NetworkConfig {
    pub passt: PathBuf,
    pub policy: Policy,
    /// The name server for guests. `None`: the first of this host that they can reach.
    pub resolver: Option<IpAddr>,
}

/// The network of one machine. Dropping it ends it.
pub struct Network {
    guard: Process,
    control: UnixStream,
    stderr: File,
    /// The first bytes of an event.
    begun: Vec<u8>,
    has_ended: bool,
    /// Events so far, and the bytes of which they told.
    told: usize,
    bytes: u64,
    /// Processor time of the guard. Known at the end.
    cpu: Duration,
    ports: Ports,
}

/// What a machine needs of its network.
pub struct Plug {
    /// A SOCK_SEQPACKET with one Ethernet frame in each message, of 14 to 1514 bytes.
    pub frames: OwnedFd,
    /// What the guest is told.
    pub settings: protocol::Network,
}

/// Both ends of the socket of a network card that nothing is connected with.
pub fn unconnected() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl Network {
    /// Starts a guard, which `limit` puts under limits before it gets anything to do.
    pub fn start(
        config: &NetworkConfig,
        executable: &Path,
        allow_missing: &[jail::Step],
        limit: impl FnOnce(u32) -> io::Result<()>,
    ) -> io::Result<(Network, Plug)> {
        let mut policy = config.policy.clone();
        let families = Families::of_this_host();
        let resolver = config.resolver.or_else(|| resolver::of_this_host(|server| families.have(server)));
        policy.link.dns = resolver.unwrap_or(policy.link.dns);
        let ports = Ports::free()?;
        policy.link.udp_source_ports = ports.range();
        let settings = settings(&policy.link, families, resolver);
        policy.ipv6 = settings.ipv6.is_some();
        let (control, theirs) = UnixStream::pair()?;
        let (guard, stderr) = Process::again(executable, ARGUMENT, theirs)?;
        limit(guard.pid())?;
        let (frames, theirs) = unconnected()?;
        let user = |base: u32| jail::is_root().then(|| base.saturating_add(guard.pid()));
        let order = Order {
            policy,
            passt: config.passt.clone(),
            users: user(GUARDS).zip(user(PASSTS)),
            allow_missing: allow_missing.to_vec(),
        };
        handover::send_json(&control, &order)?;
        handover::send_batch(&control, &[theirs.as_fd()])?;
        control.set_nonblocking(true)?;
        let network = Network {
            guard,
            control,
            stderr,
            begun: Vec::new(),
            has_ended: false,
            told: 0,
            bytes: 0,
            cpu: Duration::ZERO,
            ports,
        };
        Ok((network, Plug { frames, settings }))
    }

    /// Waits until the guard lets frames through.
    pub fn wait_for_start(&mut self, cancel: &Cancel) -> Result<(), SandboxError> {
        let cannot = |why: String| {
            let why = format!("cannot start the network of a VM: {why}");
            SandboxError::Unavailable { why }
        };
        let cancelled = cancel.event().map_err(|e| cannot(e.to_string()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if cancel.is_cancelled() {
                return Err(SandboxError::Cancelled);
            }
            if let Some(line) = self.next_line().map_err(|e| cannot(e.to_string()))? {
                return match serde_json::from_slice(&line) {
                    Ok(Begun::Ready) => Ok(()),
                    Ok(Begun::Failed { why }) => Err(cannot(format!("{why} {}", self.last_words()))),
                    Err(error) => Err(cannot(format!("its first line makes no sense: {error}"))),
                };
            }
            if self.has_ended {
                self.guard.let_end(LAST_WORDS);
                return Err(cannot(format!("its process has ended: {}", self.last_words())));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(cannot(format!("it did not start within {} s", PATIENCE.as_secs())));
            }
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&cancelled, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(cannot(error.to_string())),
            }
        }
    }

    /// What was connected since the last call. Never waits.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(Some(line)) = self.next_line() {
            match serde_json::from_slice(&line) {
                Ok(event) if self.told < MOST_EVENTS => {
                    self.count(&event);
                    events.push(event);
                }
                // A guard that a guest has taken over: it is not listened to any more.
                _ => self.has_ended = true,
            }
        }
        events
    }

    fn count(&mut self, event: &Event) {
        self.told += 1;
        match event {
            Event::Connection { up, down, .. } => {
                self.bytes = self.bytes.saturating_add(*up).saturating_add(*down);
            }
            // The last one, and the whole.
            Event::Total { up, down, .. } => self.bytes = self.bytes.max(up.saturating_add(*down)),
            _ => {}
        }
    }

    /// Bytes of all frames; until the end, those of connections that have ended.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Processor time of the guard, which is known when it has ended.
    pub fn cpu(&self) -> Duration {
        self.cpu
    }

    /// The guard's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.guard.pid()
    }

    /// Becomes readable with the next event.
    pub fn control(&self) -> Option<&UnixStream> {
        (!self.has_ended).then_some(&self.control)
    }

    /// Ends it, and gives the last events. To be called when the machine has ended: then the guard ends by itself.
    pub fn end(&mut self) -> Vec<Event> {
        if self.guard.is_reaped() {
            return Vec::new();
        }
        // A guard that is writing must not wait for us meanwhile.
        let deadline = Instant::now() + LAST_WORDS;
        let mut events = self.events();
        while !self.has_ended && Instant::now() < deadline && !self.guard.let_end(Duration::from_millis(10)) {
            events.extend(self.events());
        }
        events.extend(self.events());
        self.guard.kill();
        // Without passt's, for which it does not wait. The machine's cgroup counts both.
        self.cpu = self.guard.reap().map_or(self.cpu, |(_, cpu)| cpu);
        events
    }

    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let rest = self.begun.split_off(end + 1);
                self.begun.truncate(end);
                return Ok(Some(std::mem::replace(&mut self.begun, rest)));
            }
            if self.has_ended || self.begun.len() > MAX_EVENT {
                self.has_ended = true;
                return Ok(None);
            }
            let mut chunk = [0; MAX_EVENT];
            match (&self.control).read(&mut chunk) {
                Ok(0) => self.has_ended = true,
                Ok(n) => self.begun.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It ended before it had read everything.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.has_ended = true,
                Err(error) => {
                    self.has_ended = true;
                    return Err(error);
                }
            }
        }
    }

    /// The first of what guard and passt wrote, printable.
    fn last_words(&self) -> String {
        printable::lines(&String::from_utf8_lossy(&process::words(&self.stderr)))
    }

    /// For another program that takes over from this one.
    pub fn written_down(&self) -> PausedNetwork {
        PausedNetwork {
            guard: self.guard.pid(),
            control: self.control.as_raw_fd(),
            stderr: self.stderr.as_raw_fd(),
            begun: protocol::Bytes(self.begun.clone()),
            bytes: self.bytes,
            ports: self.ports.number(),
        }
    }

    /// The network that an earlier program in this process has started.
    pub fn taken_over(paused: PausedNetwork, received: &mut Received) -> io::Result<Network> {
        let PausedNetwork { guard, control, stderr, begun, bytes, ports } = paused;
        Ok(Network {
            guard: Process::taken_over(guard)?,
            control: received.take(control)?.into(),
            stderr: received.take(stderr)?.into(),
            begun: begun.0,
            has_ended: false,
            told: 0,
            bytes,
            cpu: Duration::ZERO,
            ports: Ports::taken_over(ports)?,
        })
    }
}

/// Which families of addresses this host has a way into the world with.
#[derive(Debug, Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    fn of_this_host() -> Self {
        let [v4, v6] = PUBLIC.map(has_route);
        Self { v4, v6 }
    }

    fn have(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// What the guest is told. Without a way into the world, a family of addresses would cost each program a wait.
fn settings(link: &Link, families: Families, resolver: Option<IpAddr>) -> protocol::Network {
    let ipv4 = protocol::Subnet { address: link.guest_v4, prefix: 24, gateway: link.gateway_v4 };
    let ipv6 = protocol::Subnet { address: link.guest_v6, prefix: 64, gateway: link.gateway_v6 };
    protocol::Network {
        ipv4: families.v4.then_some(ipv4),
        ipv6: families.v6.then_some(ipv6),
        nameservers: resolver.into_iter().collect(),
        ports: (link.udp_source_ports.first, link.udp_source_ports.last),
    }
}

/// Whether this host would send packets to this address. Nothing is sent.
fn has_route(to: IpAddr) -> bool {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((to, 53))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::devices::net;

    /// A network whose guard is a script.
    struct Scripted(Network, PathBuf);

    impl Scripted {
        fn start(script: &str) -> Scripted {
            use std::os::unix::fs::PermissionsExt;
            static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("guard-test-{}-{number}", std::process::id()));
            std::fs::write(&path, format!("#!/bin/bash\nexec 3<&0\n{script}")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let config =
                NetworkConfig { passt: "/nowhere".into(), policy: Policy::default(), resolver: None };
            let (network, _) = Network::start(&config, &path, &[], |_| Ok(())).unwrap();
            Scripted(network, path)
        }
    }

    impl Drop for Scripted {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.1);
        }
    }

    const READY: &str = "echo '{\"begun\":\"ready\"}' >&3";

    #[test]
    fn a_start_that_is_cancelled_does_not_wait_for_the_guard() {
        let mut guard = Scripted::start("sleep 600");
        let cancel = Cancel::new();
        let canceller = cancel.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            canceller.cancel();
        });
        let began = Instant::now();
        let error = guard.0.wait_for_start(&cancel).unwrap_err();
        assert!(matches!(error, SandboxError::Cancelled), "{error:?}");
        assert!(began.elapsed() < PATIENCE / 4, "{:?}", began.elapsed());
        // What was cancelled before never begins.
        let mut ready = Scripted::start(&format!("{READY}; sleep 600"));
        assert!(matches!(ready.0.wait_for_start(&cancel), Err(SandboxError::Cancelled)));
        ready.0.wait_for_start(&Cancel::new()).unwrap();
    }

    #[test]
    fn a_guard_that_does_not_start_says_why() {
        for (script, said) in [
            ("sleep 0.5; echo no passt here >&2", "its process has ended: no passt here"),
            ("echo '{\"begun\":\"failed\",\"why\":\"no jail\"}' >&3; sleep 600", "no jail"),
            ("echo '{\"begun\":7}' >&3; sleep 600", "its first line makes no sense"),
        ] {
            let error = Scripted::start(script).0.wait_for_start(&Cancel::new()).unwrap_err().to_string();
            assert!(error.contains("cannot start the network of a VM") && error.contains(said), "{error}");
        }
    }

    /// In one process, which is both programs.
    #[test]
    fn another_program_reads_the_rest_of_an_event_counts_on_and_ends_the_same_guard() {
        let connection = |down: u64| {
            format!(
                r#"{{"connection":{{"protocol":"tcp","name":null,"address":"1.1.1.1","port":1,"up":1,"down":{down},"millis":1,"end":"closed"}}}}"#
            )
        };
        let (one, two) = (connection(41), connection(57));
        let (half, rest) = two.split_at(30);
        let script = format!(
            "{READY}; printf '%s\\n%s' '{one}' '{half}' >&3; read -u 3 order; \
             printf '%s\\n' '{rest}' >&3; sleep 600"
        );
        let mut guard = Scripted::start(&script);
        guard.0.wait_for_start(&Cancel::new()).unwrap();
        let until = |network: &mut Network, mut is_so: Box<dyn FnMut(&mut Network) -> bool>| {
            let deadline = Instant::now() + PATIENCE;
            while !is_so(network) {
                assert!(Instant::now() < deadline, "{}", network.last_words());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let mut told = Vec::new();
        until(
            &mut guard.0,
            Box::new(move |network| {
                told.extend(network.events());
                told.len() == 1 && !network.begun.is_empty()
            }),
        );
        assert_eq!(guard.0.bytes(), 42);
        let text = serde_json::to_string(&guard.0.written_down()).unwrap();
        let mut paused: PausedNetwork = serde_json::from_str(&text).unwrap();
        let copies =
            [guard.0.control.as_fd(), guard.0.stderr.as_fd()].map(|fd| fd.try_clone_to_owned().unwrap());
        [paused.control, paused.stderr] = copies.each_ref().map(AsRawFd::as_raw_fd);
        let (pid, range) = (paused.guard, paused.ports);
        // Nothing of the first program is left but its child.
        let other = Process::again(&guard.1, ARGUMENT, UnixStream::pair().unwrap().0).unwrap().0;
        std::mem::forget(std::mem::replace(&mut guard.0.guard, other));
        drop(guard);
        let mut network = Network::taken_over(paused, &mut copies.into_iter().collect()).unwrap();
        assert_eq!((network.pid(), network.ports.number(), network.bytes()), (pid, range, 42));
        // The end of a line, for which the script waits after its order.
        std::io::Write::write_all(&mut &network.control, b"\n").unwrap();
        until(&mut network, Box::new(|network| network.events().len() == 1));
        assert_eq!(network.bytes(), 42 + 58);
        network.end();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        // What is damaged, or another's, is not taken.
        let wrong = |guard, ports| PausedNetwork {
            guard,
            control: 0,
            stderr: 0,
            begun: protocol::Bytes(Vec::new()),
            bytes: 0,
            ports,
        };
        for paused in [wrong(1, range), wrong(std::process::id(), range), wrong(pid, usize::MAX)] {
            assert!(Network::taken_over(paused, &mut Received::default()).is_err());
        }
    }

    #[test]
    fn the_processor_time_of_the_guard_is_known_at_the_end() {
        let work = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let mut guard = Scripted::start(&format!("{work}; {READY}"));
        guard.0.wait_for_start(&Cancel::new()).unwrap();
        assert_eq!(guard.0.cpu(), Duration::ZERO);
        guard.0.end();
        let used = guard.0.cpu();
        assert!(used >= Duration::from_millis(10), "{used:?}");
        guard.0.end();
        assert_eq!(guard.0.cpu(), used);
    }

    #[test]
    fn the_policy_knows_the_network_card_by_its_address() {
        assert_eq!(Link::default().guest_mac.0, net::MAC);
    }
}
