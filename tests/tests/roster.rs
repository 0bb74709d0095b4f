//! From a commit in git to the front door: `access-manager sync` updates an agent that runs all the time.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::agent::{Agent, Setup};
use e2e::clients::{Nix, Version};
use e2e::drv::Drv;
use e2e::git::Repository;
use e2e::keys::Key;
use e2e::process::{self, Running, Transcript};
use e2e::stock_server::StockServer;
use e2e::{PATIENCE, place};
use tempfile::TempDir;

/// Exit codes of `access-manager sync`, as its `--help` lists them.
const UNREACHABLE: Option<i32> = Some(3);
const REWRITTEN: Option<i32> = Some(4);
const REFUSED: Option<i32> = Some(5);

const BAKED_IN: &str = "warning: the roster came with the image; the one in git could not be fetched";
const DENIED: &str = "Permission denied (publickey)";

/// A box after its boot: a folder for the roster and the state of `access-manager`.
struct BootedBox {
    dir: TempDir,
}

impl BootedBox {
    fn new() -> Self {
        Self { dir: place::scratch("roster") }
    }

    fn roster(&self) -> PathBuf {
        self.dir.path().join("roster.json")
    }

    fn roster_bytes(&self) -> Vec<u8> {
        std::fs::read(self.roster()).expect("a roster")
    }

    fn sync(&self, repository: &Path, more: &[&str]) -> Transcript {
        process::run(
            Command::new(place::program("access-manager"))
                .args(["sync", "--branch", "main", "--repo"])
                .arg(repository)
                .arg("--out")
                .arg(self.roster())
                .arg("--state-dir")
                .arg(self.dir.path().join("state"))
                .args(more),
        )
    }

    fn agent(&self) -> Agent {
        Setup::default().roster_at(&self.roster()).start(&[])
    }
}

/// A `users.nix` with these members.
fn users(members: &[(&str, &Key)]) -> String {
    let lines: String =
        members.iter().map(|(name, key)| format!("  {name}.keys = \"{}\";\n", key.public)).collect();
    format!("{{\n{lines}}}\n")
}

fn client(agent: &Agent, key: &Key) -> Nix {
    Nix::new(Version::V2_34, agent, key)
}

fn knock(agent: &Agent, key: &Key) -> Transcript {
    let nix = client(agent, key);
    nix.run(["store", "info", "--store", nix.store()])
}

/// Waits until the agent uses the roster of this commit.
fn goes_by(agent: &Agent, commit: &str) {
    agent.wait_for_event(&format!("a roster of commit {commit}"), |event| {
        event["message"] == "roster loaded" && event["commit"] == commit
    });
}

#[test]
fn an_added_member_gets_in_without_a_restart() {
    let (alice, bob) = (Key::new("alice"), Key::new("bob"));
    let (booted, repository) = (BootedBox::new(), Repository::new(&users(&[("alice", &alice)])));
    booted.sync(repository.path(), &[]).ok();
    let agent = booted.agent();
    knock(&agent, &alice).ok();
    knock(&agent, &bob).failed().says(&[DENIED]);

    let commit = repository.commit(&users(&[("alice", &alice), ("bob", &bob)]));
    booted.sync(repository.path(), &[]).ok();
    goes_by(&agent, &commit);
    knock(&agent, &bob).ok();
    knock(&agent, &alice).ok();
}

#[test]
fn a_key_nobody_in_the_roster_has_is_refused() {
    let alice = Key::new("alice");
    let (booted, repository) = (BootedBox::new(), Repository::new(&users(&[("alice", &alice)])));
    booted.sync(repository.path(), &[]).ok();
    let agent = booted.agent();
    knock(&agent, &Key::new("alice")).failed().says(&[DENIED]);
    assert_eq!(agent.count("logged in"), 0);
}

