//! The server that people use today: OpenSSH's sshd and `nix-daemon --stdio` (or `nix-store --serve`) behind
//! it, of the same Debian release as the newest client, on a free port of the loopback interface, its store
//! in memory by default.
//!
//! Everybody logs in as `anyone`, which is another name for root here: this avoids the daemon's socket, and
//! makes everybody a trusted user, which the comparison requires.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::keys::Key;
use crate::{PATIENCE, place, process, suite};

/// Number of build users of the daemon. It kills all processes of these users, in its own process namespace.
const BUILD_USERS: u32 = 8;
const FIRST_BUILD_USER: u32 = 327_000;

/// A running server. Dropping it ends it and removes its store.
pub struct StockServer {
    port: u16,
    child: Child,
    _dir: TempDir,
}

impl StockServer {
    /// Starts a server that admits these keys.
    pub fn start(keys: &[&Key]) -> Self {
        Self::start_in(place::scratch("stock"), keys)
    }

    /// The same with its store in this folder.
    pub fn start_in(dir: TempDir, keys: &[&Key]) -> Self {
        let authorized: Vec<String> = keys.iter().map(|key| key.public.clone()).collect();
        Self::run(dir, &authorized, &[])
    }

    /// A server where this key can fetch this repository, whatever the client asks for: a deploy key of a forge.
    pub fn sharing(repository: &Path, key: &Key) -> Self {
        let git = process::run(Command::new("sh").args(["-c", "command -v git"])).ok().answer().to_owned();
        let command = "PATH=/run/git:/usr/bin GIT_EXEC_PATH=/run/git git upload-pack /run/repository";
        let line = format!("command=\"{command}\" {}", key.public);
        let binds = [(Path::new(&git), "/run/git/git"), (repository, "/run/repository")];
        Self::run(place::scratch("stock"), &[line], &binds)
    }

    /// `binds` are files of this machine, and their names in the server's.
    fn run(dir: TempDir, authorized: &[String], binds: &[(&Path, &str)]) -> Self {
        let tree = suite::tree("stock-server");
        // The daemon's build users must be able to reach files in this folder.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
        let etc = dir.path().join("nix/etc");
        std::fs::create_dir_all(&etc).expect("a folder");
        let put = |name: &str, text: &str| std::fs::write(etc.join(name), text).expect("a file");

        let users: Vec<(String, u32)> =
            (1..=BUILD_USERS).map(|n| (format!("nixbld{n}"), FIRST_BUILD_USER + n)).collect();
        let mut passwd = "root:x:0:0::/root:/bin/sh\nanyone:x:0:0::/root:/bin/sh\n\
            sshd:x:326999:65534::/run/sshd:/usr/sbin/nologin\n"
            .to_owned();
        for (name, uid) in &users {
            passwd.push_str(&format!("{name}:x:{uid}:{FIRST_BUILD_USER}::/:/usr/sbin/nologin\n"));
        }
        put("passwd", &passwd);
        let names: Vec<&str> = users.iter().map(|(name, _)| name.as_str()).collect();
        put(
            "group",
            &format!("root:x:0:\nnogroup:x:65534:\nnixbld:x:{FIRST_BUILD_USER}:{}\n", names.join(",")),
        );
        put(
            "nix.conf",
            "build-users-group = nixbld\nsandbox = true\nsandbox-paths = /bin/sh=/nix/etc/busybox\nsubstituters =\n\
             max-jobs = auto\nexperimental-features = nix-command\n",
        );
        std::fs::copy(place::busybox(), etc.join("busybox")).expect("busybox");
        put("authorized_keys", &(authorized.join("\n") + "\n"));
        let host = Key::new("stock");
        std::fs::copy(host.private(), etc.join("host_key")).expect("a host key");
        std::fs::set_permissions(etc.join("host_key"), std::fs::Permissions::from_mode(0o600))
            .expect("permissions");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        put(
            "sshd_config",
            &format!(
                "ListenAddress 127.0.0.1\nPort {port}\nHostKey /nix/etc/host_key\nPidFile none\nStrictModes no\nUsePAM no\n\
                 AuthorizedKeysFile /nix/etc/authorized_keys\nPermitRootLogin prohibit-password\nUseDNS no\n\
                 MaxStartups 100\nSetEnv NIX_CONF_DIR=/nix/etc\n"
            ),
        );

        let mut command = Command::new("bwrap");
        command.args(["--unshare-pid", "--die-with-parent", "--cap-add", "ALL", "--clearenv"]);
        command.args(["--setenv", "PATH", "/usr/bin:/usr/sbin"]);
        command.arg("--ro-bind").arg(&tree).arg("/");
        command.args([
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
            "--tmpfs",
            "/run",
            "--dir",
            "/run/sshd",
        ]);
        command.args(["--tmpfs", "/root", "--tmpfs", "/var/tmp"]);
        command.arg("--bind").arg(dir.path().join("nix")).arg("/nix");
        for (from, to) in binds {
            command.arg("--ro-bind").arg(from).arg(to);
        }
        for name in ["passwd", "group"] {
            command.arg("--ro-bind").arg(etc.join(name)).arg(format!("/etc/{name}"));
        }
        command.args(["--", "/usr/sbin/sshd", "-D", "-f", "/nix/etc/sshd_config", "-E", "/nix/etc/sshd.log"]);
        let child = command.stdin(Stdio::null()).spawn().expect("bwrap");
        let server = Self { port, child, _dir: dir };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the stock sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process from which all others descend.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for StockServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
