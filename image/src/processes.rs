//! Processes that outlive the command that started them: identifies them, and ends exactly those.

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Time for a process to end after SIGTERM, before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process by its id and its start time: ids are used again, the pair is not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// Start time in clock ticks after boot, field 22 of /proc/PID/stat.
    started: u64,
}

impl Process {
    /// A child that was just spawned and not waited for yet.
    pub fn of(child: &std::process::Child) -> Option<Self> {
        let pid = i32::try_from(child.id()).ok()?;
        Some(Self { pid, started: start_time(pid)? })
    }

    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends SIGTERM, and later SIGKILL. Does nothing if the process is gone or another process has its id by
    /// now.
    pub fn stop(&self) {
        let deadline = Instant::now() + PATIENCE;
        for signal in [Signal::TERM, Signal::KILL] {
            if !self.is_alive() {
                return;
            }
            let Some(pid) = Pid::from_raw(self.pid) else { return };
            // Fails only if the process has ended since the check.
            let _ = kill_process(pid, signal);
            while self.is_alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// None for a process that is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The name is in parentheses and may itself contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(stat), Some(4242));
        assert_eq!(parse_stat(&stat.replace(") S", ") Z")), None);
    }

    #[test]
    fn stopping_ends_the_process_and_only_that_one() {
        let mut ours = Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::of(&ours).unwrap();
        let reused = Process { started: process.started + 1, ..process.clone() };
        reused.stop();
        assert!(process.is_alive());
        process.stop();
        assert!(!process.is_alive());
        ours.wait().unwrap();
    }
}
