//! Ends a build that exceeds its memory or its number of processes, from a thread that nothing else can
//! block.
//!
//! In a machine the kernel counts exactly (cgroup v2) and enforces the memory limit by itself; this thread
//! reads the result. In a namespace sandbox there may be no usable cgroup: there it adds up the numbers in
//! /proc, many times a second. A build that grows fast can exceed its memory by the amount that it allocates
//! in one interval; see docs/design/guest.md.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use guest::protocol::GuestLimits;

use crate::sys;

/// Time between two checks. A builder fills about 100 MiB in this time.
const INTERVAL: Duration = Duration::from_millis(50);

/// The limit that ended the build, if one did, and the peak of the build's memory at a check. Shared by the
/// watching thread and the reporting one.
#[derive(Default)]
pub struct Verdict {
    out_of_memory: AtomicBool,
    process_limit: AtomicBool,
    /// The peak of all checks, in bytes.
    peak_memory: AtomicU64,
}

impl Verdict {
    pub fn out_of_memory(&self) -> bool {
        self.out_of_memory.load(Ordering::Acquire)
    }

    pub fn process_limit(&self) -> bool {
        self.process_limit.load(Ordering::Acquire)
    }
}

/// The way to measure a build.
pub enum Meter {
    /// The build's cgroup directory, with the pids and memory controllers.
    Cgroup(PathBuf),
    /// All processes in /proc except the guest itself, and these file systems.
    Proc { disks: Vec<PathBuf> },
}

enum Excess {
    Memory,
    Processes,
}

/// Watches until the guest ends, and ends a build that exceeds a limit.
pub fn spawn(meter: Arc<Meter>, limits: GuestLimits, pid: libc::pid_t) -> io::Result<Arc<Verdict>> {
    let verdict = Arc::new(Verdict::default());
    let shared = Arc::clone(&verdict);
    std::thread::Builder::new().name("watch".into()).stack_size(256 * 1024).spawn(move || {
        // Thousands of runnable processes must not keep this thread from the processor. Where the guest has no right to
        // this, as in a namespace sandbox, the scheduler's fairness must suffice.
        let _ = sys::run_before_others();
        loop {
            std::thread::sleep(INTERVAL);
            match meter.excess(&limits, &shared.peak_memory) {
                Some(Excess::Memory) => shared.out_of_memory.store(true, Ordering::Release),
                Some(Excess::Processes) => shared.process_limit.store(true, Ordering::Release),
                None => continue,
            }
            meter.kill(pid);
            return;
        }
    })?;
    Ok(verdict)
}

