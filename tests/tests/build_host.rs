//! The box as `--build-host` of `nixos-rebuild`, and as the remote side of `nix-copy-closure`: the same
//! commands, with stock programs of every version. The commands are those of nixpkgs' nixos-rebuild.sh and
//! nixos-rebuild-ng (nix.py), and of colmena (src/nix/host/ssh.rs).

use std::process::Command;

use e2e::agent::Agent;
use e2e::clients::{Nix, Protocol, Stock, Version};
use e2e::drv::Drv;
use e2e::keys::Key;
use e2e::process::{self, Transcript};

const HOST: &str = "anyone@127.0.0.1";

/// A client with a configuration, and a box to build it.
struct Rebuild {
    agent: Agent,
    _key: Key,
    nix: Nix,
    other: Nix,
}

impl Rebuild {
    fn with(version: Version) -> Self {
        let key = Key::new("alice");
        let agent = Agent::start(&[("alice", &key)]);
        let stock = Stock { version, protocol: Protocol::Ssh };
        let (nix, other) = (Nix::over(stock, &agent, &key), Nix::over(stock, &agent, &key));
        Self { agent, _key: key, nix, other }
    }

    fn run(&self, program: &str, args: &[&str]) -> Transcript {
        process::run(self.nix.command(program).args(args))
    }

    /// A system whose build has an input, as a derivation in the client's store.
    fn instantiate(&self, script: &str) -> String {
        let kernel = Drv::new("kernel", "echo linux > $out");
        let system = Drv::new("system", script).input("kernel", &kernel);
        let said = self.run("nix-instantiate", &["--expr", &system.expr()]).ok();
        said.answer().to_owned()
    }

    /// Runs a command on the box, given as one string, since ssh joins its arguments.
    fn on_box(&self, command: &str) -> Transcript {
        process::run(self.nix.ssh().arg(command))
    }
}

const SYSTEM: &str = "mkdir $out; cat $kernel > $out/kernel; echo a line of log";

fn kernel(nix: &Nix, system: &str) -> String {
    std::fs::read_to_string(nix.local(system).join("kernel")).expect("the built file")
}

fn closures_are_copied_there_and_back(version: Version) {
    let rebuild = Rebuild::with(version);
    let expression = r#"builtins.toFile "b" "${builtins.toFile "a" "first"} and more""#;
    let said = rebuild.nix.run(["eval", "--raw", "--expr", expression]).ok();
    let path = said.answer();
    rebuild.run("nix-copy-closure", &["--to", HOST, path]).ok();
    process::run(rebuild.other.command("nix-copy-closure").args(["--from", HOST, path])).ok();
    assert!(std::fs::read_to_string(rebuild.other.local(path)).expect("the copy").ends_with(" and more"));
}

fn the_older_nixos_rebuild_builds_here(version: Version) {
    let rebuild = Rebuild::with(version);
    let drv = rebuild.instantiate(SYSTEM);
    rebuild.run("nix-copy-closure", &["--to", HOST, &drv]).ok();
    let built = rebuild.on_box(&format!("nix-store -r {drv} -k --option sandbox true --max-jobs 4")).ok();
    let system = built.answer();
    assert!(built.stderr.contains("a line of log"), "{built}");
    rebuild.run("nix-copy-closure", &["--from", HOST, system]).ok();
    assert_eq!(kernel(&rebuild.nix, system), "linux\n");
    // With a Nix of its own choice, whose path it queries first.
    assert_eq!(rebuild.on_box("uname -m").ok().answer(), "x86_64");
    let again = rebuild.on_box(&format!("env PATH=/nix/store/x-nix/bin:$PATH nix-store -r {drv}")).ok();
    assert_eq!(again.answer(), system);
}

fn the_newer_nixos_rebuild_builds_here(version: Version) {
    let rebuild = Rebuild::with(version);
    let drv = rebuild.instantiate(SYSTEM);
    rebuild.run("nix-copy-closure", &["--to", HOST, &drv]).ok();
    let said = rebuild.on_box("mktemp -d -t nixos-rebuild.XXXXX").ok();
    let folder = said.answer();
    let root = format!("{folder}/0123456789abcdef");
    let realise = format!("env -i PATH=${{PATH-}} nix-store --realise {drv} --add-root {root}");
    assert_eq!(rebuild.on_box(&realise).ok().answer(), root);
    let said = rebuild.on_box(&format!("readlink -f {root}")).ok();
    let system = said.answer();
    rebuild.on_box(&format!("rm -rf {folder}")).ok();
    rebuild.run("nix-copy-closure", &["--from", HOST, system]).ok();
    assert_eq!(kernel(&rebuild.nix, system), "linux\n");
    rebuild.on_box(&format!("readlink -f {root}")).failed();
}

