//! An internet for real clients: hosts with names under `fetch.test`, https with an authority of their own, files, and git.
//!
//! Each host is a folder of files, with its own addresses of both families. What ends with `.git` is served by git itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig, ServerConnection};

use super::world::{Plug, World};

/// Where builders find certificates, as the box gives them.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Largest request that these servers read.
const MAX_REQUEST: usize = 16 << 20;

/// The internet around a [`World`].
pub struct Internet {
    pub world: World,
    /// Hosts so far, which have addresses by their number.
    hosts: Mutex<u8>,
    /// Requests: host and path.
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl Internet {
    /// `None`, with a printed reason, where this machine lacks something.
    pub fn new() -> Option<Self> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: there is no openssl");
            return None;
        }
        let world = World::new()?;
        let all = Self { world, hosts: Mutex::new(0), asked: Arc::default() };
        all.make_certificates();
        std::fs::create_dir(all.hosts_dir()).expect("a folder");
        let (sender, ready) = mpsc::channel();
        let (tls, dir, asked) = (all.tls(), all.hosts_dir(), all.asked.clone());
        all.world.serve_in_the_world(move || serve(&tls, &dir, &asked, &sender));
        ready.recv_timeout(Duration::from_secs(20)).expect("a server");
        Some(all)
    }

    fn dir(&self) -> &Path {
        self.world.dir()
    }

    fn hosts_dir(&self) -> PathBuf {
        self.dir().join("hosts")
    }

    pub fn authority(&self) -> PathBuf {
        self.dir().join("ca.pem")
    }

    fn make_certificates(&self) {
        let names = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:*.fetch.test\n";
        std::fs::write(self.dir().join("names"), names).expect("a file");
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for line in [
            format!("req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN=fetch.test"),
            format!("req {key} -keyout server.key -out server.csr -subj /CN=a.fetch.test"),
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile names -out server.pem"
                .to_owned(),
        ] {
            run(Command::new("openssl").current_dir(self.dir()).args(line.split(' ')));
        }
    }

    fn tls(&self) -> Arc<ServerConfig> {
        let certificate =
            CertificateDer::from_pem_file(self.dir().join("server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(self.dir().join("server.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a server");
        Arc::new(config)
    }

    /// A host with this name, and the folder of its files.
    pub fn host(&self, name: &str) -> PathBuf {
        let mut hosts = self.hosts.lock().expect("hosts");
        *hosts += 1;
        let addresses = [format!("93.184.217.{hosts}"), format!("2606:2800:21f:cb08::{hosts}")];
        let addresses = addresses.each_ref().map(String::as_str);
        self.world.add_addresses(&addresses);
        self.world.set_addresses(name, &addresses);
        let dir = self.hosts_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        dir
    }

    /// A file of a host.
    pub fn put(&self, host: &Path, path: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = host.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(&path, contents).expect("a file");
        path
    }

    /// A repository `NAME.git` of a host, with this file in its only commit; returns the commit.
    pub fn repository(&self, host: &Path, name: &str, files: &[(&str, &str)]) -> String {
        let dir = host.join(format!("{name}.git"));
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]);
            run(git.arg("-C").arg(&dir).args(args))
        };
        std::fs::create_dir_all(&dir).expect("a folder");
        git(&["init", "-q", "."]);
        for (path, text) in files {
            self.put(&dir, path, text);
        }
        git(&["add", "-A"]);
        git(&["commit", "-qm", "first"]);
        String::from_utf8(git(&["rev-parse", "HEAD"]).stdout).expect("a commit").trim().to_owned()
    }

    /// An archive of these files, which are in one folder.
    pub fn archive(&self, name: &str, files: &[(&str, &str)]) -> Vec<u8> {
        let dir = self.dir().join("archives").join(name);
        for (path, text) in files {
            self.put(&dir, path, text);
        }
        let top = files[0].0.split('/').next().expect("a folder");
        run(Command::new("tar").arg("-C").arg(&dir).args(["-czf", "-", top])).stdout
    }

    /// The path of each request to this host.
    pub fn asked(&self, host: &str) -> Vec<String> {
        let asked = self.asked.lock().expect("requests");
        asked.iter().filter(|(name, _)| name == host).map(|(_, path)| path.clone()).collect()
    }

    /// A guest with this policy, and with the certificate of this internet's authority as a builder has the box's.
    pub fn guest(&self, policy: &serde_json::Value) -> Plug {
        let guest = self.world.guest(policy);
        let place = "d=$(dirname $2); mkdir -p $d && rm -f $2 && cp $1 $2";
        run(guest.command("sh").args(["-ec", place, "sh"]).arg(self.authority()).arg(CERTIFICATES));
        guest
    }
}

/// Runs a program that works.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn serve(
    tls: &Arc<ServerConfig>,
    dir: &Path,
    asked: &Arc<Mutex<Vec<(String, String)>>>,
    ready: &mpsc::Sender<()>,
) {
    let listener = TcpListener::bind(("::", 443)).expect("port 443 of the namespace");
    ready.send(()).expect("the test");
    for stream in listener.incoming().flatten() {
        let (tls, dir, asked) = (tls.clone(), dir.to_owned(), asked.clone());
        std::thread::spawn(move || {
            // Clients go when they like.
            let _ = converse(&tls, stream, &dir, &asked);
        });
    }
}

