//! cgroup v2 limits of one VM, set by the agent from outside. Absent on hosts without a writable v2 hierarchy.
//!
//! The agent's own cgroup must be delegated to it (systemd: `Delegate=yes`). Since a cgroup with processes cannot
//! have limited children, the agent first moves itself into a child named `agent`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// What a VMM and KVM need beside guest RAM: page tables, buffers, the binary's pages. Generous: running into it
/// kills a build that did nothing wrong.
const OVERHEAD_MIB: u64 = 128;

/// The agent's subtree, ready to hold VMs.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    root: PathBuf,
}

impl Hierarchy {
    /// Why not, if there is none.
    pub fn prepare() -> Result<Hierarchy, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .ok_or("this host has no cgroup v2 hierarchy")?;
        let mut root = Path::new(ROOT).join(own.trim_start_matches('/'));
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))
            .map_err(|e| format!("{}/cgroup.controllers: {e}", root.display()))?;
        for needed in ["memory", "pids"] {
            if !controllers.split_whitespace().any(|c| c == needed) {
                return Err(format!("controller '{needed}' is not delegated to {}", root.display()));
            }
        }
        let step = |what: &Path, e: io::Error| format!("{}: {e}", what.display());
        // The top of the hierarchy may have processes and limited children at once.
        let top = root == Path::new(ROOT);
        if root.file_name().is_some_and(|n| n == "agent") {
            // A second backend of the same agent finds it moved already.
            root.pop();
        } else if !top {
            let agent = root.join("agent");
            fs::create_dir(&agent).or_else(exists).map_err(|e| step(&agent, e))?;
            let procs = agent.join("cgroup.procs");
            // Our own children of before, such as a shell that started us by hand, would keep the cgroup busy.
            let members = fs::read_to_string(root.join("cgroup.procs")).map_err(|e| step(&root, e))?;
            for pid in members.lines() {
                fs::write(&procs, pid).map_err(|e| step(&procs, e))?;
            }
        }
        let subtree = root.join("cgroup.subtree_control");
        fs::write(&subtree, "+memory +pids").map_err(|e| step(&subtree, e))?;
        let hierarchy = Hierarchy { root };
        hierarchy.remove_leftovers();
        Ok(hierarchy)
    }

    /// Cgroups of VMs whose agent was killed. One with a process in it (another agent's) cannot be removed.
    fn remove_leftovers(&self) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("vm-") {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// A cgroup for the VM of process `pid`, with that process in it.
    pub fn place(&self, pid: u32, memory_mib: u64, vcpus: u8) -> io::Result<Group> {
        let path = self.root.join(format!("vm-{pid}"));
        fs::create_dir(&path).or_else(exists)?;
        let group = Group { path };
        let memory = (memory_mib + OVERHEAD_MIB) << 20;
        fs::write(group.path.join("memory.max"), memory.to_string())?;
        // Swapping would make the host's disk hold members' sources. Absent without CONFIG_SWAP.
        let _ = fs::write(group.path.join("memory.swap.max"), "0");
        // vCPUs, the event thread, the main thread, and KVM's own worker.
        fs::write(group.path.join("pids.max"), (u32::from(vcpus) + 8).to_string())?;
        fs::write(group.path.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }
}

fn exists(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) }
}

/// One VM's cgroup; removed on drop, when its process has been reaped.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Whether the host killed the VM for exceeding its memory limit.
    pub fn was_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        events.lines().any(|l| l.strip_prefix("oom_kill ").is_some_and(|n| n.trim() != "0"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir(&self.path) {
            tracing::debug!(path = %self.path.display(), error = %e, "cannot remove a VM's cgroup");
        }
    }
}
