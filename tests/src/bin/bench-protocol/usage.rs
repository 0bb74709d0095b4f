//! Processor time and memory of a server and its children, read from /proc.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Interval between two readings of memory. Shorter peaks may be missed; a reading takes up to a millisecond.
const GLANCE: Duration = Duration::from_millis(50);
/// Longest time until a server becomes idle after its client left.
const SILENCE: Duration = Duration::from_secs(5);
/// Clock ticks per second in /proc on every known Linux.
const TICKS: f64 = 100.0;

fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("children")));
    let list: String = lists.map(Result::unwrap_or_default).collect();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A process and all its descendants.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(&pid) = all.get(at) {
        at += 1;
        all.extend(children(pid));
    }
    all
}

/// The sum of these fields of /proc/PID/stat (counted as in proc(5)), in seconds.
fn ticks(pid: u32, fields: &[usize]) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold spaces.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let values: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields.iter().filter_map(|f| values.get(f - 3)?.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS
}

/// Seconds of processor time of a family, including its members that have ended.
///
/// Most members were waited for by their parents, which inherit their time. bubblewrap ends without waiting
/// for the processes in its namespace; this process adopts those, see [`adopt_orphans`], and keeps them as
/// zombies to be counted.
pub fn cpu(pid: u32) -> f64 {
    let all = [14, 15, 16, 17];
    let ours: f64 = family(pid).into_iter().map(|pid| ticks(pid, &all)).sum();
    let orphans = children(std::process::id()).into_iter().filter(|pid| is_dead(*pid));
    ours + orphans.map(|pid| ticks(pid, &all)).sum::<f64>()
}

fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// Makes this process the parent of all descendants whose own parent ends.
pub fn adopt_orphans() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("to be a subreaper");
}

/// Runs a client's command, waits for all its remaining processes, writes their processor time in seconds to
/// `report`, and returns the command's exit status. Runs in a process of its own, which `main` starts.
pub fn reap(report: &str, command: &[String]) -> i32 {
    adopt_orphans();
    let mut child = std::process::Command::new(&command[0]).args(&command[1..]).spawn().expect("a client");
    let status = child.wait().expect("a client").code().unwrap_or(1);
    while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
    fs::write(report, ticks(std::process::id(), &[16, 17]).to_string()).expect("a report");
    status
}

/// Memory of a family: everything resident, including code and shared memory, each page counted once, except
/// pages of files below `state`. These are the page cache of its store, which the kernel can take back at any
/// time.
fn memory(pid: u32, state: &Path) -> u64 {
    family(pid).into_iter().map(|pid| proportional(pid, state)).sum()
}

/// Bytes of one process (proc(5): smaps); a page that n processes share counts as an n-th.
fn proportional(pid: u32, state: &Path) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut kib, mut counts) = (0, true);
    for line in maps.lines() {
        match line.strip_prefix("Pss:") {
            Some(size) if counts => {
                kib += size.trim().split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
            Some(_) => {}
            // The first line of a mapping has five fields, and the file if there is one. Other lines begin
            // with a capital.
            None if line.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase()) => {
                counts =
                    !line.split_whitespace().nth(5).is_some_and(|file| Path::new(file).starts_with(state));
            }
            None => {}
        }
    }
    kib * 1024
}

/// Waits until a family is idle.
pub fn settle(pid: u32) {
    let deadline = Instant::now() + SILENCE;
    let mut last = (0.0, 0);
    while Instant::now() < deadline {
        let now = (cpu(pid), family(pid).len());
        if now == last {
            return;
        }
        last = now;
        std::thread::sleep(2 * GLANCE);
    }
}

/// Measures a family's memory until it is stopped.
pub struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(pid: u32, state: PathBuf) -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (theirs, stopped) = (peak.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                theirs.fetch_max(memory(pid, &state), Ordering::Relaxed);
                std::thread::sleep(GLANCE);
            }
        });
        Self { peak, stop, thread: Some(thread) }
    }

    /// The peak, in bytes.
    pub fn peak(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.peak.load(Ordering::Relaxed)
    }
}
