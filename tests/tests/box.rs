//! The whole box: netbooted in QEMU through iPXE and HTTP, roster from git, builds in real KVM micro-VMs, stock Nix
//! clients of every version.
//!
//! One test and one boot, because a boot under software emulation takes a minute: the cases run in order and
//! each prints its duration. The box and its git server are those of `make up` (`tests/scripts/box`), on
//! ports of their own.
//! Not here: tests that do not need the box (the other files run an agent on this machine, which is much
//! faster).

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::clients::Version;
use e2e::keys::Key;
use e2e::place;
use e2e::published::{LOOK_FOR_A_WAY_OUT, LOOK_FOR_COUNTERS};
use tempfile::TempDir;

/// Upper bound of one command, in seconds: nested software emulation, on a machine that may be busy.
const PATIENCE: &str = "1500";
/// The box fetches its roster every minute; the agent checks the file every second.
const ROSTER: Duration = Duration::from_secs(300);

#[test]
fn a_netbooted_box_builds_in_micro_vms_for_every_stock_nix() {
    let barn = Barn::boot();
    let first = Machine::new(&barn, Version::V2_26);

    barn.case("the roster from git lets its member in", || {
        // The roster in the image does not have this key.
        first.nix(&["store", "ping", "--store", "ssh-ng://box"]).ok();
    });
    barn.case("a key nobody merged stays out", || {
        let stranger = Machine::with_key(&barn, Version::V2_26, &Key::new("stranger").private());
        stranger.nix(&["store", "ping", "--store", "ssh-ng://box"]).fails(&["Permission denied"]);
    });
    barn.case("a C compiler is bootstrapped, and zlib and lua build and test themselves", || {
        let built = first.build(Way::Store, &["-f", "examples", "zlib", "lua"]).ok();
        built.says(&["zlib shared test OK", "lua self-test: 15 checks passed"]);
    });
    for version in Version::ALL {
        let machine = Machine::new(&barn, version);
        for way in [Way::Store, Way::Builders] {
            barn.case(&format!("Nix {} builds a C program through {way:?}", version.name()), || {
                machine.builds_and_runs_hello(way);
            });
        }
    }
    barn.case("Nix's own builders run in a micro-VM, and what comes out may decide about its path", || {
        let expression = "let e = import /src/examples { }; environment = derivation { name = \"environment\"; \
             system = \"builtin\"; builder = \"builtin:buildenv\"; manifest = builtins.toFile \"manifest\" \"[ ]\"; \
             derivations = [ \"true\" \"5\" \"1\" e.zlib \"true\" \"5\" \"1\" e.lua ]; }; \
             channel = derivation { name = \"channel\"; system = \"builtin\"; builder = \"builtin:unpack-channel\"; \
             channelName = \"zlib\"; src = e.source \"zlib\"; }; \
             in derivation { name = \"look\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; inherit environment channel; \
             __contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; \
             args = [ \"-c\" \"test -x $environment/bin/lua && test -e $environment/include/zlib.h && \
             test -e $channel/zlib/zlib.h && echo fine > $out\" ]; }";
        let features = ["--extra-experimental-features", "ca-derivations"];
        first.build(Way::Store, &[&features[..], &["--expr", expression]].concat()).ok();
    });
    barn.case("a builder that fails shows its status and its words", || {
        let failed = first.build(Way::Store, &["--expr", &shell("fails", "echo last words >&2; exit 3")]);
        failed.fails(&["exit code 3", "last words"]);
    });
    barn.case("a builder that forks without end hurts only itself, and hears of the limit", || {
        let bomb = "f() { f & f; }; f; exit 1";
        first.build(Way::Store, &["--expr", &shell("bomb", bomb)]).fails(&["processes"]);
        first.nix(&["store", "ping", "--store", "ssh-ng://box"]).ok();
    });
    barn.case("a builder that fills memory hurts only itself, and hears of the limit", || {
        let hog = "x=aaaaaaaa; while :; do x=$x$x; done";
        first.build(Way::Store, &["--expr", &shell("hog", hog)]).fails(&["memory", "MiB"]);
        first.nix(&["store", "ping", "--store", "ssh-ng://box"]).ok();
    });
    // Stock clients send no time-out of their own through ssh-ng, so the limit comes from the roster.
    barn.case("a limit merged into the roster holds, and a builder that never ends is ended by it", || {
        let key = std::fs::read_to_string(barn.state.path().join("key.pub")).expect("the public key");
        barn.merge(&format!(
            "import ./project.nix // {{ demo = {{ keys = [ \"{}\" ]; limits.maxBuildSeconds = 20; }}; }}\n",
            key.trim()
        ));
        let endless = shell("endless", "while :; do :; done");
        first
            .build(Way::Store, &["--expr", &endless])
            .fails(&["timed out after 20 seconds", "max-build-seconds"]);
    });
    // The script is that of the namespace sandbox (`attacks/published.rs`), with a check of the processor for
    // VMs only.
    barn.case("a builder finds no way out of its micro-VM, and the box still builds after all that", || {
        let script = format!("{LOOK_FOR_COUNTERS}{LOOK_FOR_A_WAY_OUT}");
        first.build(Way::Store, &["--expr", &shell("after", &script)]).ok();
    });
    barn.case("a member taken out of the roster in git gets no further", || {
        barn.commit("import ./project.nix\n");
        let deadline = Instant::now() + ROSTER;
        while first.nix(&["store", "ping", "--store", "ssh-ng://box"]).success {
            assert!(Instant::now() < deadline, "still let in after {ROSTER:?}");
            std::thread::sleep(Duration::from_secs(5));
        }
    });
}

