//! The bubblewrap command line: what the builder sees, top to bottom. Later entries are mounted over earlier ones.

use std::ffi::OsString;
use std::fs;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::job::{Limits, SandboxError};

/// Something of the host's that is shown inside, read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub host: PathBuf,
    pub inside: String,
}

/// A symlink in the root of the store: shown as itself, because a bind mount would follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub target: PathBuf,
    pub inside: String,
}

/// What the inside is made of.
#[derive(Debug)]
pub struct View {
    pub shown: Vec<Shown>,
    pub links: Vec<Link>,
    /// A directory with the files of /etc.
    pub etc: PathBuf,
    /// The guest's program.
    pub guest: PathBuf,
    /// The program that is /bin/sh.
    pub shell: PathBuf,
}

impl View {
    /// Sorts the inputs into what can be bound and what must be recreated.
    pub fn new(
        trees: &[(String, PathBuf)],
        etc: PathBuf,
        guest: PathBuf,
        shell: PathBuf,
    ) -> Result<View, SandboxError> {
        let mut view = View { shown: Vec::with_capacity(trees.len()), links: Vec::new(), etc, guest, shell };
        for (inside, host) in trees {
            let cannot =
                |e| SandboxError::Setup { why: format!("input {inside} at {}: {e}", host.display()) };
            if fs::symlink_metadata(host).map_err(cannot)?.is_symlink() {
                let target = fs::read_link(host).map_err(cannot)?;
                view.links.push(Link { target, inside: inside.clone() });
            } else {
                view.shown.push(Shown { host: host.clone(), inside: inside.clone() });
            }
        }
        Ok(view)
    }

    /// Every path of the host's that bubblewrap will look up.
    pub fn sources(&mut self) -> Vec<&mut PathBuf> {
        let fixed = [&mut self.etc, &mut self.guest, &mut self.shell];
        fixed.into_iter().chain(self.shown.iter_mut().map(|s| &mut s.host)).collect()
    }

    /// Everything after the program's name. `stream` and `info` are the numbers of inherited descriptors.
    pub fn arguments(&self, limits: &Limits, stream: RawFd, info: RawFd) -> Vec<OsString> {
        // Half of the memory each: one full disk is "no space left", and only two full ones are out of memory.
        let disk = (u64::from(limits.memory_mib) << 19).to_string();
        let mut args = Args::default();
        args.add(["--unshare-all", "--uid", "1000", "--gid", "100"]);
        // For the guest, inside its user namespace; the builder gets none. With it goes a reaper of bubblewrap's own.
        args.add(["--cap-add", "ALL", "--as-pid-1"]);
        args.add(["--die-with-parent", "--new-session", "--clearenv", "--hostname", "localhost"]);
        args.add(["--info-fd", &info.to_string()]);

        args.add(["--perms", "1775", "--size", &disk, "--tmpfs", "/nix/store"]);
        for Shown { host, inside } in &self.shown {
            args.add(["--ro-bind"]);
            args.0.push(host.into());
            args.add([inside]);
        }
        for Link { target, inside } in &self.links {
            args.add(["--symlink"]);
            args.0.push(target.into());
            args.add([inside]);
        }
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
        args.add(["--", "/.guest/guest", "--stream-fd", &stream.to_string()]);
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
