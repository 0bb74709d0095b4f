//! Gives a network namespace the network that a micro-VM would have: its programs are then behind the same guard and passt.
//!
//! ```text
//! plug AGENT POLICY PID RESOLVER
//! ```
//!
//! Makes the network interface `guest` in the network namespace of process PID, and sets its addresses, as a guest would.
//! Sockets are made in the namespace of this program. AGENT: the executable that becomes the guard. POLICY: JSON. Says `ready`,
//! then events, a line of JSON each; ends with its standard input. After a line `replace` it executes itself, as an agent that is
//! replaced executes another one, and goes on with the same network; then it says `{"went_on":true}`. For tests, and to try a
//! policy; needs root.
#![allow(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sandbox::kvm::network::{Network, NetworkConfig};
use sandbox::{PausedNetwork, Received};

/// linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;

const NAME: &str = "guest";
/// First argument of a program that takes over.
const GO_ON: &str = "--go-on";

fn main() -> Result<(), Box<dyn Error>> {
    // The guard ends with the thread that started it, and only the main thread is there after an execve(2).
    Ok(sandbox::parent::run(|| work().map_err(|error| error.to_string()))?)
}

/// All that another program needs to go on.
#[derive(serde::Serialize, serde::Deserialize)]
struct Paused {
    network: PausedNetwork,
    tap: RawFd,
    frames: RawFd,
}

fn go_on(paused: &str) -> Result<(), Box<dyn Error>> {
    let Paused { network, tap, frames } = serde_json::from_str(paused)?;
    let numbers = [&network.descriptors()[..], &[tap, frames]].concat();
    let mut received = Received::claim(&numbers)?;
    let mut network = Network::taken_over(network, &mut received)?;
    println!("{{\"went_on\":true}}");
    let (tap, frames) = (received.take(tap)?, received.take(frames)?);
    relay(tap.into(), frames.into(), &mut network)
}

/// Returns only if it fails.
fn replace(tap: &File, frames: &File, network: &Network) -> std::io::Error {
    let network = network.written_down();
    let paused = Paused { network, tap: tap.as_raw_fd(), frames: frames.as_raw_fd() };
    let numbers = [&paused.network.descriptors()[..], &[paused.tap, paused.frames]].concat();
    let mut command = Command::new("/proc/self/exe");
    match serde_json::to_string(&paused) {
        Ok(text) => command.args([GO_ON, &text]),
        Err(error) => return error.into(),
    };
    sandbox::parent::replace(command, numbers)
}

fn work() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, paused] = args.as_slice()
        && verb == GO_ON
    {
        return go_on(paused);
    }
    let [agent, policy, pid, resolver] = args.as_slice() else {
        return Err("usage: plug AGENT POLICY PID RESOLVER".into());
    };
    let config = NetworkConfig {
        passt: "/usr/bin/passt".into(),
        policy: serde_json::from_str(policy)?,
        resolver: Some(resolver.parse()?),
    };
    let (mut network, plug) = Network::start(&config, Path::new(agent), &[], |_| Ok(()))?;
    network.wait_for_start(&sandbox::Cancel::new())?;
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let tap = std::thread::spawn(move || tap_in(&namespace)).join().map_err(|_| "a panic")??;
    let mut commands = vec![
        "link set lo up".to_owned(),
        format!("link set {NAME} address {} mtu 1500 up", config.policy.link.guest_mac),
    ];
    let subnet = |address: IpAddr, prefix: u8, gateway: IpAddr| {
        let at_once = if address.is_ipv6() { " nodad" } else { "" };
        [
            format!("address add {address}/{prefix} dev {NAME}{at_once}"),
            format!("route add default via {gateway} dev {NAME}"),
        ]
    };
    let (ipv4, ipv6) = (plug.settings.ipv4, plug.settings.ipv6);
    commands
        .extend(ipv4.into_iter().flat_map(|net| subnet(net.address.into(), net.prefix, net.gateway.into())));
    commands
        .extend(ipv6.into_iter().flat_map(|net| subnet(net.address.into(), net.prefix, net.gateway.into())));
    let (first, last) = plug.settings.ports;
    let set = [
        "sysctl",
        "-qw",
        &format!("net.ipv4.ip_local_port_range={first} {last}"),
        "net.ipv4.tcp_tw_reuse=1",
        &format!("net.ipv4.tcp_max_tw_buckets={}", (last - first) / 8),
    ];
    if !Command::new("nsenter").args(["--net", "--target", pid]).args(set).status()?.success() {
        return Err("sysctl failed".into());
    }
    for command in commands {
        let pid = pid.as_str();
        let mut ip = Command::new("nsenter");
        ip.args(["--net", "--target", pid, "ip"]).args(command.split(' '));
        if !ip.status()?.success() {
            return Err(format!("ip {command} failed").into());
        }
    }
    println!("ready");
    relay(tap, plug.frames.into(), &mut network)
}

/// A new interface, up to the end of this program.
fn tap_in(namespace: &File) -> Result<File, std::io::Error> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros are a value of this struct of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI;
    // SAFETY: TUNSETIFF reads an ifreq, which is alive during the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw const request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(tap)
}

fn relay(mut tap: File, mut frames: File, network: &mut Network) -> Result<(), Box<dyn Error>> {
    let mut frame = vec![0; 2048];
    let say = |events: Vec<egress::Event>| -> Result<(), Box<dyn Error>> {
        for event in events {
            println!("{}", serde_json::to_string(&event)?);
        }
        Ok(std::io::stdout().flush()?)
    };
    let stdin = std::io::stdin();
    loop {
        let Some(control) = network.control() else { return Err("the guard has ended".into()) };
        let mut fds = [
            PollFd::new(&tap, PollFlags::IN),
            PollFd::new(&frames, PollFlags::IN),
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(control, PollFlags::IN),
        ];
        poll(&mut fds, None)?;
        let [from_guest, to_guest, end, event] = fds.map(|fd| !fd.revents().is_empty());
        if from_guest {
            let n = tap.read(&mut frame)?;
            // A frame that does not fit is lost, as on any line.
            let _ = frames.write(&frame[..n]);
        }
        if to_guest && let Ok(n) = frames.read(&mut frame) {
            let _ = tap.write(&frame[..n]);
        }
        if event {
            say(network.events())?;
        }
        if end {
            if stdin.lock().read(&mut frame)? > 0 {
                return Err(replace(&tap, &frames, network).into());
            }
            drop(frames);
            return say(network.end());
        }
    }
}
