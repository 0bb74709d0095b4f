//! The real kernel of this host and Debian's sshd, in namespaces of a test's own. What needs a micro-VM is left out: the
//! closure's device, cgroups and vsock.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

const MEMORY: u64 = 256 << 20;

/// The folder of a test, set in a process that is in namespaces of its own.
const INSIDE: &str = "BARNRAISER_TEST_OF_A_HOME";

/// In a process in namespaces of its own: the folder of the test. Its file systems are gone with the process.
pub fn inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// Whether the test can run here. If not, it says why.
pub fn can_run(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| !Path::new(program).exists());
    match missing {
        _ if !rustix::process::geteuid().is_root() => eprintln!("skipped: mounting images needs root"),
        Some(program) => eprintln!("skipped: {program} is missing"),
        None => return true,
    }
    false
}

/// An empty folder in memory.
pub fn folder(test: &str) -> PathBuf {
    let folder = PathBuf::from(format!("/dev/shm/barnraiser-home-{test}-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    folder
}

/// The named test of this crate again, in new namespaces, where it is PID 1.
pub fn again(test: &str, folder: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, folder);
    command
}

/// Runs the named test in new namespaces to its end.
pub fn run_again(test: &str) {
    let folder = folder(test.rsplit("::").next().unwrap());
    let output = again(test, &folder).output().unwrap();
    let _ = fs::remove_dir_all(&folder);
    let text = text(&output);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn home(user: &str) -> Home {
    Home {
        user: user.into(),
        hostname: "home-of-ada".into(),
        network: None,
        ssh_host_key: "host key".into(),
        authorized_key: "ssh-ed25519 AAAA ada\n".into(),
        etc: Vec::new(),
        processes: 100,
        greeting: "Welcome.\n".into(),
    }
}

/// A small image: users as Debian has them, and a skeleton.
fn image(folder: &Path) -> PathBuf {
    let image = folder.join("image");
    let etc = image.join("etc");
    fs::create_dir_all(etc.join("skel/.config/tmux")).unwrap();
    fs::write(
        etc.join("passwd"),
        "root:x:0:0:root:/root:/bin/bash\ngames:x:5:60:games:/usr/games:/bin/false\nold:x:1000:1000::/:/bin/sh\n",
    )
    .unwrap();
    fs::write(etc.join("shadow"), "root:*:1:0:99999:7:::\ngames:*:1:0:99999:7:::\n").unwrap();
    fs::set_permissions(etc.join("shadow"), Permissions::from_mode(0o640)).unwrap();
    fs::write(etc.join("group"), "root:x:0:\ngames:x:60:\n").unwrap();
    fs::write(etc.join("motd"), "Debian\n").unwrap();
    fs::write(etc.join("skel/.bashrc"), "alias ll='ls -l'\n").unwrap();
    fs::write(etc.join("skel/.config/tmux/tmux.conf"), "").unwrap();
    symlink(".bashrc", etc.join("skel/.bash_profile")).unwrap();
    image
}

/// What a member of the home gets for this command; the root of the home is not its root.
fn as_member(command: &str) -> Output {
    let ids = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    Command::new("setpriv").args(ids).args(["sh", "-c", command]).output().unwrap()
}

#[test]
fn a_member_finds_an_account_and_writes_where_members_write() {
    let Some(folder) = inside() else {
        if can_run(&[]) {
            run_again("machine::home::tests::a_member_finds_an_account_and_writes_where_members_write");
        }
        return;
    };
    let root = root::build(&image(&folder), &folder, MEMORY).unwrap();
    // A user of Debian that nobody is.
    account::create(&home("games"), &root).unwrap();
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let is_of = |name: &str| {
        fs::symlink_metadata(root.join(name)).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).unwrap()
    };

    assert_eq!(
        read("etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\ngames:x:1000:1000:games:/home/games:/bin/bash\n"
    );
    assert_eq!(read("etc/shadow"), "root:*:1:0:99999:7:::\ngames:*:::::::\n");
    assert_eq!(is_of("etc/shadow"), (0, 0, 0o640));
    assert_eq!(read("etc/group"), "root:x:0:\ngames:x:1000:\n");
    assert_eq!([read("etc/motd"), read("etc/hostname")], ["Welcome.\n", "home-of-ada\n"]);
    assert!(read("etc/hosts").contains("\n127.0.1.1 home-of-ada\n"));
    assert_eq!(is_of("home/games"), (1000, 1000, 0o700));
    assert_eq!(read("home/games/.bashrc"), "alias ll='ls -l'\n");
    for name in [".bashrc", ".bash_profile", ".config", ".config/tmux", ".config/tmux/tmux.conf"] {
        let (user, group, _) = is_of(&format!("home/games/{name}"));
        assert_eq!((user, group), (1000, 1000), "{name}");
    }
    assert_eq!(is_of("run/home/ssh_host_key"), (0, 0, 0o600));
    assert_eq!(is_of("run/home/authorized_keys"), (0, 0, 0o644));
    assert_eq!(read("run/home/ssh_host_key"), "host key\n");
    assert_eq!(read("run/home/authorized_keys"), "ssh-ed25519 AAAA ada\n");
    assert_eq!(is_of("nix/store"), (0, 0, 0o1775));
    assert_eq!(is_of("nix/var/nix/daemon-socket"), (1000, 1000, 0o755));
    assert_eq!(is_of("nix/var/nix/profiles/per-user/games"), (1000, 1000, 0o755));

    let place = root.display();
    for open in [
        "tmp",
        "var/tmp",
        "dev/shm",
        "home/games",
        "nix/var/nix/daemon-socket",
        "nix/var/nix/gcroots/per-user/games",
    ] {
        let output = as_member(&format!("echo x > {place}/{open}/x && rm {place}/{open}/x"));
        assert!(output.status.success(), "{open}: {}", text(&output));
    }
    for closed in
        ["", "nix", "nix/store", "nix/var/nix", "etc", "usr", "run", "run/home", "dev", "home", "sys/kernel"]
    {
        let output = as_member(&format!("echo x > {place}/{closed}/x"));
        assert!(!output.status.success(), "{closed}: {}", text(&output));
    }
    assert!(!as_member(&format!("cat {place}/run/home/ssh_host_key")).status.success());
    let devices = as_member(&format!(
        "cat {place}/dev/zero | head -c 3; : > {place}/dev/null; ls {place}/dev/pts/ptmx"
    ));
    assert!(devices.status.success() && devices.stdout.starts_with(&[0; 3]), "{}", text(&devices));
    // The image is as it was.
    assert_eq!(fs::read_to_string(folder.join("image/etc/motd")).unwrap(), "Debian\n");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let of_home = mounts.lines().filter(|line| line.contains(&format!(" {place}")));
    for line in of_home.inspect(|line| assert!(line.contains("nosuid"), "{line}")) {
        assert!(line.contains("nodev") || line.contains("/dev"), "{line}");
    }
}

#[test]
fn names_that_are_no_users_or_of_the_system_are_refused() {
    let nowhere = Path::new("/nowhere");
    for user in ["", "-x", "a:b", "a/b", "..", "0day", "a\nb", "root", "sshd", "nobody", "ä", &"a".repeat(33)]
    {
        let error = account::create(&home(user), nowhere).unwrap_err().to_string();
        assert!(error.contains(&format!("{user:?} is ")), "{error}");
    }
    let other = account::create(&home("Ada.L_1-x"), nowhere).unwrap_err().to_string();
    assert!(other.starts_with("cannot write /nowhere/etc/passwd: "), "{other}");
}

#[test]
fn only_streams_at_the_ports_for_sshds_are_opened() {
    let dir = folder("ports");
    let group = Arc::new(File::create(dir.join("procs")).unwrap());
    let sshds = Sshds::new(group, dir.join("log")).unwrap();
    for port in [0, 22, 1024, 1089] {
        let error = open(&sshds, port).unwrap_err().to_string();
        assert_eq!(error, format!("port {port} is none of those for sshds"));
    }
    fs::remove_dir_all(&dir).unwrap();
}

const SSHD_TEST: &str = "machine::home::tests::a_member_is_at_home_behind_an_sshd_of_their_own";

/// A home over the file system of this machine, in namespaces. Each connection to its port gets an sshd.
struct Server {
    process: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    fn start() -> Server {
        let folder = folder("sshd");
        for key in ["host", "member"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(key))
                .status()
                .unwrap();
            assert!(made.success());
        }
        let mut process = again(SSHD_TEST, &folder).stdout(Stdio::piped()).spawn().unwrap();
        let (mut said, mut output) = (String::new(), process.stdout.take().unwrap());
        let port = loop {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "the home does not start: {said}");
            said.push(char::from(byte[0]));
            if let Some((_, port)) = said.strip_suffix('\n').and_then(|said| said.rsplit_once("port ")) {
                break port.parse().unwrap();
            }
        };
        Server { process, port, folder }
    }

    /// The ssh of a member.
    fn ssh(&self, options: &[&str], command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "LogLevel=ERROR",
        ])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-i"])
        .arg(self.folder.join("member"))
        .args(["-p", &self.port.to_string()])
        .args(options)
        .args(["ada@127.0.0.1", command])
        .stdin(Stdio::null());
        ssh
    }

    fn run(&self, command: &str) -> String {
        let output = self.ssh(&[], command).output().unwrap();
        let text = text(&output);
        assert!(output.status.success(), "{command}: {text}\nlog: {}", self.log());
        text
    }

    /// The end of the log of the sshds.
    fn log(&self) -> String {
        let log = fs::read_to_string(format!("/proc/{}/root/run/home/sshd.log", self.first_process()));
        log.unwrap_or_default().lines().rev().take(5).collect::<Vec<_>>().join("; ")
    }

    /// The process that is PID 1 there: the child of `unshare`.
    fn first_process(&self) -> u32 {
        let path = format!("/proc/{0}/task/{0}/children", self.process.id());
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The image of homes, if it was built (`netboot-image home`). Otherwise this machine's own file system has to do.
fn built_image() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/home/home.erofs");
    built.exists().then_some(built)
}

