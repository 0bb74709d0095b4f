//! Real builds under real bubblewrap. Needs the package bubblewrap, a static busybox and the static guest.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::job::{BuilderStatus, Finished, Host, Job, Limits, OutputSink, Phases};
use crate::session::build::JobRunner;
use crate::usage::Usage;

const OUT: &str = "/nix/store/00000000000000000000000000000000-out";
const BUSYBOX: &str = "/nix/store/11111111111111111111111111111111-busybox";
const SECRET: &str = "/nix/store/22222222222222222222222222222222-data";

/// Longer than every test here takes on a busy machine; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default, Clone)]
struct Recorded {
    log: Arc<Mutex<Vec<u8>>>,
    outputs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Cancels the job once this text is in the log.
    cancel_at: Option<(String, Cancel)>,
    /// Counts the bytes of outputs instead of keeping them.
    count_only: Option<Arc<Mutex<u64>>>,
}

struct Sink {
    name: String,
    bytes: Vec<u8>,
    to: Recorded,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.to.count_only {
            Some(count) => *count.lock().unwrap() += bytes.len() as u64,
            None => self.bytes.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutputSink for Sink {
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.to.outputs.lock().unwrap().insert(self.name, self.bytes);
        Ok(())
    }
}

impl Host for Recorded {
    fn log(&mut self, bytes: &[u8]) {
        self.log.lock().unwrap().extend_from_slice(bytes);
        if let Some((text, cancel)) = &self.cancel_at
            && self.text().contains(text.as_str())
        {
            cancel.cancel();
        }
    }

    fn output(&mut self, name: &str) -> io::Result<Box<dyn OutputSink>> {
        Ok(Box::new(Sink { name: name.into(), bytes: Vec::new(), to: self.clone() }))
    }
}

impl Recorded {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }
}

/// The static guest: `BARNRAISER_GUEST`, or cargo's output.
fn guest_binary() -> PathBuf {
    let path = std::env::var_os("BARNRAISER_GUEST").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/x86_64-unknown-linux-gnu/release/guest"),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "no guest binary at {}; build it with\n  RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --release \
         -p guest --target x86_64-unknown-linux-gnu\nor set BARNRAISER_GUEST",
        path.display()
    );
    path
}

fn shell_binary() -> PathBuf {
    let path = PathBuf::from(std::env::var_os("BARNRAISER_SHELL").unwrap_or("/bin/busybox".into()));
    assert!(
        path.exists(),
        "no static shell at {}; install busybox-static or set BARNRAISER_SHELL",
        path.display()
    );
    path
}

/// A store in a directory that only its owner may enter, like an agent's.
struct Store {
    dir: PathBuf,
}

impl Store {
    fn new(test: &str) -> Store {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let dir = base.join(format!("namespace-test-{}-{test}", std::process::id()));
        std::fs::create_dir_all(dir.join("busybox/bin")).unwrap();
        std::fs::copy(shell_binary(), dir.join("busybox/bin/busybox")).unwrap();
        std::fs::write(dir.join("data"), "input data\n").unwrap();
        std::os::unix::fs::symlink("data-target", dir.join("link")).unwrap();
        rustix::fs::chmod(&dir, rustix::fs::Mode::RWXU).unwrap();
        Store { dir }
    }