fn a_configuration_from_a_flake_builds_here(version: Version) {
    let rebuild = Rebuild::with(version);
    let drv = rebuild.instantiate(SYSTEM);
    rebuild.nix.run(["copy", "--derivation", "--to", rebuild.nix.store(), &drv]).ok();
    let features = "--extra-experimental-features 'nix-command flakes'";
    let said = rebuild.on_box(&format!("nix {features} build '{drv}^*' --print-out-paths")).ok();
    let system = said.answer();
    rebuild.run("nix-copy-closure", &["--from", HOST, system]).ok();
    assert_eq!(kernel(&rebuild.nix, system), "linux\n");
}

fn colmena_builds_here_as_somebody_who_is_not_root(version: Version) {
    let rebuild = Rebuild::with(version);
    let drv = rebuild.instantiate(SYSTEM);
    rebuild.run("nix-copy-closure", &["--to", HOST, &drv]).ok();
    // The first command of nixos-rebuild dry-build.
    let planned = rebuild.on_box(&format!("nix-store --no-gc-warning -r {drv} --dry-run")).ok();
    assert_eq!(planned.stdout, "", "{planned}");
    assert!(
        planned.stderr.contains("2 derivations will be built") && planned.stderr.contains(&drv),
        "{planned}"
    );
    assert_eq!(rebuild.agent.count("build started"), 0);
    let built = rebuild.on_box(&format!("sudo -H -- nix-store --no-gc-warning --realise {drv}")).ok();
    rebuild.run("nix-copy-closure", &["--from", HOST, built.answer()]).ok();
    assert_eq!(kernel(&rebuild.nix, built.answer()), "linux\n");
}

fn a_build_that_fails_is_told_with_nix_exit_status(version: Version) {
    let rebuild = Rebuild::with(version);
    let drv = rebuild.instantiate("echo the reason; exit 7");
    rebuild.run("nix-copy-closure", &["--to", HOST, &drv]).ok();
    let said = rebuild.on_box(&format!("nix-store --realise {drv}")).failed();
    assert_eq!(said.status, Some(100), "{said}");
    assert_eq!(said.stdout, "", "{said}");
    assert!(said.stderr.contains("the reason") && said.stderr.contains("failed with exit code 7"), "{said}");
}

fn nothing_is_deployed_to_a_box(version: Version) {
    let rebuild = Rebuild::with(version);
    let system = "/nix/store/00000000000000000000000000000000-system";
    for command in [
        format!("nix-env -p /nix/var/nix/profiles/system --set {system}"),
        format!("{system}/bin/switch-to-configuration switch"),
        format!("sudo {system}/bin/switch-to-configuration switch"),
        format!("test -f {system}/bin/switch-to-configuration"),
        "systemd-run -E LOCALE_ARCHIVE --collect --pipe true".to_owned(),
        "cat /proc/sys/kernel/hostname".to_owned(),
    ] {
        let said = rebuild.on_box(&command);
        assert_eq!(said.status, Some(127), "{said}");
        assert_eq!(said.stderr.lines().count(), 1, "{said}");
    }
}

fn who_hangs_up_takes_the_build_along(version: Version) {
    let rebuild = Rebuild::with(version);
    let drv = rebuild.instantiate("sleep 600");
    rebuild.run("nix-copy-closure", &["--to", HOST, &drv]).ok();
    let mut ssh: Command = rebuild.nix.ssh();
    let realise = process::Running::start(ssh.arg(format!("nix-store --realise {drv}")));
    rebuild.agent.wait_for("build started");
    realise.kill();
    let end = rebuild.agent.wait_for("build finished");
    assert_eq!(end["ok"], false, "{end}");
    assert!(end["error"].as_str().is_some_and(|error| error.contains("cancelled")), "{end}");
    rebuild.agent.wait_for("command ended");
}

macro_rules! for_every_version {
    ($($rule:ident,)*) => {
        for_every_version!(@version nix_2_8 V2_8 [$($rule,)*]);
        for_every_version!(@version nix_2_26 V2_26 [$($rule,)*]);
        for_every_version!(@version nix_2_34 V2_34 [$($rule,)*]);
    };
    (@version $module:ident $version:ident [$($rule:ident,)*]) => {
        mod $module {
            $(
                #[test]
                fn $rule() {
                    super::$rule(e2e::clients::Version::$version);
                }
            )*
        }
    };
}

for_every_version! {
    closures_are_copied_there_and_back,
    the_older_nixos_rebuild_builds_here,
    the_newer_nixos_rebuild_builds_here,
    a_configuration_from_a_flake_builds_here,
    colmena_builds_here_as_somebody_who_is_not_root,
    a_build_that_fails_is_told_with_nix_exit_status,
    nothing_is_deployed_to_a_box,
    who_hangs_up_takes_the_build_along,
}