/// The box, its git server and its boot server. Ended when dropped; after a failure the end of the console is
/// shown.
struct Barn {
    state: TempDir,
    port: u16,
    started: Instant,
}

impl Barn {
    fn boot() -> Barn {
        let image = place::target().join("image/manifest.json");
        assert!(image.exists(), "{} is missing\nhint: run `make image`", image.display());
        let barn = Barn { state: place::scratch("box"), port: free_ports(), started: Instant::now() };
        barn.case("the box boots through iPXE and answers ssh", || barn.script("up").ok().show());
        barn
    }

    /// Runs `tests/scripts/box` with its arguments.
    fn script(&self, verb: &str) -> Ran {
        let mut command = Command::new(place::project().join("tests/scripts/box"));
        command.arg(verb).arg(self.state.path());
        if verb == "up" {
            command.arg(self.port.to_string());
        }
        Ran::of(&mut command)
    }

    fn case(&self, rule: &str, body: impl FnOnce()) {
        let begin = Instant::now();
        eprintln!("[{:>4} s] {rule} ...", self.started.elapsed().as_secs());
        body();
        eprintln!(
            "[{:>4} s] {rule}: yes, {:.1} s",
            self.started.elapsed().as_secs(),
            begin.elapsed().as_secs_f32()
        );
    }