    fn trees(&self) -> Vec<(String, PathBuf)> {
        vec![(BUSYBOX.into(), self.dir.join("busybox")), (SECRET.into(), self.dir.join("data"))]
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Build {
    result: Result<Finished, SandboxError>,
    phases: Phases,
    usage: Usage,
    host: Recorded,
}

impl Build {
    /// The log after the guest's own first line.
    fn log(&self) -> String {
        self.host.text().split_once('\n').map(|(_, rest)| rest.to_owned()).unwrap_or_default()
    }

    fn exited(&self) -> i32 {
        match &self.result {
            Ok(Finished { status: BuilderStatus::Exited(code), .. }) => *code,
            other => panic!("{other:?}; log:\n{}", self.host.text()),
        }
    }

    fn error(&self) -> &SandboxError {
        self.result.as_ref().expect_err(&self.host.text())
    }
}

fn job(store: &Store, script: &str) -> Job {
    Job {
        id: "test".into(),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec!["-ec".into(), format!("bb={BUSYBOX}/bin/busybox\n{script}").into()],
        env: [
            ("out", OUT),
            ("HOME", "/homeless-shelter"),
            ("PATH", "/path-not-set"),
            ("NIX_BUILD_TOP", "/build"),
        ]
        .map(|(k, v)| (k.into(), v.into()))
        .into(),
        files: vec![(".attr-0".into(), b"from the derivation".to_vec())],
        etc: Vec::new(),
        outputs: [("out".to_owned(), OUT.to_owned())].into(),
        inputs: Inputs::Trees(store.trees()),
        random_order: false,
        network: false,
        limits: Limits {
            vcpus: 1,
            memory_mib: 512,
            wall: Some(PATIENCE),
            silent: None,
            log_bytes: 1 << 20,
            output_bytes: 1 << 30,
            processes: 200,
        },
    }
}

fn run_job(job: Job, host: Recorded, cancel: &Cancel) -> Build {
    let backend = NamespaceBackend::new(NamespaceConfig::new(guest_binary(), shell_binary())).unwrap();
    let mut recorded = host.clone();
    let crate::job::Run { result, phases, usage } = backend.run(job, &mut recorded, cancel);
    Build { result, phases, usage, host }
}

fn build(name: &str, script: &str) -> Build {
    build_with(name, script, |_| {})
}

fn build_with(name: &str, script: &str, change: impl FnOnce(&mut Job)) -> Build {
    let store = Store::new(name);
    let mut job = job(&store, script);
    change(&mut job);
    run_job(job, Recorded::default(), &Cancel::new())
}

#[test]
fn what_a_build_used_is_counted_whether_it_works_or_fails() {
    let idle = build("usage-idle", "true > $out");
    assert_eq!(idle.exited(), 0);
    // A child computes and another takes memory: the total of all processes of the build counts.
    let script = r#"sh -c 'i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done'
        $bb dd if=/dev/zero of=/dev/null bs=100M count=1
        echo 0123456789 > $out; exit 3"#;
    let busy = build("usage-busy", &script.replace("sh -c", "/bin/sh -c"));
    assert_eq!(busy.exited(), 3);
    let work = Duration::from_millis(50);
    assert!(busy.usage.cpu > idle.usage.cpu + work, "{:?} {:?}", idle.usage, busy.usage);
    let peak = |build: &Build| build.usage.peak_memory.unwrap();
    assert!(peak(&busy) >= 100 << 20 && peak(&idle) < 50 << 20, "{:?} {:?}", idle.usage, busy.usage);
    assert!(idle.usage.bytes_in > 100 && idle.usage.bytes_out > 100, "{:?}", idle.usage);
    assert_eq!(idle.usage.vmm_overhead, None);
}

/// The NAR of one regular file.
fn nar_of(contents: &[u8], executable: bool) -> Vec<u8> {
    let mut nar = Vec::new();
    nix_archive::nar::encode_regular(&mut nar, contents, executable).unwrap();
    nar
}

/// Processes of this machine whose command line has the word.
fn processes_with(word: &str) -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
        .filter(|line| line.split(|b| *b == 0).any(|arg| arg == word.as_bytes()))
        .count()
}

#[test]
fn a_build_gets_its_inputs_files_and_environment_and_its_output_comes_back() {
    let build = build(
        "ok",
        r#"echo hello; [ "$PWD" = /build ]; $bb cat /nix/store/2*-data .attr-0 > $out; $bb chmod 755 $out"#,
    );
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(build.log(), "hello\n");
    let outputs = build.host.outputs.lock().unwrap();
    assert_eq!(outputs["out"], nar_of(b"input data\nfrom the derivation", true));
    let finished = build.result.as_ref().unwrap();
    assert_eq!(finished.kernel, rustix::system::uname().release().to_str().unwrap());
    let names: Vec<_> = build.phases.named().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        ["machine started", "guest ready", "job sent", "builder started", "builder", "outputs"]
    );
}