/// The home, as PID 1 of its namespaces. It ends when it is killed.
fn serve_home(folder: &Path) -> ! {
    let lower = match built_image() {
        Some(image) => {
            let lower = folder.join("lower");
            fs::create_dir(&lower).unwrap();
            let mounted =
                Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(&lower).status();
            assert!(mounted.unwrap().success());
            lower
        }
        None => PathBuf::from("/"),
    };
    let root = root::build(&lower, folder, MEMORY).unwrap();
    let [host, member] = ["host", "member.pub"].map(|key| fs::read_to_string(folder.join(key)).unwrap());
    account::create(&Home { ssh_host_key: host, authorized_key: member, ..home("ada") }, &root).unwrap();
    if lower == Path::new("/") {
        // What that of the image says about keys; its algorithms are those of a newer sshd.
        let config = "HostKey /run/home/ssh_host_key\nAuthorizedKeysFile /run/home/authorized_keys\nUsePAM no\n\
                      StreamLocalBindUnlink yes\nPrintMotd no\nPrintLastLog no\n";
        fs::write(root.join("etc/ssh/sshd_config"), config).unwrap();
    }
    sys::set_host_name("home-of-ada", "(none)").unwrap();
    let group = Arc::new(File::create(folder.join("group")).unwrap());
    enter(&root).unwrap();

    let sshds = Sshds::new(group, Path::new("/").join(account::LOG)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("port {}", listener.local_addr().unwrap().port());
    loop {
        let (client, _) = listener.accept().unwrap();
        // As in a home, sshd's stream has no address.
        let (near, far) = UnixStream::pair().unwrap();
        sshds.start(OwnedFd::from(far)).unwrap();
        let (other_client, other_near) = (client.try_clone().unwrap(), near.try_clone().unwrap());
        std::thread::spawn(move || relay(client, near));
        std::thread::spawn(move || {
            let (mut from, mut to): (UnixStream, TcpStream) = (other_near, other_client);
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

fn relay(mut from: TcpStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn a_member_is_at_home_behind_an_sshd_of_their_own() {
    if let Some(folder) = inside() {
        serve_home(&folder);
    }
    let sshd = if built_image().is_some() { "/dev/loop-control" } else { "/usr/sbin/sshd" };
    if !Path::new(sshd).exists() {
        eprintln!(
            "hint: an sshd is in the image of homes (tests/scripts/build --image), or in openssh-server"
        );
    }
    if !can_run(&[sshd, "/usr/bin/ssh", "/usr/bin/curl"]) {
        return;
    }
    let server = Server::start();
    let answer = server.run("echo $USER $HOME $PWD $SHELL; id -u; id -g; id -G; uname -n");
    assert_eq!(answer, "ada /home/ada /home/ada /bin/bash\n1000\n1000\n1000\nhome-of-ada\n");
    // Nobody becomes root, and no program of the image helps with it.
    assert_eq!(
        server.run("grep -h -e ^CapEff -e ^NoNewPrivs /proc/self/status"),
        "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n"
    );
    // It is no chroot: the kernel lets a member make namespaces.
    if fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").is_ok_and(|may| may.trim() == "0") {
        eprintln!("skipped: this kernel lets no user make user namespaces");
    } else {
        assert_eq!(server.run("unshare --user --map-root-user --mount id -u"), "0\n");
    }
    assert_eq!(server.run("umask"), "0022\n");

    // A terminal of the member's own.
    let output = server.ssh(&["-tt"], "tty; stat -c '%U %g %a' $(tty)").output().unwrap();
    assert_eq!(text(&output).replace('\r', ""), "/dev/pts/0\nada 5 620\n");

    // The socket of the daemon leads to the client.
    let socket = server.folder.join("daemon");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let forward = format!("/nix/var/nix/daemon-socket/socket:{}", socket.display());
    let curl = "curl -s --http0.9 --unix-socket /nix/var/nix/daemon-socket/socket http://box/";
    let nix = server.ssh(&["-R", &forward, "-o", "ExitOnForwardFailure=yes"], curl);
    let client = { nix }.stdout(Stdio::piped()).spawn().unwrap();
    listener.accept().unwrap().0.write_all(b"hello from the box\n").unwrap();
    assert_eq!(String::from_utf8_lossy(&client.wait_with_output().unwrap().stdout), "hello from the box\n");

    // Each connection has an sshd. What a session leaves behind stays, and is taken in when it ends.
    server.run("setsid sleep 0.3 > /dev/null 2>&1 < /dev/null & exit 0");
    let deadline = Instant::now() + Duration::from_secs(60);
    // Those that have ended and are children of PID 1, and the one that will be.
    let waiting = "ps -e -o stat=,ppid=,comm= | grep -E '^Z[^ ]* +1 |sleep$' || true";
    while let rest = server.run(waiting)
        && !rest.is_empty()
    {
        assert!(Instant::now() < deadline, "processes that have ended are not taken in: {rest}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let sleeping: Vec<_> = (0..3)
        .map(|_| server.ssh(&[], "echo here; exec sleep 60").stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    for mut client in sleeping {
        let mut word = [0; 5];
        client.stdout.take().unwrap().read_exact(&mut word).unwrap();
        assert_eq!(&word, b"here\n");
        client.kill().unwrap();
        client.wait().unwrap();
    }
    // An sshd that was told nothing sensible has gone as well, and the next member comes in.
    let mut nonsense = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = nonsense.read_to_end(&mut Vec::new());
    assert_eq!(server.run("echo still here"), "still here\n");
}
