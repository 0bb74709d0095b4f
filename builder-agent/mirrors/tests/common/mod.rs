//! An upstream repository, a mirror of it, and what a home would see.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mirrors::{Patience, Repository, Settings, snapshot};
use store::Composed;
use tempfile::TempDir;

/// A folder in memory: the tests write a lot and keep nothing of it.
pub fn scratch() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Runs git without anybody's configuration; returns what it answers.
pub fn git(dir: &Path, arguments: &[&str]) -> String {
    let (ok, text) = try_git(dir, arguments);
    assert!(ok, "git {arguments:?}: {text}");
    text.trim_end().to_owned()
}

pub fn try_git(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let out = command(dir, arguments).output().expect("git runs (install git)");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    (
        out.status.success(),
        String::from_utf8_lossy(&out.stdout).into_owned() + if out.status.success() { "" } else { &said },
    )
}

pub fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "Test").env(format!("GIT_{who}_EMAIL"), "test@example.org");
    }
    // Files of a mounted image belong to root.
    for (name, value) in [("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", "*")] {
        command.env(format!("GIT_CONFIG_{name}"), value);
    }
    command
}

/// A bare repository that a mirror follows.
pub struct Upstream {
    pub dir: TempDir,
    commits: u64,
}

impl Upstream {
    pub fn new() -> Self {
        let dir = scratch();
        git(dir.path(), &["init", "-q", "--bare", "-b", "master", "."]);
        git(dir.path(), &["config", "gc.auto", "0"]);
        let mut upstream = Self { dir, commits: 0 };
        upstream.commit("master");
        upstream
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }

    /// Adds a commit with a new file to a branch, and makes the branch if there is none.
    pub fn commit(&mut self, branch: &str) -> String {
        self.commits += 1;
        let n = self.commits;
        let reference = format!("refs/heads/{branch}");
        let (exists, _) = try_git(self.path(), &["rev-parse", "-q", "--verify", &reference]);
        let from = match (exists, branch) {
            (true, _) => format!("from {reference}^0\n"),
            (false, "master") => String::new(),
            (false, _) => "from refs/heads/master^0\n".to_owned(),
        };
        let text = format!("contents of file {n}\n");
        let stream = format!(
            "commit {reference}\ncommitter Test <test@example.org> {} +0000\ndata 3\nnew\n{from}\
             M 100644 inline dir{}/file{n}\ndata {}\n{text}\n",
            1_700_000_000 + n,
            n % 7,
            text.len()
        );
        fast_import(self.path(), stream.as_bytes());
        git(self.path(), &["rev-parse", &reference])
    }
}