#[test]
fn the_first_log_line_tells_what_the_builder_is_in() {
    let build = build("banner", ": > $out");
    let kernel = rustix::system::uname().release().to_str().unwrap().to_owned();
    assert_eq!(
        build.host.text(),
        format!(
            "barnraiser: building in a namespace sandbox (weaker than KVM), kernel {kernel}, network devices: lo\n"
        )
    );
}

#[test]
fn a_failing_builder_gives_its_exit_code_and_log_and_no_outputs() {
    let build = build("fail", "echo out; : > $out; echo no such luck >&2; exit 42");
    assert_eq!(build.exited(), 42);
    assert_eq!(build.log(), "out\nno such luck\n");
    assert!(build.host.outputs.lock().unwrap().is_empty());
}

#[test]
fn a_builder_that_kills_itself_is_reported_with_its_signal() {
    // As PID 1 the builder's shell, and a program that replaces it, ignore signals of their own. A fatal one
    // is needed.
    let build = build("signal", "ulimit -t 1; while :; do :; done");
    assert!(
        matches!(build.result, Ok(Finished { status: BuilderStatus::Signalled(9 | 24), .. })),
        "{:?}",
        build.result
    );
}

#[test]
fn a_missing_builder_is_the_derivations_fault_and_named() {
    let build = build_with("nobuilder", "", |job| job.builder = "/nix/store/none/bin/builder".into());
    assert!(build.error().is_builders_fault());
    let text = build.error().to_string();
    assert!(text.contains("executing '/nix/store/none/bin/builder': No such file"), "{text}");
}

#[test]
fn an_output_that_was_not_made_is_named() {
    let build = build("missing", "echo forgot");
    assert!(
        matches!(build.error(), SandboxError::OutputMissing { name } if name == "out"),
        "{:?}",
        build.result
    );
}

#[test]
fn an_output_with_a_fifo_is_refused_by_path() {
    let build = build("fifo", "$bb mkdir $out; $bb mkdir $out/d; $bb mkfifo $out/d/pipe");
    let SandboxError::OutputInvalid { name, why } = build.error() else { panic!("{:?}", build.result) };
    assert_eq!(name, "out");
    assert!(why.contains(&format!("{OUT}/d/pipe is a fifo")), "{why}");
    assert!(build.host.outputs.lock().unwrap().is_empty());
}

#[test]
fn set_user_id_bits_and_unreadable_modes_leave_no_trace() {
    let build = build("suid", "echo x > $out; $bb chmod 6111 $out");
    assert_eq!(build.exited(), 0);
    assert_eq!(build.host.outputs.lock().unwrap()["out"], nar_of(b"x\n", true));
}

#[test]
fn an_output_may_be_a_symlink_to_nowhere() {
    let build = build("symlink", "$bb ln -s /does/not/exist $out");
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert!(
        build.host.outputs.lock().unwrap()["out"].windows(14).any(|w| w == b"/does/not/exist"[..14].as_ref())
    );
}

#[test]
fn an_input_that_is_a_symlink_is_shown_as_one() {
    let store = Store::new("linkinput");
    let mut job = job(&store, "$bb readlink /nix/store/3*-link > $out");
    let inside = "/nix/store/33333333333333333333333333333333-link".to_owned();
    job.inputs = Inputs::Trees([store.trees(), vec![(inside, store.dir.join("link"))]].concat());
    let build = run_job(job, Recorded::default(), &Cancel::new());
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(build.host.outputs.lock().unwrap()["out"], nar_of(b"data-target\n", false));
}

