//! The network of a guest that has a network card: its interface, and what /etc says about it.
//!
//! Nothing is asked of the network: no DHCP, no router, no detection of another guest with the same address. So the network
//! is there as soon as the builder is, and each builder finds the same one.
//! Not here: where packets may go, which is decided outside of the machine.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use guest::etc;
use guest::protocol::Network;

use super::netlink::Netlink;

/// Time for the kernel to find the network card, whose driver was loaded before the job came.
const PATIENCE: Duration = Duration::from_secs(2);

const INTERFACES: &str = "/sys/class/net";
const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const REUSE: &str = "/proc/sys/net/ipv4/tcp_tw_reuse";
const KEPT: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";

/// Sets up the interface, and writes the files of /etc below `root`.
pub fn up(network: &Network, root: &Path) -> io::Result<()> {
    let interface = wait_for_interface(Path::new(INTERFACES), PATIENCE)?;
    configure(&interface, network)?;
    write_etc(network, root)
}

fn configure(interface: &str, network: &Network) -> io::Result<()> {
    let (first, last) = network.ports;
    set(Path::new(PORTS), &format!("{first} {last}"))?;
    // A range of a few hundred ports is used up soon, unless those of connections that have ended are taken again. The first is
    // for peers with timestamps, of which passt is none: so few of the ports are kept for a minute. The kernel prefers every other
    // one, and the rest of those is enough for passt to forget a connection before its port is taken again.
    set(Path::new(REUSE), "1")?;
    set(Path::new(KEPT), &(last.saturating_sub(first) / 8).to_string())?;
    let index = fs::read_to_string(format!("{INTERFACES}/{interface}/ifindex"))?;
    let index = index.trim().parse().map_err(io::Error::other)?;
    if network.ipv6.is_some() {
        // Before the interface is up: then it asks nobody.
        ask_nobody(Path::new("/proc/sys/net/ipv6/conf"), interface)?;
    }
    let mut netlink = Netlink::open().map_err(|e| failed(interface, "open a netlink socket", e))?;
    netlink.set_up(index).map_err(|e| failed(interface, "set it up", e))?;
    let ipv4 =
        network.ipv4.map(|subnet| (IpAddr::from(subnet.address), subnet.prefix, subnet.gateway.into()));
    let ipv6 =
        network.ipv6.map(|subnet| (IpAddr::from(subnet.address), subnet.prefix, subnet.gateway.into()));
    for (address, prefix, gateway) in ipv4.into_iter().chain(ipv6) {
        netlink
            .add_address(index, address, prefix)
            .map_err(|e| failed(interface, &format!("add the address {address}/{prefix}"), e))?;
        netlink
            .add_default_route(index, gateway)
            .map_err(|e| failed(interface, &format!("add a route to {gateway}"), e))?;
    }
    Ok(())
}

fn failed(interface: &str, what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the network interface {interface}: cannot {what}: {error}"))
}

/// The first interface that is not loopback's.
fn wait_for_interface(interfaces: &Path, patience: Duration) -> io::Result<String> {
    let began = Instant::now();
    loop {
        let names = fs::read_dir(interfaces)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        if let Some(name) = names.filter(|name| name != "lo").min() {
            return Ok(name);
        }
        if began.elapsed() > patience {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no network card appeared within {} ms", patience.as_millis()),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// No detection of duplicate addresses, no addresses and routes from routers, no questions to them
/// (Documentation/networking/ip-sysctl.rst). `accept_dad` counts for an interface and for all.
fn ask_nobody(settings: &Path, interface: &str) -> io::Result<()> {
    for folder in ["all", "default", interface] {
        for knob in ["accept_dad", "accept_ra", "autoconf", "router_solicitations"] {
            set(&settings.join(folder).join(knob), "0")?;
        }
    }
    Ok(())
}

fn set(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot write {}: {e}", path.display())))
}

/// The image of a home may have some of them; a builder's /etc has none.
fn write_etc(network: &Network, root: &Path) -> io::Result<()> {
    let etc = root.join("etc");
    for (name, contents) in etc::NETWORK_FILES {
        let path = etc.join(name);
        if path.symlink_metadata().is_err() {
            set(&path, contents)?;
        }
    }
    let resolv_conf = etc.join("resolv.conf");
    // It may be a link into a place that is not there.
    if resolv_conf.symlink_metadata().is_ok() {
        fs::remove_file(&resolv_conf)?;
    }
    set(&resolv_conf, &etc::resolv_conf(&network.nameservers))
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
