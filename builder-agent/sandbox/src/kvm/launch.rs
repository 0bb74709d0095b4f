//! Starts a VMM process and makes sure that it ends.
//!
//! The process is this executable again, with `__vmm` as its argument: no second binary to install, version,
//! or find. It has a PID namespace of its own, and dies with the agent: `parent` starts it. It is a child of this process
//! until `end` reaps it, so its process id is its own until then.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::arch::{Architecture, Native};
use super::devices::console;
use super::handover::Shape;
use super::jail::cgroup::{Group, Hierarchy, Limit};
use super::overhead;
use crate::cpu_meter::CpuMeter;
use crate::process::{self, Process, memory_file};
use crate::usage::Usage;

/// First argument of a VMM process. `child_main_if_requested` looks for it.
pub const ARGUMENT: &str = "__vmm";

/// Memory for guard and passt, which has buffers for each connection.
const NETWORK_MIB: u64 = 64;

/// A running VMM process. Dropping it kills and reaps the process.
pub struct Vmm {
    process: Process,
    status: Option<ExitStatus>,
    usage: Usage,
    /// Address ranges of the process that are guest memory or closure.
    guest: Vec<(u64, u64)>,
    pub control: UnixStream,
    console: File,
    stderr: File,
    /// Dropped after the process: a cgroup can be removed only when it is empty.
    group: Option<Group>,
}

impl Vmm {
    /// `executable` is normally `/proc/self/exe`.
    pub fn launch(executable: &Path) -> io::Result<Vmm> {
        let (control, theirs) = UnixStream::pair()?;
        let console = memory_file("console")?;
        console.set_len(console::FILE_SIZE)?;
        let (process, stderr) = Process::again(executable, ARGUMENT, theirs)?;
        Ok(Vmm::of_process(process, control, console, stderr))
    }

    fn of_process(process: Process, control: UnixStream, console: File, stderr: File) -> Vmm {
        Vmm {
            process,
            status: None,
            usage: Usage::default(),
            guest: Vec::new(),
            control,
            console,
            stderr,
            group: None,
        }
    }

    /// A process that another program has launched, with the descriptors and the cgroup that it had there.
    pub fn taken_over(
        pid: u32,
        control: OwnedFd,
        console: OwnedFd,
        stderr: OwnedFd,
        guest: Vec<(u64, u64)>,
        cgroup: Option<PathBuf>,
    ) -> io::Result<Vmm> {
        let process = Process::taken_over(pid)?;
        let mut vmm = Vmm::of_process(process, control.into(), console.into(), stderr.into());
        (vmm.guest, vmm.group) = (guest, cgroup.map(Group::taken_over));
        Ok(vmm)
    }

    /// For [`Vmm::taken_over`]: the numbers of control socket, console and stderr, the ranges, the cgroup.
    pub fn written_down(&self) -> ([i32; 3], Vec<(u64, u64)>, Option<PathBuf>) {
        let numbers = [self.control.as_raw_fd(), self.console.as_raw_fd(), self.stderr.as_raw_fd()];
        (numbers, self.guest.clone(), self.group.as_ref().map(|group| group.path().to_owned()))
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn console(&self) -> BorrowedFd<'_> {
        self.console.as_fd()
    }

    /// Puts the process under the limits of a cgroup. Called before it gets its configuration, so before it
    /// can use memory.
    pub fn limit(&mut self, hierarchy: &Hierarchy, shape: &Shape) -> io::Result<()> {
        // Guard and passt are in the same cgroup.
        let (memory_mib, beside) = if shape.has_network_card() { (NETWORK_MIB, 2) } else { (0, 0) };
        let memory_mib = u64::from(shape.memory_mib) + memory_mib;
        self.group = Some(hierarchy.place(self.pid(), memory_mib, shape.vcpus.into(), beside)?);
        Ok(())
    }

    /// Puts another process of this VM under the same limits.
    pub fn admit(&self, pid: u32) -> io::Result<()> {
        self.group.as_ref().map_or(Ok(()), |group| group.add(pid))
    }

