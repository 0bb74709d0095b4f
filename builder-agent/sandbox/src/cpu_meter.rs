//! The processor time of a machine that runs. Its whole is in its [`Usage`](crate::Usage), at its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;

use crate::kvm::jail::cgroup::CpuCount;

/// Reads the processor time that a machine has used until now, from any thread. It is this machine's for ever: what it reads from
/// is open.
#[derive(Debug)]
pub struct CpuMeter(Source);

#[derive(Debug)]
enum Source {
    Cgroup(CpuCount),
    /// `/proc/PID/stat` of each process.
    Processes(Vec<File>),
}

impl CpuMeter {
    pub(crate) fn of_cgroup(count: CpuCount) -> Self {
        Self(Source::Cgroup(count))
    }

    /// The processes with these numbers, children of this one that were not reaped yet. Their own children are not counted
    /// unless they have ended and were waited for.
    pub(crate) fn of_processes(pids: impl IntoIterator<Item = u32>) -> io::Result<Self> {
        let open = |pid| File::open(format!("/proc/{pid}/stat"));
        pids.into_iter().map(open).collect::<io::Result<_>>().map(Source::Processes).map(Self)
    }

    /// `None` when the machine is gone.
    #[must_use]
    pub fn used(&self) -> Option<Duration> {
        match &self.0 {
            Source::Cgroup(count) => count.read(),
            Source::Processes(files) => files.iter().map(of_process).sum(),
        }
    }
}

fn of_process(stat: &File) -> Option<Duration> {
    let mut text = [0; 1024];
    let n = stat.read_at(&mut text, 0).ok()?;
    ticks(std::str::from_utf8(&text[..n]).ok()?).map(|ticks| {
        // proc_pid_stat(5) counts in these, of which there are 100 in a second.
        Duration::from_millis(ticks.saturating_mul(1000) / clock_ticks_per_second().max(1))
    })
}

/// utime, stime, cutime and cstime: the 14th field and the next. The second is a name, in which anything may be.
fn ticks(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(") ")?;
    let fields: Vec<u64> =
        after.split(' ').skip(11).take(4).map(str::parse).collect::<Result<_, _>>().ok()?;
    (fields.len() == 4).then(|| fields.into_iter().fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_process_has_used_is_read_while_it_runs_and_never_of_another_one() {
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo; exec sleep 100";
        let mut child =
            Command::new("sh").args(["-c", work]).stdout(Stdio::piped()).spawn().expect("a shell");
        let meter = CpuMeter::of_processes([child.id(), child.id()]).expect("it runs");
        io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut [0]).expect("its word");
        let used = meter.used().expect("it runs");
        assert!(used >= Duration::from_millis(40), "{used:?}: both");
        child.kill().and_then(|()| child.wait()).expect("its end");
        assert_eq!(meter.used(), None);
        assert!(CpuMeter::of_processes([child.id()]).is_err());
    }

    #[test]
    fn a_name_with_parentheses_and_blanks_moves_no_field() {
        let line = "7 (a) 1 b) R 1 7 7 0 -1 0 0 0 0 0 30 4 200 1000 20 0 1 0";
        assert_eq!(ticks(line), Some(1234));
        assert_eq!(ticks("7 (a) R 1"), None);
        assert_eq!(ticks(""), None);
    }
}
