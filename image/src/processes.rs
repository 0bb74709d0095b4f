//! Processes that outlive the command that started them: remembering them, and ending exactly those.

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long a process may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process by its id and the time it started: ids are used again, the pair is not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// Clock ticks after boot, field 22 of /proc/PID/stat.
    started: u64,
}

impl Process {
    /// Of a child that was just spawned and not waited for yet.
    pub fn of(child: &std::process::Child) -> Option<Self> {
        let pid = i32::try_from(child.id()).ok()?;
        Some(Self { pid, started: start_time(pid)? })
    }

    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Asks it to end, then insists. Does nothing if it is gone or another process has its id by now.
    pub fn stop(&self) {
        let deadline = Instant::now() + PATIENCE;
        for signal in [Signal::TERM, Signal::KILL] {
            if !self.is_alive() {
                return;
            }
            let Some(pid) = Pid::from_raw(self.pid) else { return };
            // It may have ended since we looked; then there is nothing left to do.
            let _ = kill_process(pid, signal);
            while self.is_alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// None for a process that is gone or only waits to be reaped.
fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The name is in parentheses and may itself hold spaces and parentheses.
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