    /// To raise the limit while the VM runs. None: it has no limit.
    pub fn memory_limit(&self) -> io::Result<Option<Limit>> {
        self.group.as_ref().map(Group::limit).transpose()
    }

    /// To read the processor time of this VM, of which `others` are processes as well, while it runs.
    pub fn cpu_meter(&self, others: impl IntoIterator<Item = u32>) -> io::Result<CpuMeter> {
        match &self.group {
            Some(group) => group.cpu_meter().map(CpuMeter::of_cgroup),
            None => CpuMeter::of_processes(std::iter::once(self.pid()).chain(others)),
        }
    }

    /// The processor time of all processes of this VM, if the host counts it. Whole when the last of them has ended.
    pub fn cpu_of_all(&self) -> Option<Duration> {
        self.group.as_ref().and_then(Group::cpu_used)
    }

    pub fn was_killed_for_memory(&self) -> bool {
        self.group.as_ref().is_some_and(Group::was_out_of_memory)
    }

    /// The end of the guest's console output, then of the VMM's stderr; printable, limited in length.
    pub fn last_words(&self) -> String {
        let mut bytes = console::tail(&self.console).unwrap_or_default();
        bytes.extend(process::words(&self.stderr));
        printable::lines(&String::from_utf8_lossy(&bytes))
    }

    /// See [`Process::let_end`].
    pub fn let_end(&self, patience: Duration) -> bool {
        self.process.let_end(patience)
    }

    /// These ranges of the process' addresses are not the VMM's own memory.
    pub fn set_guest_ranges(&mut self, guest: Vec<(u64, u64)>) {
        self.guest = guest;
    }

    /// The ranges of the process' addresses that are the guest's RAM, from its first byte to its last.
    pub fn ram(&self, memory_mib: u32) -> Vec<(u64, u64)> {
        // They are reported first.
        let count = Native::ram_ranges(u64::from(memory_mib) << 20).len();
        self.guest.iter().copied().take(count).collect()
    }

    /// Kills and reaps the process; returns its status and its usage. Later calls return the same.
    pub fn end(&mut self) -> (Option<ExitStatus>, Usage) {
        if !self.process.is_reaped() {
            // Read before the kill, while the process has memory.
            let (overhead, peak) =
                (overhead::of_process(self.pid(), &self.guest), overhead::peak(self.pid()));
            // A process that has ended by itself has no memory any more, so its numbers are dropped.
            if self.process.kill() {
                (self.usage.vmm_overhead, self.usage.peak_memory) = (overhead, peak);
            }
            if let Some((status, cpu)) = self.process.reap() {
                (self.status, self.usage.cpu) = (Some(status), cpu);
                // A cgroup keeps its number when the process is gone.
                let counted = self.group.as_ref().and_then(Group::peak_memory);
                self.usage.peak_memory = counted.or(self.usage.peak_memory);
            }
        }
        (self.status, self.usage)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_vmm_process_used_is_known_when_it_was_killed() {
        let dir = std::env::temp_dir().join(format!("vmm-usage-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let script = dir.join("vmm");
        // Computes, then takes memory, and reports when both are done.
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let text = format!(
            "#!/bin/bash\n{work}; x=$(head -c 50000000 /dev/zero | tr '\\0' x); echo ok >&0; sleep 600"
        );
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut vmm = Vmm::launch(&script).unwrap();
        let mut told = [0; 2];
        std::io::Read::read_exact(&mut &vmm.control, &mut told).unwrap();
        let (status, usage) = vmm.end();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(status.is_some_and(|status| !status.success()), "{status:?}");
        assert!(usage.cpu >= Duration::from_millis(20), "{usage:?}");
        assert!(usage.peak_memory.is_some_and(|peak| peak >= 50_000_000), "{usage:?}");
        assert!(usage.vmm_overhead.is_some_and(|bytes| bytes >= 50_000_000), "{usage:?}");
        assert_eq!(vmm.end(), (status, usage));
    }
}
