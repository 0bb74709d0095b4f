//! The cgroup of the builder and all its children: it limits their number and their memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys;

/// Least memory that remains for the kernel and the guest when the build has used all of its own.
const RESERVE: u64 = 24 << 20;

/// A cgroup v2 directory. It exists until the machine ends.
pub struct Group(PathBuf);

impl Group {
    pub fn new(processes: u32, memory: u64) -> io::Result<Group> {
        let dir = create("build", memory)?;
        write(&dir.join("pids.max"), &processes.to_string())?;
        // If only a part of the builder were killed, the rest could continue and give a result that depends
        // on chance.
        write(&dir.join("memory.oom.group"), "1")?;
        Ok(Group(dir))
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, pid: libc::pid_t) -> io::Result<()> {
        write(&self.0.join("cgroup.procs"), &pid.to_string())
    }
}

/// Makes a group with this name, which gets this memory except a reserve.
pub fn create(name: &str, memory: u64) -> io::Result<PathBuf> {
    let base = Path::new("/cgroup");
    fs::create_dir_all(base)?;
    sys::mount("cgroup2", base, "cgroup2", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "")?;
    // With the cpu controller the scheduler treats the whole group as one competitor of the guest's and
    // the kernel's threads.
    write(&base.join("cgroup.subtree_control"), "+pids +memory +cpu")?;
    let dir = base.join(name);
    fs::create_dir(&dir)?;
    write(&dir.join("memory.max"), &memory.saturating_sub(RESERVE.max(memory / 32)).to_string())?;
    Ok(dir)
}

pub fn write(file: &Path, text: &str) -> io::Result<()> {
    fs::write(file, text)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot write {text:?} to {}: {e}", file.display())))
}
