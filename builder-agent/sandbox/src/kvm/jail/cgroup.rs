//! cgroup v2 limits of one VM, set by the agent from outside.
//!
//! VMs have a cgroup that was delegated for them (`sandbox.cgroup`; in the image, that of `barnraiser-builds.service`),
//! beside the agent's and not below it: the agent has a memory limit of its own, which VMs would use up. Where none is
//! configured, VMs go below the agent's own cgroup, as long as that has no limit. A cgroup with processes cannot have
//! limited children, so the processes of the chosen one first move into a child of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// Memory that a VMM and KVM need beside guest RAM: page tables, buffers, the binary's pages. Generous, because a VM
/// that reaches the limit is killed with a build that did nothing wrong.
const OVERHEAD_MIB: u64 = 128;
const MEMORY_LIMIT: &str = "memory.max";
/// The child that takes the processes of the chosen cgroup.
const OTHERS: &str = "agent";

/// The subtree that holds VMs.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    root: PathBuf,
}

impl Hierarchy {
    /// `chosen`: the cgroup for VMs, as a path below /sys/fs/cgroup. The error says why VMs have no cgroup.
    pub fn prepare(chosen: Option<&Path>) -> Result<Hierarchy, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
        Self::below(Path::new(ROOT), &own, chosen)
    }

    /// `top` is the mounted hierarchy, `own` the contents of /proc/self/cgroup.
    fn below(top: &Path, own: &str, chosen: Option<&Path>) -> Result<Hierarchy, String> {
        let step = |what: &Path, e: io::Error| format!("{}: {e}", what.display());
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .ok_or("this host has no cgroup v2 hierarchy")?;
        let mut own = top.join(own.trim_start_matches('/'));
        // A second backend of the same agent finds the agent in that child already.
        if own.file_name().is_some_and(|name| name == OTHERS) {
            own.pop();
        }
        let root = chosen.unwrap_or(&own).to_owned();
        if chosen.is_some() {
            // systemd may take the cgroup of a unit without processes away.
            fs::create_dir_all(&root).map_err(|e| step(&root, e))?;
        }
        Self::apart_from_the_agent(&root, &own)?;
        let controllers = root.join("cgroup.controllers");
        let controllers = fs::read_to_string(&controllers).map_err(|e| step(&controllers, e))?;
        for needed in ["memory", "pids"] {
            if !controllers.split_whitespace().any(|c| c == needed) {
                return Err(format!("controller '{needed}' is not delegated to {}", root.display()));
            }
        }
        // The top of the hierarchy may have processes and limited children at once.
        if root != top {
            let others = root.join(OTHERS);
            fs::create_dir(&others).or_else(exists).map_err(|e| step(&others, e))?;
            let procs = others.join("cgroup.procs");
            // Other processes of our cgroup, such as a shell that started the agent by hand, would keep it
            // busy.
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

    /// VMs below a cgroup that limits the agent would use up the agent's memory, and the kernel would kill the agent.
    fn apart_from_the_agent(root: &Path, own: &Path) -> Result<(), String> {
        let limited = |cgroup: &Path| {
            ["memory.max", "memory.high"].into_iter().any(|name| {
                // The top of the hierarchy has no such file.
                fs::read_to_string(cgroup.join(name)).is_ok_and(|limit| limit.trim() != "max")
            })
        };
        if root.starts_with(own) && limited(own) {
            return Err(format!(
                "{} is the agent's own cgroup or below it, and that has a memory limit, which VMs would share; set \
                 `sandbox.cgroup` to another",
                root.display()
            ));
        }
        Ok(())
    }

    /// Removes cgroups of VMs whose agent was killed. A cgroup with a process in it (another agent's) cannot
    /// be removed.
    fn remove_leftovers(&self) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("vm-") {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// A cgroup for the VM of process `pid`, with that process in it. `processes`: vCPUs, and processes beside the VMM.
    pub fn place(&self, pid: u32, memory_mib: u64, processes: u32) -> io::Result<Group> {
        let path = self.root.join(format!("vm-{pid}"));
        fs::create_dir(&path).or_else(exists)?;
        let group = Group { path };
        let memory = (memory_mib + OVERHEAD_MIB) << 20;
        fs::write(group.path.join(MEMORY_LIMIT), memory.to_string())?;
        // Swapping would make the host's disk hold members' sources. Absent where the kernel cannot swap.
        match fs::write(group.path.join("memory.swap.max"), "0") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Beside vCPUs: the event thread, that of additions, the main thread, and KVM's own worker.
        fs::write(group.path.join("pids.max"), (processes + 8).to_string())?;
        group.add(pid)?;
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
    /// Puts another process, and those that it starts from now on, into it.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// The cgroup of a VM that another program has started.
    pub fn taken_over(path: PathBuf) -> Group {
        Group { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its memory limit, to be raised while the VM runs.
    pub fn limit(&self) -> io::Result<Limit> {
        let mut file = File::options().read(true).write(true).open(self.path.join(MEMORY_LIMIT))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let bytes = text.trim().parse().map_err(io::Error::other)?;
        Ok(Limit { file, bytes })
    }

    /// The most memory that the VM had at one time. None before Linux 5.19.
    pub fn peak_memory(&self) -> Option<u64> {
        fs::read_to_string(self.path.join("memory.peak")).ok()?.trim().parse().ok()
    }

    /// Whether the host killed the VM for exceeding its memory limit.
    pub fn was_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        events.lines().any(|l| l.strip_prefix("oom_kill ").is_some_and(|n| n.trim() != "0"))
    }
}

/// The memory limit of one VM. It is open, so it is never another VM's: a cgroup of the same name is another file.
#[derive(Debug)]
pub struct Limit {
    file: File,
    /// When the VM was started.
    bytes: u64,
}

impl Limit {
    /// Makes the limit that of the start and so many bytes `more`.
    pub fn allow(&self, more: u64) -> io::Result<()> {
        self.file.write_all_at(self.bytes.saturating_add(more).to_string().as_bytes(), 0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir(&self.path) {
            tracing::debug!(path = %self.path.display(), error = %e, "cannot remove a VM's cgroup");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy with the kernel's layout, made of plain files.
    struct Fake(tempdir::Dir);

    impl Fake {
        fn new(cgroups: &[(&str, &str)]) -> Fake {
            let fake = Fake(tempdir::Dir::new());
            for (path, limit) in cgroups {
                fake.cgroup(path, limit);
            }
            fake
        }

        fn cgroup(&self, path: &str, limit: &str) {
            let dir = self.0.path().join(path);
            fs::create_dir_all(&dir).unwrap();
            for (name, contents) in
                [("cgroup.controllers", "cpu memory pids"), ("cgroup.procs", ""), ("memory.max", limit)]
            {
                fs::write(dir.join(name), contents).unwrap();
            }
        }

        fn prepare(&self, own: &str, chosen: Option<&str>) -> Result<Hierarchy, String> {
            let chosen = chosen.map(|path| self.0.path().join(path));
            Hierarchy::below(self.0.path(), &format!("0::/{own}\n"), chosen.as_deref())
        }
    }

    mod tempdir {
        use std::path::{Path, PathBuf};
        use std::sync::atomic::{AtomicU32, Ordering};

        static NEXT: AtomicU32 = AtomicU32::new(0);

        pub struct Dir(PathBuf);

        impl Dir {
            pub fn new() -> Dir {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let path = std::env::temp_dir().join(format!("cgroup-test-{}-{number}", std::process::id()));
                std::fs::create_dir_all(&path).unwrap();
                Dir(path)
            }

            pub fn path(&self) -> &Path {
                &self.0
            }
        }

        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    const AGENT: &str = "system.slice/builder-agent.service";
    const BUILDS: &str = "builds.slice/barnraiser-builds.service";

    #[test]
    fn the_cgroup_of_a_vm_is_not_below_the_agents_limited_one() {
        let fake = Fake::new(&[(AGENT, "4294967296"), (BUILDS, "max")]);
        let hierarchy = fake.prepare(AGENT, Some(BUILDS)).unwrap();
        let group = hierarchy.place(42, 512, 2).unwrap();
        assert!(!group.path.starts_with(fake.0.path().join(AGENT)), "{}", group.path.display());
        assert!(group.path.starts_with(fake.0.path().join(BUILDS)));
        assert_eq!(
            fs::read_to_string(group.path.join("memory.max")).unwrap(),
            ((512 + 128) << 20).to_string()
        );
        assert_eq!(fs::read_to_string(group.path.join("cgroup.procs")).unwrap(), "42");
        // A VM with a growing disk may have more, always counted from the start.
        let limit = group.limit().unwrap();
        for more in [4096, 1 << 30] {
            limit.allow(more).unwrap();
            let now = fs::read_to_string(group.path.join("memory.max")).unwrap();
            assert_eq!(now, ((640 << 20) + more).to_string());
        }
        assert_eq!(group.peak_memory(), None);
        fs::write(group.path.join("memory.peak"), "12345678\n").unwrap();
        assert_eq!(group.peak_memory(), Some(12_345_678));

        for chosen in [None, Some(AGENT), Some("system.slice/builder-agent.service/vms")] {
            let why = fake.prepare(AGENT, chosen).unwrap_err();
            assert!(why.contains("has a memory limit") && why.contains("sandbox.cgroup"), "{why}");
        }
    }

    #[test]
    fn an_agent_without_a_limit_may_keep_vms_below_itself() {
        let fake = Fake::new(&[(AGENT, "max"), ("system.slice/builder-agent.service/agent", "max")]);
        for own in [AGENT, "system.slice/builder-agent.service/agent"] {
            assert_eq!(fake.prepare(own, None).unwrap().root, fake.0.path().join(AGENT));
        }
    }

    #[test]
    fn a_cgroup_without_the_controllers_is_none() {
        let fake = Fake::new(&[(AGENT, "max"), (BUILDS, "max")]);
        let builds = fake.0.path().join(BUILDS);
        fs::write(builds.join("cgroup.controllers"), "cpu pids").unwrap();
        let why = fake.prepare(AGENT, Some(BUILDS)).unwrap_err();
        assert!(why.contains("controller 'memory' is not delegated"), "{why}");
        let why = Hierarchy::below(fake.0.path(), "4:memory:/x\n", None).unwrap_err();
        assert!(why.contains("no cgroup v2"), "{why}");
    }

    #[test]
    fn what_is_in_the_chosen_cgroup_moves_aside() {
        let fake = Fake::new(&[(AGENT, "max")]);
        let own = fake.0.path().join(AGENT);
        fs::write(own.join("cgroup.procs"), "17\n").unwrap();
        fake.prepare(AGENT, None).unwrap();
        assert_eq!(fs::read_to_string(own.join("agent/cgroup.procs")).unwrap(), "17");
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+memory +pids");
    }
}