    /// Commits this `users.nix` to the roster's repository; returns the commit.
    fn commit(&self, users: &str) -> String {
        let repository = self.state.path().join("roster");
        std::fs::write(repository.join("users.nix"), users).expect("the roster can be written");
        let git = |words: &[&str]| {
            let mut git = Command::new("git");
            git.arg("-C").arg(&repository).args(["-c", "user.name=test", "-c", "user.email=test@localhost"]);
            Ran::of(git.args(words)).ok().stdout
        };
        git(&["commit", "-q", "-a", "-m", "Change the roster"]);
        git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Commits, and waits until the agent reports on the console that it uses this roster.
    fn merge(&self, users: &str) {
        let commit = self.commit(users);
        let deadline = Instant::now() + ROSTER;
        loop {
            let serial = std::fs::read(self.state.path().join("try/serial.log")).unwrap_or_default();
            let serial = String::from_utf8_lossy(&serial);
            if serial.lines().any(|line| line.contains("\"roster ") && line.contains(&commit)) {
                return;
            }
            assert!(Instant::now() < deadline, "the agent did not load commit {commit} within {ROSTER:?}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

impl Drop for Barn {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let serial = std::fs::read(self.state.path().join("try/serial.log")).unwrap_or_default();
            let serial = String::from_utf8_lossy(&serial).into_owned();
            let lines: Vec<&str> = serial.lines().collect();
            // Its first words in each boot. What was before the second one says why the box booted again.
            let boots = lines.iter().enumerate().filter(|(_, line)| line.contains("Linux version "));
            let mut ends: Vec<usize> = boots.skip(1).map(|(number, _)| number).collect();
            ends.push(lines.len());
            for (boot, end) in ends.into_iter().enumerate() {
                eprintln!("--- the console of boot {} of the box ends with", boot + 1);
                lines[end.saturating_sub(80)..end].iter().for_each(|line| eprintln!("{line}"));
            }
        }
        let down = self.script("down");
        if !down.success {
            down.show();
        }
    }
}

/// A client's way of using the box.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// `--store`: the box's own store.
    Store,
    /// `--builders`: a local store, the box builds.
    Builders,
}

/// A member's machine with one version of stock Nix.
struct Machine {
    version: Version,
    home: TempDir,
}

impl Machine {
    fn new(barn: &Barn, version: Version) -> Machine {
        Machine::with_key(barn, version, &barn.state.path().join("key"))
    }

    fn with_key(barn: &Barn, version: Version, key: &PathBuf) -> Machine {
        let home = place::scratch("client");
        let ssh = home.path().join(".ssh");
        std::fs::create_dir(&ssh).expect("a folder");
        std::fs::copy(key, ssh.join("id_ed25519")).expect("the key");
        let config = format!(
            "Host box\n  HostName 127.0.0.1\n  Port {}\n  User anybody\n  IdentityFile /root/.ssh/id_ed25519\n  \
             IdentitiesOnly yes\n  BatchMode yes\n  StrictHostKeyChecking accept-new\n",
            barn.port
        );
        std::fs::write(ssh.join("config"), config).expect("the ssh configuration");
        Machine { version, home }
    }

    fn run(&self, words: &[&str]) -> Ran {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", PATIENCE]).arg(place::project().join("tests/scripts/nix-client"));
        command.arg("run").arg(self.version.name()).arg(self.home.path()).args(words);
        Ran::of(&mut command)
    }

    fn nix(&self, words: &[&str]) -> Ran {
        self.run(&[&["nix"], words].concat())
    }

    fn build(&self, way: Way, what: &[&str]) -> Ran {
        let by: &[&str] = match way {
            Way::Store => &["--store", "ssh-ng://box", "--eval-store", "auto"],
            Way::Builders => &["--max-jobs", "0", "--builders", "ssh-ng://box x86_64-linux"],
        };
        self.nix(&[&["build", "-L", "--no-link", "--json", "--impure"], by, what].concat())
    }

    /// A different derivation each time, so that each version and way has its own build in its own micro-VM.
    fn builds_and_runs_hello(&self, way: Way) {
        let expression = format!(
            "let e = import /src/examples {{ }}; in import /src/examples/hello.nix (e // {{ \
             cPackage = attrs: e.cPackage (attrs // {{ tag = \"{} {way:?}\"; }}); }})",
            self.version.name()
        );
        let built = self.build(way, &["--expr", &expression]).ok();
        let kernel = std::fs::read_to_string(place::target().join("guest/kernel-version"))
            .expect("the guest's kernel");
        built.says(&[&format!("kernel of this builder: {}", kernel.trim())]);
        let devices =
            built.stderr.lines().find_map(|line| line.split_once("network devices of this builder:"));
        assert_eq!(devices.map(|(_, names)| names.trim()), Some("lo"), "{}", built.account());

        let answer: serde_json::Value = serde_json::from_str(&built.stdout).expect("JSON");
        let hello = answer[0]["outputs"]["out"].as_str().expect("an output").to_owned();
        if let Way::Store = way {
            // The box built all of it from derivations and signed it, so the client needs only its key.
            let key = self.run(&["ssh", "box", "signing-key"]).ok().stdout;
            let trusted = ["--option", "trusted-public-keys", key.trim()];
            self.nix(&[&["copy", "--from", "ssh-ng://box"][..], &trusted, &[&hello]].concat()).ok();
        }
        let said = self.run(&[&format!("{hello}/bin/hello")]).ok();
        assert!(said.stdout.starts_with("Hello from a barn"), "{}", said.account());
    }
}

/// A derivation for the sandbox's own `/bin/sh`, using only builtins.
fn shell(name: &str, script: &str) -> String {
    let script = script.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "derivation {{ name = \"{name}\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" \"{script}\" ]; }}"
    )
}

/// Two adjacent free ports: the first for ssh, the second for git.
fn free_ports() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let port = first.local_addr().expect("an address").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
    panic!("no two free ports next to each other on loopback");
}

/// A finished command. Unlike in `e2e::process`, `timeout` limits its time, since builds on the box take
/// long.
struct Ran {
    command: String,
    success: bool,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(command: &mut Command) -> Ran {
        let text = format!("{command:?}");
        let output =
            command.stdin(std::process::Stdio::null()).output().unwrap_or_else(|e| panic!("{text}: {e}"));
        Ran {
            command: text,
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn ok(self) -> Ran {
        assert!(self.success, "this had to succeed: {}", self.account());
        self
    }

    #[track_caller]
    fn fails(self, saying: &[&str]) {
        assert!(!self.success, "this had to fail: {}", self.account());
        self.says(saying);
    }

    #[track_caller]
    fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} had to be said: {}", self.account());
        }
    }

    fn show(&self) {
        eprint!("{}{}", self.stdout, self.stderr);
    }

    fn account(&self) -> String {
        format!("{}\n{}\n{}", self.command, self.stdout, self.stderr)
    }
}
