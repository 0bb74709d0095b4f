//! Three network namespaces: a guest's, the box's, and that of the rest of the world. The guest is behind a real guard and a
//! real passt of the box; its programs are ordinary ones.
//!
//! ```text
//! guest ── plug (TAP, guard, passt) ── box ── veth ── world
//! ```

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::until;

/// A public address of the world, and one of each kind that is not public.
pub const WEB: &str = "93.184.216.34";
pub const WEB_V6: &str = "2606:2800:21f:cb07::1";
pub const PRIVATE: [&str; 6] =
    ["10.99.0.1", "172.16.5.5", "192.168.7.7", "169.254.169.254", "100.64.3.3", "fd99::1"];
/// The name server of the box's network: private, as most are.
pub const RESOLVER: &str = "10.77.0.1";
pub const RESOLVER_V6: &str = "fd77::1";
/// Of the box, towards the world. The second is a public one.
pub const BOX: [&str; 2] = ["10.77.0.2", "198.41.0.4"];

/// A namespace, held by a process that does nothing.
struct Space(Child);

impl Space {
    fn new() -> Self {
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "--mount",
            "sh",
            "-c",
            "echo; exec sleep 100000",
        ]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("util-linux, and root");
        // It is in its namespaces when it says something.
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut [0]).expect("a namespace of its own, which needs root");
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.pid(), "--", program]);
        command
    }

    fn run(&self, line: &str) {
        let output = self.command("sh").args(["-ec", line]).output().expect("nsenter");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Does this on a thread in the namespace, which goes on until the test ends.
    fn thread(&self, work: impl FnOnce() + Send + 'static) {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).expect("it lives");
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
            work();
        });
    }
}

