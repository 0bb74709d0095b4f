//! Whatever is killed, at whatever instant, leaves nothing: no process, mount, file, descriptor or thread.
//!
//! Real VMM processes, guards and passts, and ssh servers of homes; a program that stands for the agent (examples of `sandbox`), or
//! the agent's own code in this process. No guest has to boot: `tests/scripts/kills` does the same on a whole box.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::becomes_true;
use common::homes::{Beside, impossible, processes_in, target};
use common::scripted::Scripted;
use common::served::Served;
use common::world::{World, gone};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Numbers that look random, and are the same in each run of a test.
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's MMIX generator; its high bits are good enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// How often what was killed.
type Killed = BTreeMap<&'static str, usize>;

fn kill(pid: u32) -> bool {
    Pid::from_raw(pid as i32).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

/// An example of `sandbox`, which was built with this test.
fn example(name: &str) -> PathBuf {
    let agent = PathBuf::from(env!("CARGO_BIN_EXE_builder-agent"));
    let path = agent.parent().expect("a folder").join("examples").join(name);
    assert!(path.exists(), "{} is missing: build the examples", path.display());
    path
}

/// Processes of this executable, with their first argument.
fn running(executable: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |pid: u32| {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let argument = words.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        (exe == executable).then(|| (pid, String::from_utf8_lossy(argument).into_owned()))
    };
    entries.filter_map(|entry| of(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn ends(child: &mut Child, longest: Duration) -> bool {
    let began = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > longest {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

#[test]
fn a_vmm_or_its_agent_that_is_killed_at_any_instant_leaves_no_process_and_no_file() {
    let guest = target().join("guest");
    if let Some(missing) =
        [Path::new("/dev/kvm"), &guest.join("vmlinux")].into_iter().find(|path| !path.exists())
    {
        println!("skipped: there is no {}", missing.display());
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    // A copy, so that its processes can be told from those of other tests.
    let program = dir.path().join("run-vm");
    fs::copy(example("run-vm"), &program).expect("copied");
    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).expect("made");
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count();
    let (before, mut dice, mut killed) = (mounts(), Dice(1), Killed::new());
    for round in 0..150 {
        let mut agent = Command::new(&program)
            .args(["--memory", "128", "--guest"])
            .arg(&guest)
            .env("TMPDIR", &scratch)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("an agent");
        std::thread::sleep(Duration::from_micros(dice.roll(120_000)));
        let vmm = running(&program).into_iter().find(|(_, argument)| argument == "__vmm").map(|(pid, _)| pid);
        match vmm.filter(|_| dice.roll(2) == 0) {
            Some(vmm) if kill(vmm) => {
                *killed.entry("VMM").or_default() += 1;
                assert!(
                    ends(&mut agent, Duration::from_secs(20)),
                    "round {round}: the agent waits for a dead VMM"
                );
            }
            _ => {
                let which = if vmm.is_some() { "agent with a VMM" } else { "agent before its VMM" };
                *killed.entry(which).or_default() += 1;
                agent.kill().and_then(|()| agent.wait()).expect("its end");
            }
        }
        assert!(becomes_true(|| running(&program).is_empty()), "round {round}: {:?}", running(&program));
    }
    println!("killed: {killed:?}");
    assert!(killed.len() == 3, "{killed:?}");
    let files: Vec<_> = fs::read_dir(&scratch).expect("a folder").flatten().collect();
    assert!(files.is_empty(), "{files:?}");
    assert_eq!(mounts(), before);
}

#[test]
fn a_guard_a_passt_or_their_agent_that_is_killed_takes_the_others_with_it() {
    let Some(world) = World::new() else { return };
    let (mut dice, mut killed) = (Dice(2), Killed::new());
    for _ in 0..40 {
        let mut guest = world.guest(&json!({}));
        let processes = guest.processes();
        let named = |name: &str| {
            let has_it = |pid: &&u32| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(name))
            };
            processes.iter().find(has_it).copied()
        };
        let passt = named("passt").expect("a passt");
        let guard = processes.iter().copied().find(|pid| *pid != passt).expect("a guard");
        let mut curl = guest.command("curl");
        let mut curl = curl
            .args(["--silent", "--max-time", "5", "-4", "http://web.test/big", "--output", "/dev/null"])
            .spawn()
            .expect("curl");
        std::thread::sleep(Duration::from_micros(dice.roll(60_000)));
        let which = match dice.roll(3) {
            0 => {
                guest.kill();
                "agent"
            }
            1 => {
                assert!(kill(guard));
                "guard"
            }
            _ => {
                assert!(kill(passt));
                "passt"
            }
        };
        *killed.entry(which).or_default() += 1;
        gone(&[guard, passt]);
        curl.kill().and_then(|()| curl.wait()).expect("its end");
    }
    println!("killed: {killed:?}");
    assert!(killed.len() == 3, "{killed:?}");
}

/// Threads and descriptors of this process, which is the agent here.
fn held() -> [usize; 2] {
    ["task", "fd"].map(|what| fs::read_dir(format!("/proc/self/{what}")).expect("our own").count())
}

#[tokio::test(flavor = "multi_thread")]
async fn homes_whose_machine_sshds_or_clients_are_killed_leave_nothing_in_the_agent() {
    if let Some(why) = impossible() {
        println!("skipped: {why}");
        return;
    }
    let beside = Beside::default();
    let served = Served::serve(Scripted::open_with_homes("", std::sync::Arc::new(beside.clone())));
    let session = |command: &str| {
        let mut ssh = common::ssh(served.dir(), "alice", served.port);
        ssh.arg(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ssh.spawn().expect("ssh")
    };
    let (mut dice, mut killed, mut before) = (Dice(3), Killed::new(), [0, 0]);
    for round in 0..50 {
        let mut clients = [session("sleep 60"), session("cat /dev/zero")];
        std::thread::sleep(Duration::from_micros(dice.roll(400_000)));
        let last = beside.last.lock().expect("the last one").clone();
        let mut sshds: Vec<_> = last.iter().flat_map(|(namespace, _)| processes_in(namespace)).collect();
        sshds.retain(|pid| {
            last.as_ref().is_some_and(|(_, holder)| pid.as_raw_nonzero().get() as u32 != *holder)
        });
        let which = match (dice.roll(3), last) {
            (0, Some((_, holder))) if beside.running.load(Ordering::SeqCst) == 1 && kill(holder) => "machine",
            (1, _) if !sshds.is_empty() => {
                let at = dice.roll(sshds.len() as u64) as usize;
                let _ = kill_process(sshds[at], Signal::KILL);
                "sshd or its program"
            }
            _ => {
                clients[0].kill().expect("killed");
                "client"
            }
        };
        *killed.entry(which).or_default() += 1;
        // The next session finds a home, this one or a new one.
        let mut next = session("true");
        assert!(ends(&mut next, Duration::from_secs(60)), "round {round}, after a {which}: a session hangs");
        let found = next.wait().expect("its end");
        // One that ends at this moment says so.
        assert!(matches!(found.code(), Some(0 | 255)), "round {round}, after a {which}: {found}");
        // One that was late has opened another home.
        let began = Instant::now();
        loop {
            served.output("alice", &["home", "end"]).await;
            if clients.iter_mut().all(|client| matches!(client.try_wait(), Ok(Some(_)))) {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "round {round}: a session outlives its home");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(becomes_true(|| beside.running.load(Ordering::SeqCst) == 0), "round {round}: a home stays");
        if let Some((namespace, _)) = beside.last.lock().expect("the last one").clone() {
            assert!(
                becomes_true(|| processes_in(&namespace).is_empty()),
                "round {round}: {:?}",
                processes_in(&namespace)
            );
        }
        // By then what is made once is there.
        if round == 4 {
            before = held();
        }
    }
    println!("killed: {killed:?}");
    assert!(killed.len() == 3, "{killed:?}");
    let few = |now: [usize; 2]| now[0] <= before[0] + 8 && now[1] <= before[1] + 8;
    assert!(becomes_true(|| few(held())), "threads and descriptors were {before:?}, and are {:?}", held());
}
