//! `ssh box client-config`: a stock client is configured with what the box prints, and nothing else.

use e2e::clients::{Stock, outputs};
use e2e::process::{self, run};
use serde_json::Value;

use crate::Alice;

/// What the box prints for this client, whose key file is where its machine has it.
fn printed(alice: &Alice, format: &str) -> String {
    let host = format!("127.0.0.1:{}", alice.agent.port());
    let command = format!("client-config --format {format} --host {host} --key /root/keys/key");
    process::run(alice.nix.ssh().arg(command)).ok().stdout
}

/// A program of the client that knows no options of ssh but those in its configuration.
fn configured(alice: &Alice, words: &[&str]) -> process::Transcript {
    run(alice.nix.command("env").args(["-u", "NIX_SSHOPTS"]).args(words))
}

pub fn what_the_box_prints_is_a_configuration_that_works(stock: Stock) {
    let alice = Alice::with(stock);
    let ssh = alice.nix.home().join(".ssh");
    std::fs::create_dir(&ssh).expect("a folder");
    let config = printed(&alice, "ssh");
    std::fs::write(ssh.join("config"), &config).expect("written");
    let known = config.lines().filter_map(|line| line.strip_prefix("# testbox "));
    let known: String = known.map(|key| format!("testbox {key}\n")).collect();
    std::fs::write(ssh.join("known_hosts"), known).expect("written");

    // The host key is checked, and commands of a person share a connection.
    let logins = alice.agent.count("logged in");
    let whoami = "ssh -o StrictHostKeyChecking=yes testbox-shared whoami";
    let twice = format!("{whoami}; {whoami} > again; ssh -O exit testbox-shared");
    let said = configured(&alice, &["bash", "-euc", &twice]).ok();
    assert_eq!(alice.agent.count("logged in"), logins + 1);
    let said_again = std::fs::read_to_string(alice.nix.home().join("again")).expect("written");
    assert_eq!(said.stdout, said_again);
    assert!(said.stdout.starts_with("member              alice\n"), "{said}");

    let machines = printed(&alice, "machines");
    let machine = machines.lines().find(|line| !line.starts_with('#')).expect("a line");
    let nix_conf = printed(&alice, "nix.conf");
    assert!(nix_conf.lines().any(|line| line == format!("builders = {machine}")), "{nix_conf}");
    std::fs::write(alice.nix.home().join("nix.conf"), &nix_conf).expect("written");
    let expression = "derivation { name = \"configured\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
                      args = [ \"-c\" \"echo built > $out\" ]; }";
    let build = "export NIX_CONFIG=\"$NIX_CONFIG\n$(cat nix.conf)\"; \
                 nix build --max-jobs 0 --no-link --json --impure --expr \"$1\"";
    let built = configured(&alice, &["bash", "-euc", build, "build", expression]).ok();
    let out = std::fs::read_to_string(alice.nix.local(&outputs(&built)["out"])).expect("the output");
    assert_eq!(out, "built\n");
    alice.agent.wait_for("build finished");
}

pub fn the_modules_that_the_box_prints_evaluate(stock: Stock) {
    let alice = Alice::with(stock);
    let values: Value = serde_json::from_str(&printed(&alice, "json")).expect("JSON");
    for (format, ssh) in [
        ("nixos", "programs.ssh.extraConfig"),
        ("nix-darwin", "environment.etc.\"ssh/ssh_config.d/100-testbox.conf\".text"),
    ] {
        let file = alice.nix.home().join("module.nix");
        std::fs::write(&file, printed(&alice, format)).expect("written");
        let expression = format!(
            "let module = import ./module.nix {{ }}; in {{ machine = builtins.head module.nix.buildMachines; \
             keys = module.nix.settings.trusted-public-keys; ssh = module.{ssh}; \
             known = module.programs.ssh.knownHosts.testbox.publicKey; }}"
        );
        let read = run(alice.nix.command("nix-instantiate").args([
            "--eval",
            "--strict",
            "--json",
            "-E",
            &expression,
        ]));
        let module: Value = serde_json::from_str(read.ok().answer()).expect("JSON");
        for (name, value) in [
            ("hostName", &values["alias"]),
            ("sshUser", &values["user"]),
            ("sshKey", &values["key"]),
            ("systems", &values["systems"]),
            ("supportedFeatures", &values["features"]),
            ("maxJobs", &values["max_jobs"]),
        ] {
            assert_eq!(module["machine"][name], *value, "{format}: {name}");
        }
        assert_eq!((&module["keys"][0], &module["known"]), (&values["signing_key"], &values["host_key"]));
        assert!(
            module["ssh"].as_str().expect("text").contains(&format!("  Port {}\n", values["port"])),
            "{module}"
        );
    }
}
