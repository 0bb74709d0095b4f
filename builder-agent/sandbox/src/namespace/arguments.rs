//! The bubblewrap command line: the builder's file system and namespaces, from top to bottom. Later entries are mounted over earlier ones.
//!
//! Not here: `/nix/store`, which `stage` makes and the guest puts in its place.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// The host's files that the builder sees, apart from the store.
#[derive(Debug)]
pub struct View {
    /// A directory with the files for /etc.
    pub etc: PathBuf,
    /// The guest's program.
    pub guest: PathBuf,
    /// The program that is /bin/sh.
    pub shell: PathBuf,
}

/// Numbers of the descriptors that bubblewrap inherits.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    /// The guest's end of the conversation.
    pub stream: RawFd,
    /// Pipe on which bubblewrap reports the pid of its child.
    pub info: RawFd,
    /// The tree of `/nix/store`.
    pub store: RawFd,
}

/// Size of each of the writable file systems, in bytes.
///
/// Half of the memory each: if one is full, the builder gets "no space left"; only two full ones exhaust the
/// memory.
pub fn disk(memory_mib: u32) -> u64 {
    u64::from(memory_mib) << 19
}

impl View {
    /// All paths of the host that bubblewrap will look up.
    pub fn sources(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.etc, &mut self.guest, &mut self.shell]
    }

    /// All arguments after the program's name.
    pub fn arguments(&self, memory_mib: u32, inherited: Inherited) -> Vec<OsString> {
        let disk = disk(memory_mib).to_string();
        let mut args = Args::default();
        // Each namespace by name: `--unshare-all` silently omits those that it cannot create.
        args.add(["--unshare-user", "--unshare-ipc", "--unshare-pid"]);
        args.add(["--unshare-net", "--unshare-uts", "--unshare-cgroup"]);
        args.add(["--uid", "1000", "--gid", "100"]);
        // For the guest, inside its user namespace; the builder gets none. `--as-pid-1` omits bubblewrap's
        // own init process.
        args.add(["--cap-add", "ALL", "--as-pid-1"]);
        args.add(["--die-with-parent", "--new-session", "--clearenv", "--hostname", "localhost"]);
        args.add(["--info-fd", &inherited.info.to_string()]);

        args.add(["--dir", "/nix/store"]);
        args.add(["--perms", "0700", "--size", &disk, "--tmpfs", "/build"]);
        args.add(["--perms", "1777", "--size", &disk, "--tmpfs", "/tmp"]);
        args.add(["--proc", "/proc", "--dev", "/dev"]);
        args.add(["--perms", "1777", "--size", &disk, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]);
        for (host, inside) in [(&self.etc, "/etc"), (&self.shell, "/bin/sh"), (&self.guest, "/.guest/guest")]
        {
            args.add(["--ro-bind"]);
            args.0.push(host.into());
            args.add([inside]);
        }
        args.add(["--remount-ro", "/", "--chdir", "/build"]);
        let (stream, store) = (inherited.stream.to_string(), inherited.store.to_string());
        args.add(["--", "/.guest/guest", "--stream-fd", &stream, "--store-fd", &store]);
        args.0
    }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn add<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.iter().map(OsString::from));
    }
}