/// More inputs than bubblewrap takes arguments.
const MANY: usize = 10_000;

#[test]
fn ten_thousand_inputs_are_shown_read_only() {
    let store = Store::new("many");
    let mut trees = store.trees();
    for number in 0..MANY {
        let host = store.dir.join(format!("many-{number}"));
        if number % 2 == 0 {
            std::fs::create_dir(&host).unwrap();
        } else {
            std::fs::write(&host, format!("input {number}\n")).unwrap();
        }
        trees.push((format!("/nix/store/{number:032}-many"), host));
    }
    let script = r#"
        $bb ls /nix/store | $bb grep -c many
        $bb cat /nix/store/*9999-many
        for f in /nix/store/*9999-many /nix/store/*9998-many/new; do
            if ( echo evil > $f ) 2>/dev/null; then echo "wrote $f"; fi
        done
        echo x > $out
    "#;
    let mut job = job(&store, script);
    job.inputs = Inputs::Trees(trees);
    let began = Instant::now();
    let build = run_job(job, Recorded::default(), &Cancel::new());
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(build.log(), format!("{MANY}\ninput 9999\n"));
    println!("{MANY} inputs: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn too_many_inputs_are_refused_naming_the_limit() {
    let store = Store::new("toomany");
    let mut job = job(&store, "");
    job.inputs = Inputs::Trees(vec![store.trees().remove(0); stage::MAX_INPUTS + 1]);
    let build = run_job(job, Recorded::default(), &Cancel::new());
    let text = build.error().to_string();
    assert!(text.contains("50001 inputs") && text.contains("at most 50000"), "{text}");
}

#[test]
fn an_input_that_cannot_be_shown_is_named() {
    let store = Store::new("noinput");
    let mut job = job(&store, "");
    let gone = store.dir.join("gone");
    job.inputs = Inputs::Trees(vec![(SECRET.into(), gone.clone())]);
    let text = run_job(job.clone(), Recorded::default(), &Cancel::new()).error().to_string();
    assert!(text.contains(&format!("{}: No such file", gone.display())), "{text}");
    // One input twice: the child finds the conflict, and reports it before it becomes bubblewrap.
    job.inputs = Inputs::Trees(vec![store.trees().remove(1); 2]);
    let text = run_job(job, Recorded::default(), &Cancel::new()).error().to_string();
    assert!(text.contains("cannot make room for /dev/shm/") && text.contains("File exists"), "{text}");
}

#[test]
fn a_builder_sees_what_nix_shows_and_nothing_of_the_host() {
    let build = build(
        "view",
        r#"
        : > $out
        echo "root: $($bb ls -A / | $bb tr '\n' ' ')"
        echo "store: $($bb ls /nix/store | $bb tr '\n' ' ')"
        echo "etc: $($bb ls /etc | $bb tr '\n' ' ')"
        echo "guest: $($bb ls -A /.guest)"
        echo "id: $($bb id -u) $($bb id -g) pid $$"
        echo "name: $($bb hostname) $($bb cat /proc/sys/kernel/domainname)"
        echo "umask: $(umask)"
        echo "passwd: $($bb grep -c . /etc/passwd)"
        echo "caps: $($bb grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | $bb grep -vc 0000000000000000)"
        echo "newprivs: $($bb grep NoNewPrivs /proc/self/status | $bb tr -d '\t')"
        echo "procs: $($bb ls /proc | $bb grep -c '^[0-9]')"
        echo "env: $($bb env | $bb cut -d= -f1 | $bb sort | $bb tr '\n' ' ')"
        "#,
    );
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    let log = build.log();
    let line = |key: &str| {
        let prefix = format!("{key}: ");
        log.lines()
            .find_map(|l| l.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("no {key} in {log}"))
            .trim_end()
    };
    assert_eq!(line("root"), ".guest bin build dev etc nix proc tmp");
    assert_eq!(
        line("store"),
        "00000000000000000000000000000000-out 11111111111111111111111111111111-busybox \
         22222222222222222222222222222222-data"
    );
    assert_eq!(line("etc"), "group hosts passwd");
    assert_eq!(line("guest"), "");
    assert_eq!(line("id"), "1000 100 pid 1");
    assert_eq!(line("name"), "localhost (none)");
    assert_eq!(line("umask"), "0022");
    assert_eq!(line("passwd"), "3");
    assert_eq!(line("caps"), "0");
    assert_eq!(line("newprivs"), "NoNewPrivs:1");
    // The shell and the processes of its pipe: neither the guest nor a process of the host.
    assert!(line("procs").parse::<u32>().unwrap() <= 4, "{log}");
    assert_eq!(line("env"), "HOME NIX_BUILD_TOP OLDPWD PATH PWD SHLVL out".replace("OLDPWD ", ""));
}

#[test]
fn a_build_is_ended_before_the_agent_when_memory_is_short() {
    let build = build(
        "oom",
        "$bb cat /proc/self/oom_score_adj; ( echo -900 > /proc/self/oom_score_adj ) 2>/dev/null && echo lowered; : > $out",
    );
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(build.log(), "900\n");
}

#[test]
fn there_is_no_network_but_a_working_loopback() {
    let build = build(
        "network",
        r#"
        : > $out
        $bb cut -d: -f1 /proc/net/dev | $bb tail -n +3
        $bb wc -l < /proc/net/route
        $bb ping -c 1 -W 1 192.0.2.1 >/dev/null 2>&1 && echo reached
        ($bb nc -l -p 7777 -e /bin/sh -c 'echo over loopback' &)
        for i in 1 2 3 4 5 6 7 8 9 10; do $bb nc 127.0.0.1 7777 </dev/null && break; $bb sleep 1; done
        "#,
    );
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    let words: Vec<_> = build.log().split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[..2], ["lo", "1"], "{words:?}");
    assert!(!words.contains(&"reached".to_owned()));
    assert!(build.log().contains("over loopback"), "{}", build.log());
}

#[test]
fn inputs_and_the_root_cannot_be_written() {
    let build = build(
        "readonly",
        r#"
        : > $out
        for f in /nix/store/2*-data /nix/store/1*-busybox/new /etc/passwd /new /bin/sh /dev/new /proc/sys/kernel/core_pattern; do
            if ( echo evil > $f ) 2>/dev/null; then echo "wrote $f"; fi
        done
        $bb rm -rf /nix/store/2*-data /nix/store/1*-busybox 2>/dev/null || true
        $bb mv /nix/store/2*-data /nix/store/moved 2>/dev/null && echo "moved"
        $bb cat /nix/store/2*-data
        "#,
    );
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(build.log(), "input data\n");
}

#[test]
fn a_builder_gets_no_user_namespace_and_no_mounts() {
    let build = build(
        "userns",
        r#": > $out; $bb unshare -U $bb true 2>/dev/null && echo namespace; $bb mount -t tmpfs x /tmp 2>/dev/null && echo mount; true"#,
    );
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(build.log(), "");
}

#[test]
fn a_build_that_never_ends_meets_its_wall_limit() {
    let build = build_with("wall", "while :; do echo on; $bb sleep 0.1; done", |job| {
        job.limits.wall = Some(Duration::from_secs(1));
        job.limits.silent = Some(PATIENCE);
    });
    assert!(
        matches!(build.error(), SandboxError::Timeout { after } if after.as_secs() == 1),
        "{:?}",
        build.result
    );
}

#[test]
fn a_build_that_says_nothing_meets_its_silent_limit() {
    let build = build_with("silent", "echo first; $bb sleep 1000", |job| {
        job.limits.silent = Some(Duration::from_secs(1));
    });
    assert!(
        matches!(build.error(), SandboxError::Silent { after } if after.as_secs() == 1),
        "{:?}",
        build.result
    );
    assert_eq!(build.log(), "first\n");
}

#[test]
fn a_log_without_end_meets_its_limit_and_the_limit_is_what_arrived() {
    let build =
        build_with("log", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done", |job| {
            job.limits.log_bytes = 100_000;
        });
    assert!(matches!(build.error(), SandboxError::LogLimit { limit: 100_000 }), "{:?}", build.result);
    assert_eq!(build.host.log.lock().unwrap().len(), 100_000);
}

#[test]
fn an_output_over_the_limit_is_refused() {
    let build = build_with("output", "$bb dd if=/dev/zero of=$out bs=1M count=3 2>/dev/null", |job| {
        job.limits.output_bytes = 2 << 20;
    });
    assert!(matches!(build.error(), SandboxError::OutputLimit { .. }), "{:?}", build.result);
    assert!(build.host.outputs.lock().unwrap().is_empty());
}

#[test]
fn cancelling_ends_every_process_of_the_build() {
    let store = Store::new("cancel");
    let word = format!("98765.{}", std::process::id());
    let cancel = Cancel::new();
    let host = Recorded { cancel_at: Some(("up".into(), cancel.clone())), ..Recorded::default() };
    let job = job(&store, &format!("$bb sleep {word} & $bb setsid $bb sleep {word} & echo up; wait"));
    let began = Instant::now();
    let build = run_job(job, host, &cancel);
    assert!(matches!(build.error(), SandboxError::Cancelled), "{:?}", build.result);
    assert!(began.elapsed() < PATIENCE, "it ended with its wall limit and not with the cancel");
    assert_eq!(processes_with(&word), 0);
}

#[test]
fn what_a_builder_leaves_behind_ends_with_it() {
    let word = format!("87654.{}", std::process::id());
    // One process in the background, and one twice removed in a session of its own that holds the log open.
    let build =
        build("left", &format!(": > $out; $bb sleep {word} & ($bb setsid $bb sleep {word} &) ; exit 0"));
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(processes_with(&word), 0);
}

#[test]
fn a_fork_bomb_meets_the_process_limit() {
    let build = build("bomb", "$bb sleep 1000 & (while :; do $bb sleep 1000 & done) || wait");
    assert!(matches!(build.error(), SandboxError::ProcessLimit { limit: 200 }), "{:?}", build.result);
    assert!(build.error().is_builders_fault());
}

#[test]
fn a_builder_that_fills_memory_is_out_of_memory() {
    let build = build_with("memory", "$bb tail -c 400m /dev/zero", |job| job.limits.memory_mib = 64);
    assert!(matches!(build.error(), SandboxError::OutOfMemory { mib: 64 }), "{:?}", build.result);
    assert!(build.error().is_builders_fault());
}

#[test]
fn a_full_disk_is_an_error_of_the_builder_and_not_the_end() {
    let build = build_with(
        "disk",
        "$bb dd if=/dev/zero of=/build/big bs=1M count=100 2>&1 || echo survived; : > $out",
        |job| job.limits.memory_mib = 64,
    );
    assert_eq!(build.exited(), 0, "{:?} {}", build.result, build.host.text());
    assert!(build.log().contains("No space left on device"), "{}", build.log());
    assert!(build.log().contains("survived"));
}

#[test]
fn files_in_memory_count_as_memory() {
    let script = "for d in /build /tmp /dev/shm; do $bb dd if=/dev/zero of=$d/big bs=1M count=30; done; $bb sleep 1000";
    let build = build_with("shm", script, |job| job.limits.memory_mib = 64);
    assert!(matches!(build.error(), SandboxError::OutOfMemory { mib: 64 }), "{:?}", build.result);
}

#[test]
fn a_large_output_streams_through_bounded_memory() {
    let store = Store::new("large");
    let count = Arc::new(Mutex::new(0));
    let host = Recorded { count_only: Some(Arc::clone(&count)), ..Recorded::default() };
    let job = job(&store, "$bb dd if=/dev/zero of=$out bs=1M count=100 2>/dev/null");
    let before = peak_memory();
    let build = run_job(job, host, &Cancel::new());
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert!(*count.lock().unwrap() > 100 << 20);
    assert!(peak_memory() - before < 16 << 20, "{} bytes more", peak_memory() - before);
}

/// Peak memory of this process, in bytes. Under nextest each test has a process of its own.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_missing_bubblewrap_says_what_to_install() {
    let store = Store::new("nobwrap");
    let mut config = NamespaceConfig::new(guest_binary(), shell_binary());
    config.bwrap = "/does/not/exist/bwrap".into();
    let backend = NamespaceBackend::new(config).unwrap();
    let error = backend.run(job(&store, ""), &mut Recorded::default(), &Cancel::new()).result.unwrap_err();
    assert!(matches!(error, SandboxError::Unavailable { .. }));
    assert!(error.to_string().contains("install the package bubblewrap"), "{error}");
}

#[test]
fn a_job_with_a_network_is_refused_and_not_run_without_it() {
    let refused = build_with("network", "true > $out", |job| job.network = true);
    assert!(matches!(refused.error(), SandboxError::Unavailable { .. }), "{:?}", refused.result);
    assert!(refused.error().to_string().contains("namespace sandbox has no network"));
    // Nor is a file left out that a builder would look for.
    let etc = |job: &mut Job| job.etc = vec![(crate::CERTIFICATES.into(), b"certificate".to_vec())];
    let refused = build_with("etc", "true > $out", etc);
    assert!(matches!(refused.error(), SandboxError::Setup { .. }), "{:?}", refused.result);
}

#[test]
fn a_builder_outside_is_nobody_even_if_the_agent_is_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only a root agent has rights to give up");
        return;
    }
    let store = Store::new("nobody");
    let word = format!("76543.{}", std::process::id());
    let cancel = Cancel::new();
    let job = job(&store, &format!("echo up; exec $bb sleep {word}"));
    let owner = Arc::new(Mutex::new(None));
    let (seen, stop, needle) = (Arc::clone(&owner), cancel.clone(), word.clone());
    let looker = std::thread::spawn(move || {
        let end = Instant::now() + PATIENCE;
        while seen.lock().unwrap().is_none() && Instant::now() < end {
            *seen.lock().unwrap() = owner_of(&needle);
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.cancel();
    });
    let build = run_job(job, Recorded::default(), &cancel);
    looker.join().unwrap();
    assert!(matches!(build.error(), SandboxError::Cancelled), "{:?}", build.result);
    assert_eq!(*owner.lock().unwrap(), Some(65534));
}

/// Set in the process of the ordinary user, which the next test starts.
const ORDINARY: &str = "BARNRAISER_TEST_AS_ORDINARY_USER";

#[test]
fn an_agent_that_is_not_root_builds_in_a_user_namespace() {
    if rustix::process::geteuid().is_root() && std::env::var_os(ORDINARY).is_none() {
        // The test runs once more, as a user who owns nothing but the files that the test makes.
        let programs = Store::new("programs");
        rustix::fs::chmod(&programs.dir, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        let copy = |from: &Path, name: &str| {
            let to = programs.dir.join(name);
            std::fs::copy(from, &to).unwrap();
            to
        };
        let own = copy(&std::env::current_exe().unwrap(), "test");
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(own)
            .args(["--exact", "namespace::tests::an_agent_that_is_not_root_builds_in_a_user_namespace"])
            .arg("--nocapture")
            .env(ORDINARY, "1")
            .env("BARNRAISER_GUEST", copy(&guest_binary(), "guest"))
            .env("BARNRAISER_SHELL", copy(&shell_binary(), "shell"))
            .current_dir("/")
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let build = build(
        "ordinary",
        "$bb cat /nix/store/2*-data > $out; for f in /nix/store/2*-data; do ( echo evil >> $f ) 2>/dev/null || echo refused; done",
    );
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert!(build.log().ends_with("refused\n"), "{}", build.log());
    assert_eq!(build.host.outputs.lock().unwrap()["out"], nar_of(b"input data\n", false));
}

/// The real user, outside of the sandbox, of the process with this word on its command line.
fn owner_of(word: &str) -> Option<u32> {
    let dir = std::fs::read_dir("/proc").ok()?.flatten().find(|e| {
        std::fs::read(e.path().join("cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).any(|arg| arg == word.as_bytes()))
    })?;
    let status = std::fs::read_to_string(dir.path().join("status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// The names that a builder sees in a directory of its own, in order, and the number of its filters for system calls.
fn listed(name: &str, random_order: bool) -> (Vec<String>, usize) {
    let script = r#"$bb mkdir d; i=0; while [ $i -lt 50 ]; do : > d/$i; i=$((i+1)); done
        $bb sed -n 's/^Seccomp_filters:[^0-9]*//p' /proc/self/status; $bb find d -type f; : > $out"#;
    let build = build_with(name, script, |job| job.random_order = random_order);
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    let log = build.log();
    let (filters, names) = log.split_once('\n').expect("lines");
    (names.lines().map(str::to_owned).collect(), filters.parse().expect("a number"))
}