impl Drop for Space {
    /// With all programs that are still in the namespace.
    fn drop(&mut self) {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let own = of(&self.pid());
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if own.is_some() && of(&pid) == own {
                let _ = Command::new("kill").args(["-KILL", &pid]).stderr(Stdio::null()).status();
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The other end of a guest's network.
pub struct Plug {
    child: Child,
    stdin: Option<ChildStdin>,
    events: mpsc::Receiver<Value>,
    /// What was said before the program that holds the network was replaced.
    before: Vec<Value>,
    space: Space,
}

pub struct World {
    dir: tempfile::TempDir,
    host: Space,
    world: Space,
    /// Whoever was reached: the local address of each connection and datagram, but not of queries for names.
    reached: Arc<Mutex<Vec<SocketAddr>>>,
    names: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
}

impl World {
    /// `None`, with a printed reason, where a machine lacks something.
    pub fn new() -> Option<Self> {
        if let Some(missing) =
            ["/usr/bin/passt", "/dev/net/tun"].iter().find(|path| !Path::new(path).exists())
        {
            println!("skipped: there is no {missing}");
            return None;
        }
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let (host, world) = (Space::new(), Space::new());
        host.run(&format!(
            "ip link add uplink type veth peer name world netns {}; ip link set lo up; {}
             ip address add {}/24 dev uplink; ip address add fd77::2/64 dev uplink nodad; ip link set uplink up",
            world.pid(),
            addresses_on_loopback(&BOX[1..]),
            BOX[0],
        ));
        world.run(&format!(
            "ip link set lo up; ip address add {RESOLVER}/24 dev world; ip address add fd77::1/64 dev world nodad;
             ip link set world up; {}{}",
            addresses_on_loopback(&[WEB, WEB_V6]),
            addresses_on_loopback(&PRIVATE),
        ));
        host.run(&format!("ip route add default via {RESOLVER}; ip -6 route add default via fd77::1"));
        let names = HashMap::from([
            ("web.test".to_owned(), vec![WEB, WEB_V6]),
            ("inward.test".to_owned(), vec![PRIVATE[0]]),
        ]);
        let parsed =
            |list: Vec<&str>| list.into_iter().map(|text| text.parse().expect("an address")).collect();
        let names = names.into_iter().map(|(name, list)| (name, parsed(list))).collect();
        let all = Self { dir, host, world, reached: Arc::default(), names: Arc::new(Mutex::new(names)) };
        all.serve();
        Some(all)
    }

    fn serve(&self) {
        let (started, ready) = mpsc::channel();
        for address in [RESOLVER, RESOLVER_V6] {
            let (names, sender) = (self.names.clone(), started.clone());
            self.world.thread(move || serve_names(address, &names, &sender));
            let (names, sender) = (self.names.clone(), started.clone());
            self.world.thread(move || serve_names_over_tcp(address, &names, &sender));
        }
        for (space, port) in [(&self.world, 80), (&self.world, 8080), (&self.host, 22), (&self.host, 80)] {
            let (reached, started) = (self.reached.clone(), started.clone());
            space.thread(move || serve_http(port, &reached, &started));
        }
        for _ in 0..8 {
            ready.recv_timeout(Duration::from_secs(20)).expect("all servers");
        }
    }

    /// What this name means from now on.
    pub fn set_name(&self, name: &str, address: &str) {
        self.set_addresses(name, &[address]);
    }

    /// The same, for a name with several addresses.
    pub fn set_addresses(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        self.names.lock().expect("names").insert(name.to_owned(), addresses);
    }

    /// The world has these addresses, too.
    pub fn add_addresses(&self, list: &[&str]) {
        self.world.run(&addresses_on_loopback(list));
    }

    /// Does this on a thread in the world, which goes on until the test ends.
    pub fn serve_in_the_world(&self, work: impl FnOnce() + Send + 'static) {
        self.world.thread(work);
    }

    /// Addresses that were reached since the last call.
    pub fn reached(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.reached.lock().expect("reached"))
    }

    /// A program of the box or of the world.
    pub fn on_the_box(&self, program: &str) -> Command {
        self.host.command(program)
    }

    pub fn in_the_world(&self, program: &str) -> Command {
        self.world.command(program)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A guest with this policy.
    pub fn guest(&self, policy: &Value) -> Plug {
        self.guest_asking(RESOLVER, policy)
    }

    /// A guest with this name server.
    pub fn guest_asking(&self, resolver: &str, policy: &Value) -> Plug {
        let space = Space::new();
        let etc = self.dir.path().join(format!("etc-{}", space.pid()));
        space.run(&format!(
            "mkdir -p {0}/upper {0}/work; mount -t overlay overlay -o lowerdir=/etc,upperdir={0}/upper,workdir={0}/work /etc;
             rm -f /etc/resolv.conf; printf 'nameserver {resolver}\\noptions edns0\\n' > /etc/resolv.conf; echo hosts: files dns > /etc/nsswitch.conf",
            etc.display()
        ));
        let agent = PathBuf::from(env!("CARGO_BIN_EXE_builder-agent"));
        let plug = agent.parent().expect("a folder").join("examples/plug");
        assert!(plug.exists(), "{} is missing: build the examples", plug.display());
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.host.pid(), "--"]).arg(plug).arg(agent);
        command.args([policy.to_string(), space.pid(), resolver.to_owned()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nsenter");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let first = lines.next().expect("a network").expect("UTF-8");
        assert_eq!(first, "ready");
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("JSON");
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Plug { child, stdin, events, before: Vec::new(), space }
    }
}

impl Plug {
    pub fn command(&self, program: &str) -> Command {
        self.space.command(program)
    }

    /// Fetches with curl.
    pub fn curl(&self, args: &[&str]) -> Output {
        let mut curl = self.command("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20"]).args(args);
        curl.output().expect("curl")
    }

    /// Ends the network, and gives all that was said about it.
    pub fn end(mut self) -> Vec<Value> {
        drop(self.stdin.take());
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "{status}");
        std::mem::take(&mut self.before).into_iter().chain(self.events.iter()).collect()
    }

    /// Another program takes the place of the one that holds the network, as when an agent takes over.
    pub fn replace(&mut self) {
        let stdin = self.stdin.as_mut().expect("piped");
        stdin.write_all(b"replace\n").expect("it reads");
        loop {
            let event = self.events.recv_timeout(Duration::from_secs(20)).expect("another program");
            if event.get("went_on").is_some() {
                return;
            }
            self.before.push(event);
        }
    }

    /// The process ids of guard and passt.
    pub fn processes(&self) -> Vec<u32> {
        let (mut found, mut next) = (Vec::new(), vec![self.child.id()]);
        while let Some(pid) = next.pop() {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                let children = children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
                for child in children {
                    found.push(child);
                    next.push(child);
                }
            }
        }
        found
    }