#[test]
fn a_removed_member_is_logged_out_and_its_build_ends() {
    let (alice, bob) = (Key::new("alice"), Key::new("bob"));
    let (booted, repository) =
        (BootedBox::new(), Repository::new(&users(&[("alice", &alice), ("bob", &bob)])));
    booted.sync(repository.path(), &[]).ok();
    let agent = booted.agent();
    let (alices, bobs) = (client(&agent, &alice), client(&agent, &bob));
    let mut alices_build = Running::start(&mut alices.build_at_box(&endless("alices")));
    let bobs_build = Running::start(&mut bobs.build_at_box(&endless("bobs")));
    alices_build.wait_for("alices> begun");
    bobs_build.wait_for("bobs> begun");
    assert!(builder_runs("alices") && builder_runs("bobs"));

    let commit = repository.commit(&users(&[("alice", &alice)]));
    booted.sync(repository.path(), &[]).ok();
    goes_by(&agent, &commit);
    bobs_build.finish().failed();
    let end = agent.wait_for("build finished");
    assert_eq!((&end["member"], &end["ok"]), (&"bob".into(), &false.into()), "{end}");
    assert!(gone(|| builder_runs("bobs")), "bob's builder still runs");
    knock(&agent, &bob).failed().says(&[DENIED]);
    // Other members are not affected.
    assert!(alices_build.is_running());
    assert!(builder_runs("alices"));
}

#[test]
fn a_malformed_users_nix_changes_nothing() {
    let (alice, bob) = (Key::new("alice"), Key::new("bob"));
    let (booted, repository) = (BootedBox::new(), Repository::new(&users(&[("alice", &alice)])));
    booted.sync(repository.path(), &[]).ok();
    let before = booted.roster_bytes();
    let agent = booted.agent();

    repository.commit(&users(&[("bob", &bob)]).replace(";\n", "\n"));
    let said = booted.sync(repository.path(), &[]);
    assert_eq!(said.status, REFUSED, "{said}");
    said.says(&["users.nix:3:1", "expected:"]);
    assert!(booted.roster_bytes() == before);
    knock(&agent, &alice).ok();
    knock(&agent, &bob).failed().says(&[DENIED]);

    // A valid commit after it is used again.
    let commit = repository.commit(&users(&[("bob", &bob)]));
    booted.sync(repository.path(), &[]).ok();
    goes_by(&agent, &commit);
    knock(&agent, &bob).ok();
}

#[test]
fn a_rewritten_branch_changes_nothing_until_it_is_accepted() {
    let (alice, mallory) = (Key::new("alice"), Key::new("mallory"));
    let (booted, repository) = (BootedBox::new(), Repository::new("{ }\n"));
    repository.commit(&users(&[("alice", &alice)]));
    booted.sync(repository.path(), &[]).ok();
    let before = booted.roster_bytes();
    let agent = booted.agent();

    let commit = repository.rewrite(&users(&[("mallory", &mallory)]));
    let said = booted.sync(repository.path(), &[]);
    assert_eq!(said.status, REWRITTEN, "{said}");
    said.says(&[&commit, "--accept"]);
    assert!(booted.roster_bytes() == before);
    knock(&agent, &alice).ok();
    knock(&agent, &mallory).failed().says(&[DENIED]);

    booted.sync(repository.path(), &["--accept", &commit]).ok();
    goes_by(&agent, &commit);
    knock(&agent, &alice).failed().says(&[DENIED]);
}

#[test]
fn without_network_the_first_boot_uses_the_baked_in_roster_and_says_so() {
    let (alice, bob) = (Key::new("alice"), Key::new("bob"));
    let (booted, baked_in) = (BootedBox::new(), Repository::new(&users(&[("alice", &alice)])));
    let image = booted.dir.path().join("baked-in.json");
    let evaluated = process::run(
        Command::new(place::program("access-manager"))
            .args(["eval", "--json"])
            .arg(baked_in.path().join("users.nix")),
    )
    .ok();
    std::fs::write(&image, evaluated.stdout).expect("the image's roster");
    // No server listens on this port.
    let nowhere = Path::new("https://127.0.0.1:1/roster.git");

    let fallback = ["--fallback", image.to_str().expect("a path in ASCII")];
    booted.sync(nowhere, &fallback).ok().says(&["warning"]);
    let agent = booted.agent();
    knock(&agent, &alice).ok().says(&[BAKED_IN]);
    knock(&agent, &bob).failed().says(&[DENIED]);

    // The network works again.
    let repository = Repository::new(&users(&[("alice", &alice), ("bob", &bob)]));
    let commit = repository.commit(&users(&[("bob", &bob)]));
    booted.sync(repository.path(), &fallback).ok();
    goes_by(&agent, &commit);
    let said = knock(&agent, &bob).ok();
    assert!(!said.stderr.contains(BAKED_IN), "{said}");

    // And it fails again: the fetched roster stays, and the image's roster does not come back.
    let before = booted.roster_bytes();
    let said = booted.sync(nowhere, &fallback);
    assert_eq!(said.status, UNREACHABLE, "{said}");
    assert!(booted.roster_bytes() == before);
}

