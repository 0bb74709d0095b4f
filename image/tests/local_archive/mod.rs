//! A Debian archive for tests: a few small packages, signed with a new key, served over HTTP on the loopback
//! interface. Real dpkg-deb, apt-ftparchive and gpg make it; real apt reads it.
//!
//! After the index is made, a file can be removed, cut short or damaged, as happens regularly on mirrors.

use netboot_image::files;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

pub const SUITE: &str = "trixie";

pub struct LocalArchive {
    dir: TempDir,
    url: String,
    asked: Arc<Mutex<BTreeSet<String>>>,
}

/// A defect of a file in an archive.
#[derive(Clone, Copy, Debug)]
pub enum Mishap {
    Missing,
    HalfThere,
    Damaged,
    /// The server announces the whole length and hangs up in the middle, each time.
    CutOff,
}

impl Mishap {
    pub const ALL: [Mishap; 4] = [Mishap::Missing, Mishap::HalfThere, Mishap::Damaged, Mishap::CutOff];
}

/// A package to add.
pub struct Deb<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub source: &'a str,
    pub depends: &'a str,
    /// Additional lines of its control file.
    pub more: &'a str,
    pub files: &'a [(&'a str, &'a str)],
}

impl LocalArchive {
    /// Serves an empty archive.
    pub fn new() -> Self {
        // gpg-agent's socket must have a short name, so the folder is not below TMPDIR.
        let dir = tempfile::Builder::new().prefix("archive-").tempdir_in("/tmp").unwrap();
        let root = dir.path().join("www");
        std::fs::create_dir_all(root.join("pool")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (root, log) = (root.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &root, &log));
            }
        });
        let archive = Self { dir, url, asked };
        archive.new_key();
        archive
    }

    /// Makes a key that signs from now on; `keyring` still has the first one only.
    pub fn new_key(&self) {
        let home = self.gnupg();
        // The agent would keep the socket of a folder that is removed.
        self.stop_agent();
        drop(std::fs::remove_dir_all(&home));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
        let name = "Test archive <archive@test.example>";
        let mut make = self.gpg();
        run(make.args(["--pinentry-mode", "loopback", "--passphrase", ""]).args([
            "--quick-gen-key",
            name,
            "ed25519",
            "sign",
            "never",
        ]));
        if !self.keyring().exists() {
            std::fs::write(self.keyring(), run(self.gpg().arg("--export")).stdout).unwrap();
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn keyring(&self) -> PathBuf {
        self.dir.path().join("keyring.gpg")
    }

    /// A folder beside the archive, for a test's downloads.
    pub fn folder(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Whether a file was requested whose name starts and ends like this.
    pub fn was_asked_for(&self, start: &str, end: &str) -> bool {
        let asked = self.asked.lock().unwrap();
        asked.iter().any(|path| {
            let name = path.rsplit('/').next().unwrap();
            name.starts_with(start) && name.ends_with(end)
        })
    }

    pub fn add(&self, deb: &Deb) {
        let Deb { name, version, source, depends, more, files } = deb;
        let tree = self.dir.path().join("build");
        drop(std::fs::remove_dir_all(&tree));
        let mut control = format!(
            "{more}Package: {name}\nVersion: {version}\nArchitecture: amd64\nSource: {source}\n\
             Maintainer: Nobody <nobody@test.example>\nDescription: for a test\n"
        );
        if !depends.is_empty() {
            control += &format!("Depends: {depends}\n");
        }
        for (path, contents) in [("DEBIAN/control", control.as_str())].iter().chain(*files) {
            let path = tree.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        let deb = self.pool().join(format!("{name}_{version}_amd64.deb"));
        run(Command::new("dpkg-deb").args(["--build", "-Znone", "--root-owner-group"]).arg(&tree).arg(deb));
    }

    /// A source package: an upstream archive, which revisions share, and two files that Debian adds.
    pub fn add_source(&self, name: &str, upstream: &str, revision: &str) {
        let tar = format!("{name}_{upstream}.orig.tar.gz");
        std::fs::write(self.pool().join(&tar), format!("upstream of {name} {upstream}")).unwrap();
        let debian = format!("{name}_{upstream}-{revision}.debian.tar.xz");
        std::fs::write(self.pool().join(&debian), format!("debian of {name} {upstream}-{revision}")).unwrap();
        let mut dsc = format!(
            "Format: 3.0 (quilt)\nSource: {name}\nBinary: {name}\nArchitecture: any\n\
             Version: {upstream}-{revision}\nMaintainer: Nobody <nobody@test.example>\n"
        );
        for (field, tool) in [("Checksums-Sha256", "sha256sum"), ("Files", "md5sum")] {
            dsc += &format!("{field}:\n");
            for file in [&tar, &debian] {
                let path = self.pool().join(file);
                let sum = String::from_utf8(run(Command::new(tool).arg(&path)).stdout).unwrap();
                let size = std::fs::metadata(&path).unwrap().len();
                dsc += &format!(" {} {size} {file}\n", sum.split(' ').next().unwrap());
            }
        }
        std::fs::write(self.pool().join(format!("{name}_{upstream}-{revision}.dsc")), dsc).unwrap();
    }

    /// Makes and signs the index of all files in the pool.
    pub fn publish(&self) {
        let root = self.root();
        let dists = root.join("dists").join(SUITE);
        for (verb, path) in [("packages", "main/binary-amd64/Packages"), ("sources", "main/source/Sources")] {
            let path = dists.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let list = run(Command::new("apt-ftparchive").args([verb, "pool"]).current_dir(&root));
            std::fs::write(path, list.stdout).unwrap();
        }
        let mut release = Command::new("apt-ftparchive");
        for (field, value) in [
            ("Origin", "Debian"),
            ("Suite", SUITE),
            ("Codename", SUITE),
            ("Components", "main"),
            ("Architectures", "amd64"),
        ] {
            release.args(["-o", &format!("APT::FTPArchive::Release::{field}={value}")]);
        }
        drop(std::fs::remove_file(dists.join("InRelease")));
        let text = run(release.arg("release").arg(&dists)).stdout;
        let plain = self.dir.path().join("Release");
        std::fs::write(&plain, text).unwrap();
        run(self.gpg().arg("--clearsign").arg("--output").arg(dists.join("InRelease")).arg(&plain));
    }

    /// Applies a defect to every file of the pool whose name starts and ends like this.
    pub fn befall(&self, mishap: Mishap, start: &str, end: &str) {
        let mut met = 0;
        for entry in std::fs::read_dir(self.pool()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if !(name.starts_with(start) && name.ends_with(end)) {
                continue;
            }
            met += 1;
            let mut contents = std::fs::read(&path).unwrap();
            match mishap {
                Mishap::Missing => {
                    std::fs::remove_file(&path).unwrap();
                    continue;
                }
                Mishap::HalfThere => contents.truncate(contents.len() / 2),
                Mishap::Damaged => contents[0] ^= 1,
                Mishap::CutOff => std::fs::write(cut_off(&path), "").unwrap(),
            }
            std::fs::write(&path, contents).unwrap();
        }
        assert!(met > 0, "the archive has no file {start}*{end}");
    }

    /// Damages the list of packages, so that it does not match the signed index.
    pub fn spoil_list(&self) {
        let list = self.root().join("dists").join(SUITE).join("main/binary-amd64/Packages");
        let mut contents = std::fs::read(&list).unwrap();
        contents.extend(b"\n\n");
        std::fs::write(list, contents).unwrap();
    }

    pub fn remove_everything(&self) {
        std::fs::remove_dir_all(self.root().join("dists")).unwrap();
        std::fs::remove_dir_all(self.pool()).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("www")
    }

    fn pool(&self) -> PathBuf {
        self.root().join("pool")
    }

    fn gnupg(&self) -> PathBuf {
        self.dir.path().join("gpg")
    }

    fn stop_agent(&self) {
        let mut stop = Command::new("gpgconf");
        drop(stop.args(["--kill", "gpg-agent"]).env("GNUPGHOME", self.gnupg()).output());
    }

    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet"]).env("GNUPGHOME", self.gnupg());
        gpg
    }
}

impl Drop for LocalArchive {
    fn drop(&mut self) {
        self.stop_agent();
    }
}

/// Runs a tool that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}\nhint: tests/scripts/install-deps --tests"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn sha256(path: &Path) -> String {
    files::digest(&mut std::fs::File::open(path).unwrap()).unwrap().0
}

/// The file that marks another as never served to its end.
fn cut_off(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.cut-off", path.display()))
}

/// Serves one connection of apt; it may send several requests before it has the answers.
fn serve(stream: TcpStream, root: &Path, asked: &Mutex<BTreeSet<String>>) {
    let mut writer = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let Some(path) = request.split(' ').nth(1).map(|path| path.trim_start_matches('/').to_owned()) else {
            return;
        };
        if lines.by_ref().take_while(|line| !line.is_empty()).count() == 0 {
            return;
        }
        // apt percent-encodes `+` and `~` of versions.
        let path = path.replace("%2b", "+").replace("%7e", "~");
        let (status, body) = match std::fs::read(root.join(&path)) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        asked.lock().unwrap().insert(path.clone());
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if cut_off(&root.join(&path)).exists() {
            drop(writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body[..body.len() / 2])));
            return;
        }
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            return;
        }
    }
}