impl Meter {
    /// Ends the build, of which `first` is the first process.
    pub fn kill(&self, first: libc::pid_t) {
        if let Meter::Cgroup(dir) = self {
            // Kills all processes at once. Killing only the first process would suffice, since the kernel then kills
            // the others. But the first has to be scheduled among all of them before that, and meanwhile they continue
            // to fork.
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
        // Fails only if the process has ended already. Its pid is not used again: the guest starts no other process,
        // and in a machine the kernel assigns pids in turn.
        let _ = sys::kill(first, libc::SIGKILL);
    }

    fn excess(&self, limits: &GuestLimits, peak: &AtomicU64) -> Option<Excess> {
        match self {
            Meter::Cgroup(dir) => {
                if counter(&dir.join("pids.events"), "max") > 0 {
                    return Some(Excess::Processes);
                }
                (oom_kills(dir) > 0).then_some(Excess::Memory)
            }
            Meter::Proc { disks } => proc_excess(disks, limits, peak),
        }
    }

    /// The peak of the build's memory. In a machine the kernel's number (Linux 5.19 and later). Elsewhere the
    /// largest sum of one check, or the largest process, which may have started and ended between two checks.
    pub fn peak_memory(&self, seen: &Verdict) -> Option<u64> {
        match self {
            Meter::Cgroup(dir) => fs::read_to_string(dir.join("memory.peak")).ok()?.trim().parse().ok(),
            Meter::Proc { .. } => Some(seen.peak_memory.load(Ordering::Acquire).max(sys::largest_child())),
        }
    }

    /// Whether the kernel killed a process of the build because of its memory. Exact only in a machine;
    /// called after the end.
    pub fn kernel_killed_for_memory(&self) -> bool {
        match self {
            Meter::Cgroup(dir) => oom_kills(dir) > 0,
            Meter::Proc { .. } => false,
        }
    }

    /// Whether a fork failed because of the limit. Called after the end.
    pub fn kernel_refused_process(&self) -> bool {
        match self {
            Meter::Cgroup(dir) => counter(&dir.join("pids.events"), "max") > 0,
            Meter::Proc { .. } => false,
        }
    }
}

/// Out-of-memory kills of the cgroup and of the whole machine, in which nothing but the build ran.
fn oom_kills(dir: &Path) -> u64 {
    counter(&dir.join("memory.events"), "oom_kill").max(counter(Path::new("/proc/vmstat"), "oom_kill"))
}

/// A number from a file of `name number` lines; 0 if it has no such line.
fn counter(file: &Path, name: &str) -> u64 {
    let Ok(text) = fs::read_to_string(file) else { return 0 };
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn proc_excess(disks: &[PathBuf], limits: &GuestLimits, peak: &AtomicU64) -> Option<Excess> {
    let limit = u64::from(limits.memory_mib) << 20;
    let disk: u64 = disks.iter().filter_map(|d| sys::used_bytes(d).ok()).sum();
    let Ok(pids) = pids() else {
        // Without /proc there are no numbers, and a build that cannot be measured counts as over its limit.
        return Some(Excess::Memory);
    };
    let (mut private, mut threads) = (0u64, 0u64);
    for pid in &pids {
        private += private_bytes(*pid);
        threads += thread_count(*pid);
    }
    if threads > u64::from(limits.processes) {
        return Some(Excess::Processes);
    }
    if private.saturating_add(disk) <= limit {
        peak.fetch_max(private.saturating_add(disk), Ordering::AcqRel);
        return None;
    }
    // This sum counts a shared page once for each process. The exact count is slow, so it comes only now.
    let exact: u64 = pids.iter().map(|pid| proportional_bytes(*pid)).sum();
    let exact = exact.saturating_add(disk);
    peak.fetch_max(exact, Ordering::AcqRel);
    (exact > limit).then_some(Excess::Memory)
}

/// Every visible process except the guest itself.
fn pids() -> io::Result<Vec<u32>> {
    let own = std::process::id();
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .collect())
}

/// Anonymous and shared memory in RAM (proc(5): status). A process that just ended has none.
fn private_bytes(pid: u32) -> u64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    field_kib(&status, "RssAnon:") + field_kib(&status, "RssShmem:")
}

fn proportional_bytes(pid: u32) -> u64 {
    match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(rollup) => field_kib(&rollup, "Pss_Anon:") + field_kib(&rollup, "Pss_Shmem:"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        // A process whose mappings cannot be read counts as if it shared no memory.
        Err(_) => private_bytes(pid),
    }
}

fn field_kib(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

fn thread_count(pid: u32) -> u64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0 };
    // The name, in parentheses, may have any characters; num_threads is the 20th field, the 18th after it.
    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(17)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_and_threads_are_seen_as_the_kernel_counts_them() {
        let me = std::process::id();
        // Hidden from the optimiser, which would remove an allocation that is never read.
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(private_bytes(me) >= block.len() as u64, "{}", private_bytes(me));
        assert!(proportional_bytes(me) >= block.len() as u64);
        assert!(thread_count(me) >= 1);
        drop(std::hint::black_box(block));
    }

    #[test]
    fn a_missing_counter_counts_nothing() {
        assert_eq!(counter(Path::new("/proc/vmstat"), "no_such_counter"), 0);
        assert_eq!(counter(Path::new("/does/not/exist"), "max"), 0);
    }
}