#[test]
fn without_any_roster_nobody_gets_in_until_there_is_one() {
    let alice = Key::new("alice");
    let booted = BootedBox::new();
    let said = booted.sync(Path::new("/does/not/exist"), &[]);
    assert_eq!(said.status, UNREACHABLE, "{said}");
    said.says(&["/does/not/exist"]);
    let agent = booted.agent();
    knock(&agent, &alice).failed().says(&[DENIED]);

    let repository = Repository::new("{ }\n");
    let commit = repository.commit(&users(&[("alice", &alice)]));
    booted.sync(repository.path(), &[]).ok();
    goes_by(&agent, &commit);
    knock(&agent, &alice).ok();
}

#[test]
fn over_ssh_the_roster_comes_from_the_server_whose_host_key_is_known_and_from_no_other() {
    let (alice, deploy) = (Key::new("alice"), Key::new("deploy"));
    let repository = Repository::new(&users(&[("alice", &alice)]));
    let (booted, server) = (BootedBox::new(), StockServer::sharing(repository.path(), &deploy));
    let url = format!("ssh://anyone@127.0.0.1:{}/roster.git", server.port());
    let url = Path::new(&url);
    let file = |name: &str, text: &str| {
        let path = booted.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("ASCII").to_owned()
    };
    let port = server.port().to_string();
    let scanned = process::run(Command::new("ssh-keyscan").args(["-p", &port, "127.0.0.1"])).ok().stdout;
    let (known, key) = (file("known_hosts", &scanned), deploy.private());
    let key = key.to_str().expect("ASCII");

    let said = booted.sync(url, &["--ssh-key", key]);
    assert_eq!(said.status, Some(2), "{said}");
    said.says(&["give --known-hosts and --ssh-key"]);

    // The known key is that of another server, or this server is known at another port only.
    let other = Key::new("other").public;
    let other = other.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let wrong = file("wrong", &format!("[127.0.0.1]:{port} {other}\n"));
    let said = booted.sync(url, &["--ssh-key", key, "--known-hosts", &wrong]);
    assert_eq!(said.status, UNREACHABLE, "{said}");
    said.says(&[
        "shows the host key ssh-ed25519 SHA256:",
        "compare it with the keys that the host publishes",
    ]);
    let elsewhere = file("elsewhere", &scanned.replace(&port, "22"));
    let said = booted.sync(url, &["--ssh-key", key, "--known-hosts", &elsewhere]);
    said.failed().says(&["it has no key of [127.0.0.1]:"]);

    // A key that the server does not accept.
    let stranger = Key::new("stranger");
    let strangers = stranger.private();
    let said = booted.sync(url, &["--ssh-key", strangers.to_str().expect("ASCII"), "--known-hosts", &known]);
    assert_eq!(said.status, UNREACHABLE, "{said}");
    said.says(&["the server does not accept the key", "deploy key"]);
    assert!(!booted.roster().exists());

    booted.sync(url, &["--ssh-key", key, "--known-hosts", &known]).ok();
    let agent = booted.agent();
    knock(&agent, &alice).ok();
    // The next fetch finds what is new.
    let bob = Key::new("bob");
    let commit = repository.commit(&users(&[("bob", &bob)]));
    booted.sync(url, &["--ssh-key", key, "--known-hosts", &known]).ok();
    goes_by(&agent, &commit);
    knock(&agent, &alice).failed().says(&[DENIED]);
}

/// A builder that never ends by itself. Its arguments carry a mark that no other test's builder has.
fn endless(name: &str) -> String {
    Drv::new(name, &format!("{}; echo begun; while true; do sleep 0.1; done", mark(name))).expr()
}

fn mark(name: &str) -> String {
    format!(": {name}-of-{}", std::process::id())
}

/// Whether the builder with this mark runs: in the namespace sandbox it is a process of this machine.
fn builder_runs(name: &str) -> bool {
    // With the separators of a real argument list, which the client's copy of the derivation does not have.
    let arguments = format!("\0-e\0-c\0{};", mark(name)).into_bytes();
    std::fs::read_dir("/proc").expect("/proc").flatten().any(|process| {
        std::fs::read(process.path().join("cmdline"))
            .is_ok_and(|line| line.windows(arguments.len()).any(|window| window == arguments))
    })
}

/// Waits until `there` is false.
fn gone(there: impl Fn() -> bool) -> bool {
    let deadline = std::time::Instant::now() + PATIENCE;
    while there() {
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    true
}