    /// Kills the program that holds the network, as if the agent were killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("its end");
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until none of these processes is there.
pub fn gone(processes: &[u32]) {
    until("the processes to end", || {
        processes.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists())
    });
}

/// Commands of ip(8).
fn addresses_on_loopback(list: &[&str]) -> String {
    let add = |address: &&str| match address.contains(':') {
        true => format!("ip address add {address}/128 dev lo nodad;"),
        false => format!("ip address add {address}/32 dev lo;"),
    };
    list.iter().map(add).collect()
}

/// Answers `GET`: `/big` with 64 MiB, `/to?URL` with a redirect, all others with the address at which it was reached.
fn serve_http(port: u16, reached: &Arc<Mutex<Vec<SocketAddr>>>, started: &mpsc::Sender<()>) {
    let listener = TcpListener::bind(("::", port)).expect("a port of the namespace");
    started.send(()).expect("the test");
    for stream in listener.incoming().flatten() {
        let reached = reached.clone();
        std::thread::spawn(move || answer(stream, &reached));
    }
}

fn answer(mut stream: TcpStream, reached: &Mutex<Vec<SocketAddr>>) {
    let Ok(local) = stream.local_addr() else { return };
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    reached.lock().expect("reached").push(local);
    let mut line = String::new();
    if BufReader::new(&stream).read_line(&mut line).is_err() {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default();
    let (head, body) = match path.split_once('?') {
        Some(("/to", url)) => (format!("302 Found\r\nLocation: {url}"), Vec::new()),
        _ if path == "/big" => ("200 OK".to_owned(), vec![b'x'; 64 << 20]),
        _ => ("200 OK".to_owned(), format!("this is {local}\n").into_bytes()),
    };
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // Whoever asked may have gone.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// Longest answer over UDP, without an extension that clients may ask for. RFC 1035, 4.2.1.
const SHORT: usize = 512;

/// Answers questions for the addresses of a name with what the table says; others with nothing.
fn serve_names(address: &str, names: &Names, started: &mpsc::Sender<()>) {
    let socket = UdpSocket::bind((address, 53)).expect("port 53 of the namespace");
    started.send(()).expect("the test");
    let mut query = [0; 512];
    while let Ok((n, from)) = socket.recv_from(&mut query) {
        if let Some(mut answer) = answer_names(&query[..n], &names.lock().expect("names")) {
            if answer.len() > SHORT {
                // Truncated: to be asked again over TCP.
                answer[2] |= 2;
                answer.truncate(n);
                answer[6..12].fill(0);
            }
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn serve_names_over_tcp(address: &str, names: &Names, started: &mpsc::Sender<()>) {
    let listener = TcpListener::bind((address, 53)).expect("port 53 of the namespace");
    started.send(()).expect("the test");
    for mut stream in listener.incoming().flatten() {
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            let Ok(()) = stream.read_exact(&mut query) else { break };
            let Some(answer) = answer_names(&query, &names.lock().expect("names")) else { break };
            let length = u16::try_from(answer.len()).expect("a message").to_be_bytes();
            // Whoever asked may have gone.
            let _ = stream.write_all(&[&length[..], &answer].concat());
        }
    }
}

type Names = Mutex<HashMap<String, Vec<IpAddr>>>;

fn answer_names(query: &[u8], names: &HashMap<String, Vec<IpAddr>>) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    while let length @ 1.. = usize::from(*query.get(at)?) {
        labels.push(String::from_utf8(query.get(at + 1..at + 1 + length)?.to_vec()).ok()?);
        at += 1 + length;
    }
    let question = query.get(12..at + 5)?;
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let found = names.get(&labels.join("."));
    let of_kind = |address: &&IpAddr| kind == if address.is_ipv4() { 1 } else { 28 };
    let addresses: Vec<_> = found.into_iter().flatten().filter(of_kind).collect();
    let code = if found.is_some() { 0x80 } else { 0x83 };
    let mut answer =
        [&query[..2], &[0x81, code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0], question].concat();
    for address in addresses {
        let octets = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        // The name by a pointer to the question; class IN, a minute, the address.
        answer.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 60, 0, octets.len() as u8]);
        answer.extend(octets);
    }
    Some(answer)
}
