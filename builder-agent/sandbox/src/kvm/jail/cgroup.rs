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
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";
/// Memory that a VMM and KVM need beside guest RAM: page tables, buffers, the binary's pages. Generous, because a VM
/// that reaches the limit is killed with a build that did nothing wrong.
const OVERHEAD_MIB: u64 = 128;
const MEMORY_LIMIT: &str = "memory.max";
const CPU_USED: &str = "cpu.stat";
/// The kernel's own period of cpu.max, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// Processors beside the vCPUs: for the thread of devices, guard and passt together. Alone the first never needs more; so only a
/// VM whose vCPUs all work, while its network does as well, is ever slowed down.
const MORE_CPUS: u64 = 1;
/// The child that takes the processes of the chosen cgroup.
const OTHERS: &str = "agent";

/// The subtree that holds VMs.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    root: PathBuf,
    /// Whether VMs have a limit of processor time.
    limits_cpu: bool,
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
        let has = |controller| controllers.split_whitespace().any(|c| c == controller);
        for needed in ["memory", "pids"] {
            if !has(needed) {
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
        // Apart from the others, without which nothing is limited: a host may refuse this one, such as a kernel with
        // CONFIG_RT_GROUP_SCHED that has real-time processes.
        let cpu = match has("cpu") {
            true => fs::write(&subtree, "+cpu").map_err(|e| step(&subtree, e)),
            false => Err(format!("controller 'cpu' is not delegated to {}", root.display())),
        };
        if let Err(why) = &cpu {
            tracing::warn!(why, "micro-VMs have no limit of processor time beside their number of vCPUs");
        }
        let hierarchy = Hierarchy { root, limits_cpu: cpu.is_ok() };
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

    /// A cgroup for the VM of process `pid`, with that process in it. `beside`: processes beside the VMM.
    pub fn place(&self, pid: u32, memory_mib: u64, vcpus: u32, beside: u32) -> io::Result<Group> {
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
        fs::write(group.path.join("pids.max"), (vcpus + beside + 8).to_string())?;
        if self.limits_cpu {
            let quota = (u64::from(vcpus) + MORE_CPUS) * CPU_PERIOD;
            fs::write(group.path.join("cpu.max"), format!("{quota} {CPU_PERIOD}"))?;
        }
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

    /// Processor time of all processes of the VM until now, also of those that have ended.
    pub fn cpu_used(&self) -> Option<Duration> {
        parse_cpu(&fs::read_to_string(self.path.join(CPU_USED)).ok()?)
    }

    /// The same, to be read while the VM runs.
    pub fn cpu_meter(&self) -> io::Result<CpuCount> {
        File::open(self.path.join(CPU_USED)).map(CpuCount)
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

/// The processor time of one VM. It is open, like [`Limit`].
#[derive(Debug)]
pub struct CpuCount(File);

impl CpuCount {
    /// None when the VM is gone.
    pub fn read(&self) -> Option<Duration> {
        let mut text = [0; 1024];
        let n = self.0.read_at(&mut text, 0).ok()?;
        parse_cpu(std::str::from_utf8(&text[..n]).ok()?)
    }
}

/// Of cpu.stat. This line is there with and without the controller `cpu`.
fn parse_cpu(text: &str) -> Option<Duration> {
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    micros.trim().parse().ok().map(Duration::from_micros)
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
        let group = hierarchy.place(42, 512, 2, 2).unwrap();
        assert!(!group.path.starts_with(fake.0.path().join(AGENT)), "{}", group.path.display());
        assert!(group.path.starts_with(fake.0.path().join(BUILDS)));
        assert_eq!(
            fs::read_to_string(group.path.join("memory.max")).unwrap(),
            ((512 + 128) << 20).to_string()
        );
        assert_eq!(fs::read_to_string(group.path.join("cgroup.procs")).unwrap(), "42");
        assert_eq!(fs::read_to_string(group.path.join("pids.max")).unwrap(), "12");
        assert_eq!(fs::read_to_string(group.path.join("cpu.max")).unwrap(), "300000 100000", "2 vCPUs and 1");
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
        // Without a limit of processor time there are all others.
        fs::write(builds.join("cgroup.controllers"), "memory pids").unwrap();
        let group = fake.prepare(AGENT, Some(BUILDS)).unwrap().place(42, 512, 2, 0).unwrap();
        assert!(group.path.join("memory.max").exists() && !group.path.join("cpu.max").exists());
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
        // The kernel adds the two that are written first.
        assert_eq!(fs::read_to_string(own.join("cgroup.subtree_control")).unwrap(), "+cpu");
    }

    /// In the kernel's own hierarchy. Without its controllers there is the count nevertheless.
    #[test]
    fn the_processor_time_of_every_process_counts_also_when_it_has_ended() {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let top = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (top, kind) = (words.nth(1)?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(top))
        });
        let Some(top) = top else {
            return println!("skipped: no cgroup v2 is mounted");
        };
        let path = top.join(format!("vm-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&path) {
            return println!("skipped: {}: {error}", path.display());
        }
        let group = Group { path };
        let meter = group.cpu_meter().unwrap();
        assert_eq!(meter.read(), Some(Duration::ZERO));
        // Two processes, of which the first ends before the second begins.
        let work = "read start; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let mut counts = Vec::new();
        for _ in 0..2 {
            let mut shell = std::process::Command::new("sh")
                .args(["-c", work])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            group.add(shell.id()).unwrap();
            io::Write::write_all(shell.stdin.as_mut().unwrap(), b"\n").unwrap();
            assert!(shell.wait().unwrap().success());
            counts.push(meter.read().unwrap());
        }
        assert!(counts[0] > Duration::from_millis(1) && counts[1] >= counts[0] * 3 / 2, "{counts:?}");
        assert_eq!(group.cpu_used(), Some(counts[1]));
        drop(group);
        assert_eq!(meter.read(), None, "its cgroup is gone");
    }
}