struct Request {
    method: String,
    host: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }
}

/// Answers one request after the other.
fn converse(
    tls: &Arc<ServerConfig>,
    stream: TcpStream,
    dir: &Path,
    asked: &Mutex<Vec<(String, String)>>,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(tls.clone()).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
    while let Some(request) = read(&mut stream)? {
        asked.lock().expect("requests").push((request.host.clone(), request.path.clone()));
        let (head, body) = answer(&request, dir);
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            stream.get_mut().write_all(&body)?;
        }
        stream.get_mut().flush()?;
    }
    stream.get_mut().conn.send_close_notify();
    stream.get_mut().flush()
}

fn read(stream: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        host: String::new(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    request.host = request.header("host").to_owned();
    if request.header("expect") == "100-continue" {
        return Err(std::io::Error::other("not supported here"));
    }
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    if length > MAX_REQUEST {
        return Err(std::io::Error::other("too long"));
    }
    request.body.resize(length, 0);
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// Status and headers, and the body.
fn answer(request: &Request, dir: &Path) -> (String, Vec<u8>) {
    // Clients write `%2f` in names of packages.
    let path = request.path.replace("%2f", "/").replace("%2F", "/");
    let path = Path::new(path.trim_start_matches('/'));
    if path.components().any(|part| !matches!(part, Component::Normal(_))) || request.host.contains('/') {
        return ("400 Bad Request".to_owned(), Vec::new());
    }
    let host = dir.join(&request.host);
    if path.components().any(|part| part.as_os_str().to_string_lossy().ends_with(".git")) {
        return git(request, &host, path);
    }
    let file = host.join(path);
    // A redirect is a file with the address.
    if let Ok(target) = std::fs::read_to_string(file.with_extension("redirect")) {
        return (format!("302 Found\r\nLocation: {target}"), Vec::new());
    }
    let index = file.join("index.html");
    let (file, kind) = if index.exists() { (index, "text/html") } else { (file, "application/octet-stream") };
    match std::fs::read(file) {
        Ok(contents) => (format!("200 OK\r\nContent-Type: {kind}"), contents),
        Err(_) => ("404 Not Found".to_owned(), Vec::new()),
    }
}

/// Asks git, as a web server does (CGI, RFC 3875).
fn git(request: &Request, host: &Path, path: &Path) -> (String, Vec<u8>) {
    let mut git = Command::new("git");
    git.arg("http-backend").env("GIT_PROJECT_ROOT", host).env("GIT_HTTP_EXPORT_ALL", "1");
    git.env("PATH_INFO", Path::new("/").join(path)).env("QUERY_STRING", &request.query);
    git.env("REQUEST_METHOD", &request.method).env("CONTENT_LENGTH", request.body.len().to_string());
    git.env("CONTENT_TYPE", request.header("content-type"));
    git.env("HTTP_CONTENT_ENCODING", request.header("content-encoding"));
    git.env("GIT_PROTOCOL", request.header("git-protocol"));
    let mut git = git.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("git");
    let mut stdin = git.stdin.take().expect("piped");
    let body = request.body.clone();
    let writing = std::thread::spawn(move || stdin.write_all(&body));
    let mut said = Vec::new();
    git.stdout.take().expect("piped").read_to_end(&mut said).expect("its answer");
    let _ = (writing.join(), git.wait());
    let end = said.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(said.len());
    let head = String::from_utf8_lossy(&said[..end]).into_owned();
    let body = said.split_off((end + 4).min(said.len()));
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let others = head.lines().filter(|line| !line.starts_with("Status: "));
    (std::iter::once(status).chain(others).collect::<Vec<_>>().join("\r\n"), body)
}

/// A zip archive of these files, as they are.
pub fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, contents) in files {
        let offset = out.len() as u32;
        let size = (contents.len() as u32).to_le_bytes();
        // Versions, flags, no compression, a time and day (1980-01-01), the sum, both sizes, the name's.
        let common =
            [&[20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0][..], &crc(contents).to_le_bytes(), &size, &size].concat();
        let length = (name.len() as u16).to_le_bytes();
        out.extend([&b"PK\x03\x04"[..], &common[..], &length, &[0, 0], name.as_bytes(), contents].concat());
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &common[..], &length, &[0; 12]].concat());
        directory.extend([&offset.to_le_bytes()[..], name.as_bytes()].concat());
    }
    let (count, at) = ((files.len() as u16).to_le_bytes(), (out.len() as u32).to_le_bytes());
    let size = (directory.len() as u32).to_le_bytes();
    out.extend(directory);
    out.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &at, &[0, 0]].concat());
    out
}

/// CRC-32 of IEEE 802.3.
fn crc(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(sum & 1)))
    };
    !bytes.iter().fold(!0, step)
}
