//! The cgroups of a home: one for sshds, and one for what the member runs.
//!
//! What a member runs comes into being inside of sshd's group, with the rights of sshd to stay when memory is short: an
//! `sshd -i` does not take them from its children. A thread moves it to the other group and takes those rights away. So a
//! home that is full of the member's processes, or of their memory, still lets the member in to end them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::machine::group::{create, write};
use crate::sys;

/// sshd's own programs; which of them there are depends on its version.
const PROGRAMS: [&str; 3] = ["/usr/sbin/sshd", "/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth"];

/// Processes of up to 64 sshds, and those that were not moved yet.
const SSHD_PROCESSES: u32 = 512;

/// Time between two looks into sshd's group.
const INTERVAL: Duration = Duration::from_millis(200);

/// The groups, by files that stay open: no path leads to them in the home's root.
pub struct Groups {
    /// The processes of sshd's group. What is written to it moves there.
    pub sshd: Arc<File>,
    /// Tells when sshd's group gets its first process, or loses its last.
    events: File,
    member: File,
}

impl Groups {
    /// `available`: the memory that there is for programs. What the kernel has taken already does not count: if the machine as
    /// a whole ran out of memory before the home does, everything in it would crawl for minutes.
    pub fn new(processes: u32, available: u64) -> io::Result<Groups> {
        let home = create("home", available)?;
        write(&home.join("cgroup.subtree_control"), "+pids +cpu")?;
        let sshd = Arc::new(part(&home.join("sshd"), SSHD_PROCESSES)?);
        // Whatever the member's processes want, an sshd gets the processor first.
        write(&home.join("sshd/cpu.weight"), "10000")?;
        let events = File::open(home.join("sshd/cgroup.events"))?;
        Ok(Groups { sshd, events, member: part(&home.join("member"), processes)? })
    }

    /// Keeps only sshds in sshd's group, for as long as the machine runs. Called when the home's root is the root.
    pub fn watch(self) -> io::Result<()> {
        let programs: Vec<_> = PROGRAMS.iter().filter_map(|path| identity(Path::new(path))).collect();
        let (mut sshd, mut events, mut member) = (self.sshd.try_clone()?, self.events, self.member);
        std::thread::Builder::new().name("groups".into()).stack_size(256 * 1024).spawn(move || {
            // Thousands of runnable processes must not keep this thread from the processor.
            let _ = sys::run_before_others();
            loop {
                // Before the processes are read: what comes after that ends the wait.
                let _ = read(&mut events);
                // Fails while a process ends; the next round is soon.
                if let Ok(0) = sort(&mut sshd, &mut member, Path::new("/proc"), &programs) {
                    // A home without connections sleeps.
                    let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], None);
                }
                std::thread::sleep(INTERVAL);
            }
        })?;
        Ok(())
    }
}

fn part(dir: &Path, processes: u32) -> io::Result<File> {
    fs::create_dir(dir)?;
    write(&dir.join("pids.max"), &processes.to_string())?;
    OpenOptions::new().read(true).write(true).open(dir.join("cgroup.procs"))
}

/// The device and the inode of a program.
fn identity(program: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(program).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// A file of the kernel, from its beginning.
fn read(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Moves all processes that run none of these programs. The rest of what they start follows in the next round, or is
/// there already. Returns how many processes there were.
fn sort(sshd: &mut File, member: &mut File, proc: &Path, programs: &[(u64, u64)]) -> io::Result<usize> {
    let processes = read(sshd)?;
    for process in processes.lines() {
        let process_dir: PathBuf = proc.join(process);
        let Some(program) = identity(&process_dir.join("exe")) else { continue };
        if programs.contains(&program) {
            continue;
        }
        // First the score: what the process starts in between is still in this group, and gets its turn.
        let scored = fs::write(process_dir.join("oom_score_adj"), "0");
        if scored.is_ok() {
            let _ = member.write_all(process.as_bytes());
        }
    }
    Ok(processes.lines().count())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_no_sshd_leaves_its_group_and_loses_its_right_to_stay() {
        let dir = std::env::temp_dir().join(format!("home-groups-test-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (sshd, shell) = (dir.join("sshd"), dir.join("shell"));
        fs::write(&sshd, "").unwrap();
        fs::write(&shell, "").unwrap();
        for (process, program) in [("10", &sshd), ("11", &shell), ("13", &shell)] {
            fs::create_dir(dir.join(process)).unwrap();
            symlink(program, dir.join(process).join("exe")).unwrap();
            fs::write(dir.join(process).join("oom_score_adj"), "-1000").unwrap();
        }
        // 12 has ended.
        fs::write(dir.join("procs"), "10\n11\n12\n13\n").unwrap();
        let mut from = File::open(dir.join("procs")).unwrap();
        let mut to = File::create(dir.join("moved")).unwrap();
        for _ in 0..2 {
            assert_eq!(sort(&mut from, &mut to, &dir, &[identity(&sshd).unwrap()]).unwrap(), 4);
        }
        assert_eq!(fs::read_to_string(dir.join("moved")).unwrap(), "11131113");
        let score = |process: &str| fs::read_to_string(dir.join(process).join("oom_score_adj")).unwrap();
        assert_eq!([score("10"), score("11"), score("13")], ["-1000", "0", "0"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