pub fn fast_import(repository: &Path, stream: &[u8]) {
    let mut child =
        command(repository, &["fast-import", "--quiet", "--force"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stream).unwrap();
    assert!(child.wait().unwrap().success());
}

/// A mirror called `m`.
pub struct Mirror {
    pub dir: TempDir,
    pub settings: Settings,
}

impl Mirror {
    pub fn of(url: &str) -> Self {
        let dir = scratch();
        let settings = settings(dir.path(), url);
        Self { dir, settings }
    }

    pub fn repository(&self) -> &Repository {
        &self.settings.repositories[0]
    }

    pub fn folder(&self) -> PathBuf {
        self.settings.folder("m")
    }

    pub fn sync(&self) -> Result<mirrors::Synced, String> {
        mirrors::sync(&self.settings, self.repository()).map_err(|error| chain(&error))
    }

    /// Unpacks what a home sees into a folder.
    pub fn seen(&self) -> Seen {
        Seen::of(&snapshot(&self.folder()).unwrap_or_else(|error| panic!("{}", chain(&error))))
    }
}

pub fn settings(dir: &Path, url: &str) -> Settings {
    Settings {
        dir: dir.to_owned(),
        // Tests may also follow what an operator could not write, such as http.
        repositories: vec![format!("m={url}").parse().unwrap()],
        seeds: Vec::new(),
        interval: Duration::from_secs(900),
        max_bytes: 1 << 30,
        certificates: None,
        patience: Patience::default(),
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", chain(cause))).unwrap_or_default();
    format!("{error}{cause}")
}

/// The files of an image.
pub struct Seen {
    pub dir: TempDir,
}

impl Seen {
    pub fn of(image: &Composed) -> Self {
        let dir = scratch();
        let file = dir.path().join("image");
        write_image(image, &file);
        let out = dir.path().join("m.git");
        let run = Command::new("fsck.erofs")
            .arg(format!("--extract={}", out.display()))
            .arg(&file)
            .output()
            .expect("fsck.erofs runs (install erofs-utils)");
        assert!(run.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&run.stderr));
        Self { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("m.git")
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        git(&self.path(), arguments)
    }

    /// Every branch and tag with its object.
    pub fn refs(&self) -> String {
        self.git(&["for-each-ref", "--format=%(objectname) %(refname)"])
    }

    /// Fails if an object is missing.
    pub fn check(&self) {
        self.git(&["fsck", "--connectivity-only", "--no-progress", "--no-dangling"]);
    }
}

/// Writes an image to a file. The end of a piece behind its file is a hole, which reads as zeros like a mapping.
pub fn write_image(image: &Composed, to: &Path) {
    let out = fs::File::create(to).unwrap();
    let mut at = 0;
    for (file, offset, len) in &image.segments {
        assert_eq!((offset % 4096, len % 4096), (0, 0));
        let mut piece = vec![0; (*len).min(file.metadata().unwrap().len() - offset) as usize];
        assert!(len - (piece.len() as u64) < 4096, "a mapping would have a page without data");
        file.read_exact_at(&mut piece, *offset).unwrap();
        out.write_all_at(&piece, at).unwrap();
        at += len;
    }
    assert_eq!(at, image.len);
    out.set_len(at).unwrap();
}

/// Mounts an image; `None` where the kernel cannot.
pub struct Mounted {
    pub at: PathBuf,
}

impl Mounted {
    pub fn new(image: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let run =
            Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).args([image, at]).output().unwrap();
        if !run.status.success() {
            eprintln!(
                "SKIPPED: the kernel cannot mount EROFS here: {}",
                String::from_utf8_lossy(&run.stderr)
            );
            return None;
        }
        Some(Self { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// A server that treats each connection as `serve` says, until it is dropped.
pub struct Server {
    pub port: u16,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl Server {
    pub fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop: Arc<std::sync::atomic::AtomicBool> = Arc::default();
        let (stopped, serve) = (Arc::clone(&stop), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { port, stop }
    }

    /// Answers each request of HTTP with what `answer` makes of its path.
    pub fn http(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::new(move |mut stream| {
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let path = text.split(' ').nth(1).unwrap_or_default();
            let _ = stream.write_all(&answer(path));
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// `git daemon` for a repository, behind a relay that counts what it sends.
pub struct Daemon {
    child: std::process::Child,
    relay: Server,
    sent: Arc<AtomicU64>,
}

impl Daemon {
    pub fn new(repository: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let base = format!("--base-path={}", repository.parent().unwrap().display());
        let arguments =
            ["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", &format!("--port={port}"), &base];
        let child = command(repository, &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let sent: Arc<AtomicU64> = Arc::default();
        let counter = Arc::clone(&sent);
        let relay = Server::new(move |client| {
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
            let (mut from, mut to) = (server, client);
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                counter.fetch_add(n as u64, Ordering::SeqCst);
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        Self { child, relay, sent }
    }

    pub fn url(&self, repository: &Path) -> String {
        format!("git://127.0.0.1:{}/{}", self.relay.port, repository.file_name().unwrap().to_str().unwrap())
    }

    /// Bytes sent since the last question.
    pub fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::SeqCst)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has a child of its own.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).status();
        let _ = self.child.wait();
    }
}