#[test]
fn directories_are_in_another_order_in_each_build_if_the_job_says_so_and_else_no_call_is_filtered() {
    let (plain, filters) = listed("order-plain", false);
    let (one, more_filters) = listed("order-one", true);
    let (other, _) = listed("order-other", true);
    assert_ne!(one, other);
    assert_eq!(filters + 1, more_filters);
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(one), sorted(plain.clone()));
    assert_eq!(sorted(other), sorted(plain.clone()));
    assert_eq!(plain.len(), 50);
}

#[test]
fn a_large_tree_in_random_order_is_copied_archived_and_removed_whole() {
    // As its own processes and at the same time, as in a parallel build.
    let script = r#"$bb mkdir t; d=0; while [ $d -lt 50 ]; do
            $bb mkdir t/$d; (cd t/$d; $bb touch $($bb seq 1 100)); d=$((d+1)); done
        $bb mkdir flat; (cd flat; $bb touch $($bb seq 1 5000))
        for n in 1 2 3 4; do $bb cp -r t copy$n & done; wait
        for n in 1 2 3 4; do echo $($bb find copy$n -type f | $bb wc -l); done
        $bb tar cf all.tar t flat; echo $($bb tar tf all.tar | $bb grep -v '/$' | $bb wc -l)
        $bb mv t t2; $bb tar xf all.tar; $bb diff -r t t2; $bb cp -r flat flat2; $bb diff -r flat flat2
        $bb rm -r copy1 copy2 copy3 copy4 t t2 flat flat2; $bb ls; : > $out"#;
    let build = build_with("order-large", script, |job| job.random_order = true);
    assert_eq!(build.exited(), 0, "{}", build.host.text());
    assert_eq!(build.log(), "5000\n5000\n5000\n5000\n10000\nall.tar\n");
}

#[test]
fn a_builder_that_ends_amid_many_listings_ends_its_build() {
    let script = r#"$bb mkdir d; (cd d; $bb touch $($bb seq 1 2000))
        n=0; while [ $n -lt 100 ]; do (while :; do $bb find d > /dev/null; done) & n=$((n+1)); done
        $bb find d | $bb wc -l; : > $out"#;
    let build = build_with("order-flood", script, |job| {
        job.random_order = true;
        job.limits.processes = 1000;
    });
    assert_eq!((build.exited(), build.log().trim()), (0, "2001"), "{}", build.host.text());
}
