//! The real kernel of this host, in namespaces of a test's own: one end of a virtual cable is the network card.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use guest::protocol::Subnet;

use super::*;

fn network() -> Network {
    let ipv4 = Subnet { address: [192, 0, 2, 2].into(), prefix: 24, gateway: [192, 0, 2, 1].into() };
    let [address, gateway] = ["fd52:5500::2", "fe80::1"].map(|address| address.parse().unwrap());
    Network {
        ipv4: Some(ipv4),
        ipv6: Some(Subnet { address, prefix: 64, gateway }),
        nameservers: vec![[192, 0, 2, 53].into()],
        ports: (32768, 60999),
    }
}

/// Set in a process that is in a network namespace of its own.
const INSIDE: &str = "BARNRAISER_TEST_IN_NETWORK_NAMESPACE";

/// Runs the named test of this file again, as root of new namespaces. True in that process.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("machine::network::tests::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A network card `eth0`, which is not up yet.
fn card() {
    // This mount shows the interfaces of the namespace.
    crate::sys::mount("sysfs", Path::new("/sys"), "sysfs", 0, "").unwrap();
    ip("link add eth0 type veth peer name far");
    ip("link set far up");
}

#[test]
fn a_builder_finds_its_addresses_and_routes_at_once() {
    if !inside("a_builder_finds_its_addresses_and_routes_at_once") {
        return;
    }
    card();
    let before = fs::read_to_string("/proc/net/if_inet6").unwrap();
    assert!(!before.contains("eth0"), "{before}");
    configure("eth0", &network()).unwrap();

    // A tentative address could not be bound yet.
    for address in ["192.0.2.2", "fd52:5500::2"] {
        let address: IpAddr = address.parse().unwrap();
        UdpSocket::bind((address, 0)).unwrap();
        TcpListener::bind((address, 0)).unwrap();
    }
    let route = fs::read_to_string("/proc/net/route").unwrap();
    let is_default = |line: &str| line.starts_with("eth0\t00000000\t010200C0\t");
    assert!(route.lines().any(is_default), "{route}");
    let route = fs::read_to_string("/proc/net/ipv6_route").unwrap();
    let zero = "0".repeat(32);
    let gateway = "fe800000000000000000000000000001";
    let default = format!("{zero} 00 {zero} 00 {gateway} ");
    assert!(route.lines().any(|line| line.starts_with(&default) && line.ends_with("eth0")), "{route}");
    let flags = fs::read_to_string("/sys/class/net/eth0/flags").unwrap();
    assert_eq!(u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap() & 1, 1, "it is up");
    for knob in ["accept_dad", "accept_ra", "autoconf", "router_solicitations"] {
        let value = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/eth0/{knob}")).unwrap();
        assert_eq!(value.trim(), "0", "{knob}");
    }
    // What cannot be done is said in words.
    let again = configure("eth0", &network()).unwrap_err().to_string();
    let expected = "the network interface eth0: cannot add the address 192.0.2.2/24: ";
    assert!(again.starts_with(expected), "{again}");
}

#[test]
fn a_network_of_one_family_has_nothing_of_the_other() {
    if !inside("a_network_of_one_family_has_nothing_of_the_other") {
        return;
    }
    card();
    configure("eth0", &Network { ipv6: None, ..network() }).unwrap();
    let addresses = fs::read_to_string("/proc/net/if_inet6").unwrap();
    assert!(!addresses.contains("fd52"), "{addresses}");
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_dad").unwrap().trim(), "1");
}

#[test]
fn the_card_is_the_interface_that_is_not_loopback_and_is_waited_for() {
    let dir = std::env::temp_dir().join(format!("interfaces-test-{}", std::process::id()));
    fs::create_dir_all(dir.join("lo")).unwrap();
    let missing = wait_for_interface(&dir, Duration::from_millis(20)).unwrap_err();
    assert_eq!(missing.to_string(), "no network card appeared within 20 ms");
    let later = dir.clone();
    let maker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        fs::create_dir(later.join("eth0")).unwrap();
    });
    assert_eq!(wait_for_interface(&dir, Duration::from_secs(60)).unwrap(), "eth0");
    maker.join().unwrap();
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn etc_has_the_files_of_a_fixed_output_under_nix() {
    let root = std::env::temp_dir().join(format!("network-etc-test-{}", std::process::id()));
    fs::create_dir_all(root.join("etc")).unwrap();
    write_etc(&network(), &root).unwrap();
    let read = |name: &str| fs::read_to_string(root.join("etc").join(name)).unwrap();
    assert_eq!(read("resolv.conf"), "nameserver 192.0.2.53\noptions edns0\n");
    assert_eq!(read("nsswitch.conf"), "hosts: files dns\nservices: files\n");
    assert!(read("services").contains("\nhttps 443/tcp\n"));
    assert_eq!(fs::read_dir(root.join("etc")).unwrap().count(), 3);
    fs::remove_dir_all(&root).unwrap();
}

#[test]
fn what_the_image_of_a_home_says_about_names_stays_but_its_name_servers_are_the_boxs() {
    let root = std::env::temp_dir().join(format!("network-home-etc-test-{}", std::process::id()));
    let etc = root.join("etc");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("nsswitch.conf"), "passwd: files\n").unwrap();
    std::os::unix::fs::symlink("../run/missing/stub.conf", etc.join("resolv.conf")).unwrap();
    write_etc(&network(), &root).unwrap();
    assert_eq!(fs::read_to_string(etc.join("nsswitch.conf")).unwrap(), "passwd: files\n");
    assert!(fs::read_to_string(etc.join("resolv.conf")).unwrap().starts_with("nameserver 192.0.2.53\n"));
    assert!(etc.join("services").exists());
    fs::remove_dir_all(&root).unwrap();
}
