//! The whole way: curl on a real kernel, through the relay and a real passt, to servers that play the internet.
//!
//! Three network namespaces, made in a user namespace of this test's own: the host's, which has the servers and passt and no
//! way out, and in it the guest's, whose only interface is a TAP device behind `tests/tap.py`, in place of a VM. Skipped, with
//! a line that says so, where passt, a TAP device or user namespaces are missing.

mod common;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::spawn;

use common::*;
use egress::{End, Event, Policy, run};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const INSIDE: &str = "EGRESS_TEST_INSIDE";
/// Length of what the servers send and take.
const BIG: usize = 40 << 20;

/// Why this machine cannot run the test.
fn missing() -> Option<String> {
    for program in ["passt", "ip", "curl", "python3", "unshare", "mount"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).exists()));
        if !found {
            return Some(format!("there is no {program}"));
        }
    }
    let tap = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = tap {
        return Some(format!("/dev/net/tun: {error}"));
    }
    let namespaces = Command::new("unshare").args(["-rnm", "true"]).stderr(Stdio::null()).status();
    (!namespaces.is_ok_and(|status| status.success())).then(|| "there are no user namespaces".to_owned())
}

#[test]
fn curl_reaches_the_internet_and_nothing_else_through_the_relay_and_passt() {
    if let Some(why) = missing() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let output = Command::new("unshare")
        .args(["-rnm", "--kill-child", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "inside_of_the_namespaces", "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

/// Runs a command of the host's namespace.
fn host(line: &str) {
    let status = Command::new("sh").args(["-c", line]).status().expect("sh runs");
    assert!(status.success(), "{line}");
}

/// Answers `GET` with a body, and `PUT` with the length of what it got.
fn serve(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut request = String::new();
    reader.read_line(&mut request).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let peer = stream.local_addr().ok()?.ip().to_canonical();
    let body = match request.split_whitespace().collect::<Vec<_>>()[..] {
        ["GET", "/big", _] => big(),
        ["PUT", ..] => {
            let mut got = Vec::new();
            reader.take(length).read_to_end(&mut got).ok()?;
            format!("{}", got == big()).into_bytes()
        }
        _ => format!("hello from {peer}").into_bytes(),
    };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).ok()?;
    stream.write_all(&body).ok()
}

fn big() -> Vec<u8> {
    (0..BIG).map(|i| (i.wrapping_mul(31) >> 7) as u8).collect()
}

/// A resolver with a few names.
fn resolve(socket: &UdpSocket) {
    let zone: &[(&str, &'static str)] = &[
        ("one.test", PEER),
        ("six.test", PEER6),
        ("rebound.test", "10.9.9.9"),
        ("metadata.test", "169.254.169.254"),
        ("box.test", "9.9.9.1"),
        ("denied.test", PEER),
    ];
    let mut buffer = [0; 2000];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        let asked = &buffer[..length];
        let (name, end) = read_name(asked);
        let kind = asked[end + 1];
        let records: Vec<(&str, Data, u32)> = zone
            .iter()
            .filter(|(owner, address)| *owner == name && (kind == 1) == ip(address).is_ipv4())
            .map(|(owner, address)| (*owner, Data::Address(address), 60))
            .collect();
        let mut question = asked[..end + 4].to_vec();
        question[11] = 0;
        let _ = socket.send_to(&answer(&question, &records), peer);
    }
}

fn read_name(message: &[u8]) -> (String, usize) {
    let (mut name, mut at) = (String::new(), 12);
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        let _ = write!(name, "{}.", String::from_utf8_lossy(&message[at + 1..end]));
        at = end;
    }
    (name.trim_end_matches('.').to_owned(), at + 1)
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("sockets")
}

#[test]
#[ignore = "the other test runs it, in namespaces of its own"]
fn inside_of_the_namespaces() {
    assert!(std::env::var_os(INSIDE).is_some(), "only in namespaces of its own");
    let tap = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tap.py");
    let mut internet = Command::new("python3")
        .arg(&tap)
        .args(["hold", "internet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut ready = String::new();
    let said = internet.stdout.take().expect("a pipe");
    BufReader::new(said).read_line(&mut ready).expect("the device is there");
    host("ip link set lo up && ip link set internet up");
    host("ip addr add 203.0.113.9/24 dev internet && ip route add default via 203.0.113.1");
    host("ip -6 addr add 2a0a::9/64 dev internet nodad && ip -6 route add default via 2a0a::1");
    for address in ["1.1.1.1/32", "10.9.9.9/32", "9.9.9.1/32", "9.9.9.53/32", "2606:4700::1111/128"] {
        host(&format!("ip addr add {address} dev lo"));
    }
    // passt of 2023 forwards to the first resolver of this file; what `-D` names it tells to DHCP clients only.
    host("mount -t tmpfs none /mnt && echo nameserver 9.9.9.53 > /mnt/resolv.conf");
    host("mount --bind /mnt/resolv.conf \"$(readlink -f /etc/resolv.conf)\"");
    let listener = TcpListener::bind("[::]:80").expect("a server");
    spawn(move || listener.incoming().flatten().for_each(|stream| drop(spawn(|| serve(stream)))));
    let socket = UdpSocket::bind("9.9.9.53:53").expect("a resolver");
    spawn(move || resolve(&socket));

    let (of_passt, network) = pair(SocketType::STREAM);
    fcntl_setfd(&of_passt, FdFlags::empty()).expect("inherited");
    let fd = of_passt.as_raw_fd().to_string();
    let mut passt = Command::new("passt")
        .args(["--foreground", "--quiet", "--stderr", "--fd", &fd])
        .args(["-a", "192.0.2.2", "-n", "24", "-g", "192.0.2.1", "-a", "fd52:5500::2", "-g", "fe80::1"])
        .args(["-M", "52:55:00:00:00:01", "-m", "1500", "--no-map-gw", "-t", "none", "-u", "none"])
        .args(["--no-dhcp", "--no-ndp", "--no-dhcpv6", "--no-ra", "--no-icmp"])
        .args(["--dns-forward", "192.0.2.53"])
        .spawn()
        .expect("passt starts");
    drop(of_passt);

    let (guest, of_tap) = pair(SocketType::SEQPACKET);
    let (control, of_relay) = UnixStream::pair().expect("sockets");
    let own: Vec<IpAddr> = vec![ip("203.0.113.9"), ip("9.9.9.1"), ip("2a0a::9")];
    let policy = Policy { own, deny_names: vec!["denied.*".to_owned()], ..Policy::default() };
    let relay = spawn(move || run(guest, network, of_relay, policy));

    fcntl_setfd(&of_tap, FdFlags::empty()).expect("inherited");
    let output = Command::new("unshare")
        .args(["-nm", "python3"])
        .arg(&tap)
        .arg(of_tap.as_raw_fd().to_string())
        .stderr(Stdio::inherit())
        .output()
        .expect("the guest runs");
    drop(of_tap);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    relay.join().expect("no panic").expect("an ordinary end");
    // It ends with its socket, and has nothing to lose if it does not.
    passt.kill().expect("passt is there");
    passt.wait().expect("passt ends");
    drop(internet.stdin.take());
    internet.wait().expect("python ends");
    let events: Vec<Event> = BufReader::new(control)
        .lines()
        .map(|line| serde_json::from_str(&line.expect("a line")).expect("an event"))
        .collect();
    check(&said, &events);
}

/// The lines that the guest wrote, and the events, are as they must be.
fn check(said: &str, events: &[Event]) {
    let big: String = format!("{BIG}");
    let lines: Vec<&str> = said.lines().collect();
    let expected = [
        "one.test: hello from 1.1.1.1",
        "six.test: hello from 2606:4700::1111",
        "1.1.1.1: hello from 1.1.1.1",
        &format!("down: {big} same"),
        "up: true",
        "parallel: 100",
        // curl's 7: could not connect; its 6: could not resolve. Each at once.
        "10.9.9.9: 7 at once",
        "rebound.test: 7 at once",
        "metadata.test: 7 at once",
        "box.test: 7 at once",
        "link-local: 7 at once",
        "mapped: 7 at once",
        "mail: 7 at once",
        "denied.test: 6 at once",
        "nowhere.test: 6 at once",
        "closed: 7 at once",
        "ping: refused at once",
    ];
    assert_eq!(lines, expected, "{said}\n{events:#?}");
    let one = |event: &&Event| {
        matches!(event, Event::Connection { name: Some(name), end: End::Closed, up, down, .. }
            if name == "one.test" && *up > 100 && *down > 100)
    };
    let large = |event: &&Event| matches!(event, Event::Connection { down, .. } if *down > BIG as u64);
    assert!(events.iter().any(|event| one(&event)), "{events:#?}");
    assert!(events.iter().any(|event| large(&event)), "{events:#?}");
    let reasons: Vec<String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Refused { reason, .. } => Some(reason.to_string()),
            _ => None,
        })
        .collect();
    for part in ["not public", "builder itself", "on this machine", "26-65535", "`denied.*`", "protocol 1 "] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part}: {reasons:#?}");
    }
    let Some(Event::Total { connections, lost: 0, .. }) = events.last() else { panic!("{events:#?}") };
    assert!(*connections >= 105, "{connections}");
}
