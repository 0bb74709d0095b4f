//! Tickets: their commands, both ways to log in with one, what it allows, and its end. Real OpenSSH, front door, protocol and
//! scheduler; a script plays the builders.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::cache::{Cache, as_it_is};
use common::client::{build_request, is_valid, wait_for_line, wait_for_start};
use common::scripted::{derivation, path, until};
use common::served::{Served, Session};
use common::{Agent, make_key, ssh};
use ledger::Principal;
use nix::{BuildMode, BuildStatus};
use nix_derivation::{ContentAddressMethod, HashAlgorithm};
use serde_json::{Value, json};
use store::signing::SecretKey;
use tokio::process::Command;
use wire::client::End;
use wire::worker::Request;

/// The two ways in which OpenSSH brings a token.
#[derive(Debug, Clone, Copy)]
enum Way {
    Prompt,
    Environment,
}

/// The OpenSSH client of somebody without a key of the roster, who has this token.
fn with_token(dir: &Path, port: u16, token: &str, way: Way) -> std::process::Command {
    let mut ssh = std::process::Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "ConnectTimeout=30",
    ])
    .args(["-o", &format!("UserKnownHostsFile={}", dir.join("known_hosts").display())])
    .args(["-o", "PreferredAuthentications=publickey,keyboard-interactive", "-o", "IdentitiesOnly=yes"])
    .args(["-p", &port.to_string(), "-l", "ticket"])
    .env_remove("SSH_AUTH_SOCK")
    .env("HOME", dir)
    .stdin(Stdio::null());
    match way {
        Way::Prompt => ssh.env("SSH_ASKPASS", askpass(dir, token)).env("SSH_ASKPASS_REQUIRE", "force"),
        Way::Environment => {
            ssh.args(["-o", "KbdInteractiveDevices=env", "-o", &format!("SetEnv=BARNRAISER_TICKET={token}")])
        }
    };
    ssh
}

/// A program that prints the token.
fn askpass(dir: &Path, token: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let name: String = token.chars().filter(char::is_ascii_alphanumeric).collect();
    let path = dir.join(format!("askpass-{name}"));
    if !path.exists() {
        std::fs::write(&path, format!("#!/bin/sh\necho '{token}'\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    }
    path
}

impl Served {
    /// Makes a ticket of alice, and returns its token.
    async fn ticket(&self, name: &str, options: &[&str]) -> String {
        let words = [&["ticket", "create", "--json", "--name", name], options].concat();
        let made: Value = serde_json::from_str(&self.output("alice", &words).await).expect("JSON");
        made["token"].as_str().expect("a token").to_owned()
    }

    async fn inspect(&self, name: &str) -> Value {
        let text = self.output("alice", &["ticket", "inspect", name, "--json"]).await;
        serde_json::from_str(&text).expect("JSON")
    }

    /// Runs a command of the holder of this token.
    async fn hold(&self, token: &str, way: Way, words: &[&str]) -> Output {
        let mut ssh = with_token(self.dir(), self.port, token, way);
        ssh.arg("127.0.0.1").args(words);
        Command::from(ssh).output().await.expect("ssh")
    }

    async fn session_of(&self, token: &str) -> Session {
        let mut ssh = with_token(self.dir(), self.port, token, Way::Environment);
        ssh.args(["127.0.0.1", "nix-daemon", "--stdio"]);
        Session::over(ssh).await
    }
}

/// The output of a command that had to succeed.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The message of a command that had to fail.
fn told(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until the box has ended the build that ran and these sessions. The token is then refused for this reason.
async fn ended(served: &Served, token: &str, sessions: impl IntoIterator<Item = Session>, why: &str) {
    served.scripted.until_cancelled(1).await;
    for session in sessions {
        session.ends().await;
    }
    for way in [Way::Prompt, Way::Environment] {
        let refused = told(&served.hold(token, way, &["whoami"]).await);
        assert!(refused.contains(why), "{way:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_a_ticket_logs_in_both_ways_that_stock_openssh_has() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &["--uses", "5"]).await;
    for way in [Way::Prompt, Way::Environment] {
        let who = said(&served.hold(&token, way, &["whoami"]).await);
        assert!(who.contains("friend (ticket of alice)") && who.contains("0 of 5"), "{way:?}: {who}");
    }
    let mut holder = served.session_of(&token).await;
    holder.build(derivation("t", "write:x", &[]), BuildStatus::Built).await;
    assert_eq!(served.inspect("friend").await["used"], 1);
    let list = served.output("alice", &["ticket", "list"]).await;
    let words: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["id", "ticket", "state", "expires", "builds"], "{list}");
    assert_eq!((&words[1][1..3], &words[1][5..]), (&["friend", "live"][..], &["1", "of", "5"][..]), "{list}");
    // A key of a member works with this user name as with any other.
    let mut alice = ssh(served.dir(), "alice", served.port);
    alice.args(["-l", "ticket", "whoami"]);
    assert!(
        said(&Command::from(alice).output().await.expect("ssh")).starts_with("member              alice\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_counts_also_when_it_is_sent_before_the_token() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &[]).await;
    // OpenSSH sends what `SendEnv` names before what `SetEnv` sets.
    let mut ssh = with_token(served.dir(), served.port, &token, Way::Environment);
    ssh.args(["-o", "SendEnv=BARN_TIMEOUT", "127.0.0.1", "settings"]).env("BARN_TIMEOUT", "61");
    let all = said(&Command::from(ssh).output().await.expect("ssh"));
    let is_set = |line: &str| line.split_whitespace().eq(["timeout", "61", "seconds", "ssh"]);
    assert!(all.lines().any(is_set), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_that_create_prints_works_as_it_is() {
    let served = Served::open_with_tickets("").await;
    let port = served.port.to_string();
    let host = format!("127.0.0.1:{port}");
    let text = served.output("alice", &["ticket", "create", "--name", "friend", "--host", &host]).await;
    let (_, config) = text.split_once("\nHost ").expect("a configuration");
    let (config, _) = config.split_once("\n\n").expect("its end");
    let file = served.dir().join("config");
    let known = served.dir().join("known");
    let more = format!("StrictHostKeyChecking no\n  UserKnownHostsFile {}", known.display());
    std::fs::write(&file, format!("Host {config}\n  {more}\n")).expect("written");
    let mut ssh = Command::new("ssh");
    ssh.arg("-F")
        .arg(&file)
        .args(["testbox-ticket", "whoami"])
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null());
    let who = said(&ssh.output().await.expect("ssh"));
    assert!(who.contains("friend (ticket of alice)"), "{who}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_once_unless_its_maker_wanted_to_see_it_again() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &[]).await;
    let again = told(&served.run("alice", &["ticket", "reveal", "friend"]).await);
    assert!(again.contains("was made without `--revealable`"), "{again}");
    let kept = served.ticket("kept", &["--revealable"]).await;
    assert_eq!(served.output("alice", &["ticket", "reveal", "kept"]).await, format!("{kept}\n"));
    for words in [&["ticket", "list", "--json"][..], &["ticket", "inspect", "kept"]] {
        let shown = served.output("alice", words).await;
        assert!(!shown.contains(&token) && !shown.contains(&kept), "{shown}");
    }
    // Bob sees nothing of them, and cannot end one; a maintainer can.
    assert_eq!(served.output("bob", &["ticket", "list", "--json"]).await, "[]\n");
    for words in [&["ticket", "list", "--all"][..], &["ticket", "revoke", "kept", "--all"]] {
        assert!(told(&served.run("bob", words).await).contains("`--all` is for maintainers"));
    }
    for words in [["ticket", "inspect", "kept"], ["ticket", "reveal", "kept"], ["ticket", "revoke", "kept"]] {
        assert!(told(&served.run("bob", &words).await).contains("you have no ticket `kept`"));
    }
    served.scripted.edit_roster(|roster| roster["members"][1]["role"] = "maintainer".into());
    let agent = served.scripted.agent.clone();
    let is_maintainer =
        move || agent.roster.borrow().by_name("bob").is_some_and(|bob| bob.role.name() == "maintainer");
    until("the role", is_maintainer).await;
    assert!(served.output("bob", &["ticket", "list", "--all"]).await.contains("alice"));
    served.output("bob", &["ticket", "revoke", "kept", "--all"]).await;
    assert_eq!(served.inspect("kept").await["state"], "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_runs_no_command_that_shows_or_gives_what_is_the_makers() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &[]).await;
    for words in [
        &["ticket", "create", "--name", "x"][..],
        &["ticket", "list"],
        &["keys", "list"],
        &["usage"],
        &["client-config"],
    ] {
        let refused = told(&served.hold(&token, Way::Environment, words).await);
        assert!(refused.contains("is for members only"), "{words:?}: {refused}");
    }
    for words in [&["help"][..], &["status"], &["signing-key"], &["builds", "list"], &["uname", "-m"]] {
        said(&served.hold(&token, Way::Environment, words).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_are_spent_when_builds_start_and_given_back_when_the_box_is_at_fault() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &["--uses", "2"]).await;
    let (mut holder, mut bob) = (served.session_of(&token).await, served.session("bob").await);
    holder.refused(derivation("broken", "broken", &[])).await;
    assert_eq!(served.inspect("friend").await["used"], 0, "the box was at fault");
    holder.build(derivation("bad", "exit:1", &[]), BuildStatus::PermanentFailure).await;
    holder.build(derivation("good", "write:x", &[]), BuildStatus::Built).await;
    let message = holder.refused(derivation("third", "write:x", &[])).await;
    assert!(message.contains("the ticket `friend` was for 2 builds (`--uses`)"), "{message}");
    assert_eq!(served.scripted.runs(), 2 + 3, "the broken one was started three times");
    // A result that exists costs nothing.
    bob.build(derivation("third", "write:x", &[]), BuildStatus::Built).await;
    holder.build(derivation("third", "write:x", &[]), BuildStatus::Substituted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_starts_again_with_more_memory_spends_one_use_and_all_of_its_time() {
    let served = Served::open_with_tickets("limits.max-memory-mib = 4096\nlimits.max-jobs = 4").await;
    let token = served.ticket("friend", &["--uses", "1"]).await;
    let mut holder = served.session_of(&token).await;
    holder.build(derivation("hungry", "cpu:10 needs:4000 write:x", &[]), BuildStatus::Built).await;
    let ticket = served.inspect("friend").await;
    assert_eq!((ticket["used"].as_u64(), served.scripted.runs()), (Some(1), 3), "{ticket}");
    let message = holder.refused(derivation("second", "write:x", &[])).await;
    assert!(message.contains("the ticket `friend` was for 1 builds"), "{message}");
    assert_eq!(served.used("alice").await["cpu_seconds"].as_f64(), Some(30.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_comes_back_when_the_box_fails_a_build_that_was_started_again_with_more_memory() {
    let served = Served::open_with_tickets("limits.max-memory-mib = 4096\nlimits.max-jobs = 4").await;
    let token = served.ticket("friend", &["--uses", "2"]).await;
    let mut holder = served.session_of(&token).await;
    // Out of memory, then broken, then built: one use, which is given back and spent again.
    holder.build(derivation("lucky", "needs:2000 breaks:2 write:x", &[]), BuildStatus::Built).await;
    assert_eq!((served.inspect("friend").await["used"].as_u64(), served.scripted.runs()), (Some(1), 3));
    holder.refused(derivation("unlucky", "needs:2000 broken", &[])).await;
    assert_eq!((served.inspect("friend").await["used"].as_u64(), served.scripted.runs()), (Some(1), 6));
    holder.build(derivation("last", "write:x", &[]), BuildStatus::Built).await;
    holder.refused(derivation("more", "write:x", &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waited_is_refused_at_its_turn_if_the_uses_are_gone_and_who_joined_it_builds_it() {
    let served = Served::open_with_tickets("limits.max-jobs = 1").await;
    let token = served.ticket("friend", &["--uses", "1"]).await;
    let (mut first, mut second, mut bob) =
        (served.session_of(&token).await, served.session_of(&token).await, served.session("bob").await);
    first.send(derivation("t", "gate write:x", &[])).await;
    served.scripted.until_runs(1).await;
    // It spent the only use, so this one is refused at once.
    let message = second.refused(derivation("u", "write:u", &[])).await;
    assert!(message.contains("(`--uses`)"), "{message}");
    served.scripted.script.gate.cancel();
    first.is(BuildStatus::Built).await;

    // Two that wait for the same use.
    let token = served.ticket("again", &["--uses", "1"]).await;
    let (mut first, mut second, mut alice) =
        (served.session_of(&token).await, served.session_of(&token).await, served.session("alice").await);
    alice.send(derivation("blocks", "log:sawing wait", &[])).await;
    wait_for_line(&mut alice.client, "sawing").await;
    first.send(derivation("v", "write:v", &[])).await;
    wait_for_start(&mut first.client).await;
    second.send(derivation("w", "write:w", &[])).await;
    wait_for_start(&mut second.client).await;
    bob.send(derivation("w", "write:w", &[])).await;
    wait_for_start(&mut bob.client).await;
    drop(alice);
    // Which of the two runs came first to the queue is not known here.
    let told = [first.told().await, second.told().await];
    let built = told.iter().filter(|told| told.status == BuildStatus::Built as u64).count();
    let refused = told.iter().filter(|told| told.message.contains("(`--uses`)")).count();
    assert_eq!((built, refused), (1, 1), "{told:?}");
    bob.is(BuildStatus::Built).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_what_runs_what_waits_and_the_connection() {
    let served = Served::open_with_tickets("limits.max-jobs = 1").await;
    let token = served.ticket("friend", &["--uses", "unlimited"]).await;
    let (mut runs, mut waits) = (served.session_of(&token).await, served.session_of(&token).await);
    runs.send(derivation("runs", "wait", &[])).await;
    served.scripted.until_runs(1).await;
    waits.send(derivation("waits", "write:x", &[])).await;
    wait_for_start(&mut waits.client).await;
    served.output("alice", &["ticket", "revoke", "friend"]).await;
    ended(&served, &token, [runs, waits], "the ticket `friend` was revoked").await;
    assert_eq!(served.scripted.runs(), 1, "the one that waited was built");
    // The name is free again, for another ticket.
    served
        .scripted
        .agent
        .tickets
        .gone()
        .iter()
        .for_each(|id| served.scripted.agent.tickets.dropped(id).expect("dropped"));
    assert_ne!(served.ticket("friend", &[]).await, token);
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_ends_what_runs_and_the_connection() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &["--expires", "3s"]).await;
    let mut holder = served.session_of(&token).await;
    holder.send(derivation("runs", "wait", &[])).await;
    served.scripted.until_runs(1).await;
    ended(&served, &token, [holder], "the ticket `friend` has expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_ends_when_its_maker_leaves_the_roster() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &[]).await;
    let mut holder = served.session_of(&token).await;
    holder.send(derivation("runs", "wait", &[])).await;
    served.scripted.until_runs(1).await;
    served.scripted.set_roster(&["bob"]);
    ended(&served, &token, [holder], "while the member who made it is not in the roster").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_all_builds_together_is_limited() {
    let served = Served::open_with_tickets("limits.max-build-seconds = 900").await;
    let token = served.ticket("friend", &["--uses", "9", "--max-build-time", "1s"]).await;
    let mut holder = served.session_of(&token).await;
    served.scripted.script.gate.cancel();
    // Plays a builder that ends at a time limit of less than two seconds.
    let message = holder.build(derivation("slow", "limit", &[]), BuildStatus::TimedOut).await.message;
    assert!(
        message.contains("the ticket `friend` was for 1 seconds of builds (`--max-build-time`)"),
        "{message}"
    );
    // What ran counts, and what is left is too short for another build.
    let message = holder.refused(derivation("next", "write:x", &[])).await;
    assert!(message.contains("(`--max-build-time`)"), "{message}");
    assert_eq!(served.scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_the_holder_are_limited_over_all_sessions() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &["--uses", "9", "--max-upload", "64K"]).await;
    // Each session is below the limit alone.
    let padding = "y".repeat(40_000);
    let (mut first, mut second) = (served.session_of(&token).await, served.session_of(&token).await);
    first.build(derivation("t", "write:x", &[("padding", &padding)]), BuildStatus::Built).await;
    let request = build_request(derivation("u", "write:x", &[("padding", &padding)]), BuildMode::Normal);
    // The box may hang up before all of it is sent.
    let _ = second.client.request(&request).await;
    let error = second.client.done().await.expect_err("more than the ticket allows");
    let error = format!("{error:?}");
    assert!(error.contains("65536 bytes from its holder (`--max-upload`)"), "{error}");
    assert_eq!(served.scripted.runs(), 1);
    let used = served.inspect("friend").await;
    assert!(used["upload_bytes"].as_u64().is_some_and(|bytes| bytes > 65_536), "{used}");
}

/// What comes from these would be no upload, and would need no use.
#[tokio::test(flavor = "multi_thread")]
async fn the_holder_has_no_caches_of_their_own_and_is_told_so() {
    let (cache, address) = Cache::open().await;
    let key = SecretKey::generate("own-1").expect("a key");
    let app = cache.publish("app", "application", &[], Some(&key), as_it_is);
    let served = Served::open_with_tickets(
        "member-substituters = \"any\"\nfetch.allow-private = true\nfetch.stall-seconds = 1\n",
    )
    .await;
    let token = served.ticket("friend", &[]).await;
    let ensure = async |ssh: std::process::Command| {
        let mut session = Session::over(ssh).await;
        session.client.request(&Request::EnsurePath { path: app.clone() }).await.expect("sent");
        matches!(session.client.log().await.expect("an answer").1, End::Last)
    };
    let with_own = |mut ssh: std::process::Command, words: &[&str]| {
        ssh.args(["-o", "SendEnv=BARN_SUBSTITUTERS BARN_TRUSTED_PUBLIC_KEYS", "127.0.0.1"]).args(words);
        ssh.env("BARN_SUBSTITUTERS", format!("http://{address}"));
        ssh.env("BARN_TRUSTED_PUBLIC_KEYS", key.public().to_string());
        ssh
    };
    let holder = || with_token(served.dir(), served.port, &token, Way::Environment);
    let store = ["nix-daemon", "--stdio"];
    assert!(!ensure(with_own(holder(), &store)).await);
    // Nor those that the roster names for who made the ticket.
    served.scripted.edit_roster(|roster| {
        roster["members"][0]["settings"] = json!({
            "substituters": [format!("http://{address}")],
            "trusted-public-keys": [key.public().to_string()],
        });
    });
    let explained = with_own(holder(), &["settings", "--explain", "substituters"]);
    let explained = Command::from(explained).output().await.expect("ssh");
    let (shown, warned) = (said(&explained), String::from_utf8_lossy(&explained.stderr).into_owned());
    assert!(shown.contains("has no caches of their own"), "{shown}");
    for setting in ["substituters", "trusted-public-keys"] {
        let line = format!(
            "the setting `{setting}` of your ssh environment does not count: who has a ticket, has no caches"
        );
        assert!(warned.contains(&line), "{warned}");
    }
    assert!(!ensure(with_own(holder(), &store)).await);
    assert_eq!(cache.all_asked(), 0);
    let mut alice = ssh(served.dir(), "alice", served.port);
    alice.args(store);
    assert!(ensure(alice).await && cache.all_asked() > 0, "the maker's are asked for the maker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_for_reading_builds_and_uploads_nothing() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("reader", &["--scope", "read"]).await;
    let mut holder = served.session_of(&token).await;
    holder.send(derivation("t", "write:x", &[])).await;
    let error = holder.client.done().await.expect_err("it is for reading");
    let error = format!("{error:?}");
    assert!(error.contains("the ticket `reader`, which is for reading only (`--scope read`)"), "{error}");
    assert!(!is_valid(&mut holder.client, &path("t")).await, "the session goes on, and nothing was built");
    let refused = told(
        &served.hold(&token, Way::Environment, &["nix-store", "-r", &path("t.drv").to_absolute_path()]).await,
    );
    assert!(refused.contains("`--scope read`"), "{refused}");
    assert_eq!(served.scripted.runs(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_ticket_is_of_use_only_with_its_key() {
    let served = Served::open_with_tickets("").await;
    for name in ["friend-key", "other-key"] {
        make_key(&served.dir().join(name));
    }
    let public = std::fs::read_to_string(served.dir().join("friend-key.pub")).expect("a key");
    let token = served.ticket("friend", &["--bind-key", public.trim()]).await;
    for way in [Way::Prompt, Way::Environment] {
        let refused = told(&served.hold(&token, way, &["whoami"]).await);
        assert!(refused.contains("is bound to an ssh key"), "{way:?}: {refused}");
        let run = async |key: &str, token: &str| {
            let mut ssh = with_token(served.dir(), served.port, token, way);
            ssh.arg("-i").arg(served.dir().join(key)).args(["127.0.0.1", "whoami"]);
            Command::from(ssh).output().await.expect("ssh")
        };
        assert!(told(&run("other-key", &token).await).contains("is bound to an ssh key"));
        let who = said(&run("friend-key", &token).await);
        assert!(who.contains("friend (ticket of alice)"), "{way:?}: {who}");
        // The key alone is no login.
        told(&run("friend-key", "barnraiser-ticket-wrong").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_holder_has_is_seen_by_nobody_else() {
    let served = Served::open_with_tickets("").await;
    let (one, two) = (served.ticket("one", &["--uses", "9"]).await, served.ticket("two", &[]).await);
    let mut holder = served.session_of(&one).await;
    holder.build(derivation("t", "write:x", &[]), BuildStatus::Built).await;
    assert!(is_valid(&mut holder.client, &path("t")).await);
    for other in [
        &mut served.session_of(&two).await,
        &mut served.session("alice").await,
        &mut served.session("bob").await,
    ] {
        assert!(!is_valid(&mut other.client, &path("t")).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_with_tickets_are_in_the_slots_and_on_the_account_of_their_maker() {
    let served = Served::open_with_tickets("limits.max-jobs = 4\nlimits.max-jobs-per-member = 1").await;
    let (one, two) = (served.ticket("one", &[]).await, served.ticket("two", &[]).await);
    let (mut first, mut second) = (served.session_of(&one).await, served.session_of(&two).await);
    let mut bob = served.session("bob").await;
    first.send(derivation("a", "cpu:90 log:sawing gate write:a", &[])).await;
    wait_for_line(&mut first.client, "sawing").await;
    second.send(derivation("b", "cpu:9 write:b", &[])).await;
    wait_for_start(&mut second.client).await;
    // A slot is free, but not one of alice's.
    bob.build(derivation("c", "write:c", &[]), BuildStatus::Built).await;
    assert_eq!(served.scripted.runs(), 2);
    served.scripted.script.gate.cancel();
    first.is(BuildStatus::Built).await;
    second.is(BuildStatus::Built).await;
    let used = served.scripted.agent.ledger.used_this_month(&Principal::member("alice"));
    assert_eq!(used.get(ledger::Resource::CpuSeconds), 99_000);
    assert!(served.output("alice", &["usage"]).await.contains("1 min 39 s"));
    // Each ticket has an account of its own besides.
    assert_eq!(served.inspect("one").await["cpu_seconds"], 90);
    assert_eq!(served.inspect("two").await["cpu_seconds"], 9);
    // Also by day and month.
    let report = served.output("alice", &["usage", "--per", "ticket", "--by", "day", "--json"]).await;
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let mut lines: Vec<(&str, f64, u64)> = report["usage"]
        .as_array()
        .expect("lines")
        .iter()
        .map(|line| {
            let (label, cpu) = (line["label"].as_str(), line["cpu_seconds"].as_f64());
            (label.expect("a name"), cpu.expect("a number"), line["builds"].as_u64().expect("a number"))
        })
        .collect();
    lines.sort_by_key(|(name, ..)| *name);
    assert_eq!(lines, [("one", 90.0, 1), ("two", 9.0, 1)]);
    assert_eq!(report["usage"][0]["sessions"], 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_maker_pays_for_what_holders_have_in_the_store_and_the_makers_limit_is_named() {
    let served = Served::open_with_tickets("").await;
    let token = served.ticket("friend", &["--uses", "9"]).await;
    let agent = &served.scripted.agent;
    served.scripted.limit("alice", serde_json::json!({ "max-store-mib": 1 }));
    let limit = || agent.roster.borrow().by_name("alice").and_then(|alice| alice.limits.max_store_mib);
    until("the limit of alice", || limit() == Some(1)).await;
    let (mut holder, mut bob) = (served.session_of(&token).await, served.session("bob").await);
    holder.build(derivation("t", "write:x", &[]), BuildStatus::Built).await;
    let alice = store::Member::new("alice");
    assert!(agent.store.view(&alice).charged().0 > 0, "what the holder's view has");
    // Almost all of the mebibyte, which a session of alice needs.
    let needed = agent.store.view(&alice).holding();
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    needed.add_ca("large", method, algorithm, &[].into(), &mut &[b'x'; 1_020_000][..]).expect("room for it");
    let refused = holder.build(derivation("u", "write:y", &[]), BuildStatus::TransientFailure).await;
    for part in ["alice, who made the ticket", "of the 1 MiB", "`max-store-mib` of alice in the roster"] {
        assert!(refused.message.contains(part), "{part}: {refused:?}");
    }
    bob.build(derivation("v", "write:z", &[]), BuildStatus::Built).await;
    // The holder sees the part of their view, and not what alice has.
    let whoami = said(&served.hold(&token, Way::Environment, &["whoami", "--json"]).await);
    let whoami: Value = serde_json::from_str(&whoami).expect("JSON");
    assert!(whoami["store_bytes"].as_u64().is_some_and(|bytes| bytes < 100_000), "{whoami}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_month_of_the_maker_counts_and_the_holder_learns_no_more_than_that_it_is_over() {
    let served = Served::open_with_tickets("limits.max-cpu-hours-per-month = 1").await;
    let token = served.ticket("friend", &["--uses", "9"]).await;
    let (mut holder, mut alice) = (served.session_of(&token).await, served.session("alice").await);
    holder.build(derivation("t", "cpu:3600 write:x", &[]), BuildStatus::Built).await;
    let message = holder.refused(derivation("u", "write:u", &[])).await;
    assert!(message.contains("alice, who made this ticket, has used up the CPU hours"), "{message}");
    assert!(!message.contains("1.0"), "{message}");
    let message = alice.refused(derivation("v", "write:v", &[])).await;
    assert!(message.contains("you have used 1.0 of 1 CPU hours"), "{message}");
    assert_eq!(served.inspect("friend").await["used"], 1, "a build that is refused takes no use");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_options_and_limits_of_the_box_are_named() {
    let served =
        Served::open_with_tickets("limits.max-tickets-per-member = 2\nlimits.max-ticket-seconds = 3600")
            .await;
    let create = |options: &[&str]| {
        [&["ticket", "create", "--name", "x"], options]
            .concat()
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    for (options, expected) in [
        (&["--expires", "2h"][..], "1h at most (limits.max-ticket-seconds)"),
        (&["--expires", "2"], "write it as 90s, 30m"),
        (&["--uses", "0"], "or `unlimited`"),
        (&["--max-upload", "20"], "such as 500M or 20G"),
        (&["--bind-key", "ssh-ed25519", "AAAA"], "is not an ssh public key"),
        (&["--scope", "admin"], "invalid value 'admin'"),
    ] {
        let words = create(options);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = told(&served.run("alice", &words).await);
        assert!(said.contains(expected), "{options:?}: {said}");
    }
    for name in ["one", "two"] {
        served.ticket(name, &["--expires", "1h"]).await;
    }
    let said = told(&served.run("alice", &["ticket", "create", "--expires", "1h", "--name", "one"]).await);
    assert!(said.contains("you have a live ticket `one` already"), "{said}");
    let said = told(&served.run("alice", &["ticket", "create", "--expires", "1h", "--name", "x"]).await);
    assert!(said.contains("limits.max-tickets-per-member"), "{said}");
}

#[test]
fn guessing_is_slowed_logged_and_in_no_log_is_a_token() {
    let agent = Agent::start(&["alice"], "");
    let output =
        agent.ssh("alice").args(["ticket", "create", "--name", "friend", "--json"]).output().expect("ssh");
    let made: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let token = made["token"].as_str().expect("a token").to_owned();
    let other_end = if token.ends_with("AA") { "BA" } else { "AA" };
    let wrong = format!("{}{other_end}", &token[..token.len() - 2]);
    let guess = |way| {
        let mut ssh = with_token(agent.path(), agent.port, &wrong, way);
        ssh.args(["-o", "NumberOfPasswordPrompts=9", "127.0.0.1", "whoami"]).output().expect("ssh")
    };
    let denied = told(&guess(Way::Prompt));
    assert!(denied.contains("Permission denied"), "{denied}");
    let denied = told(&guess(Way::Environment));
    assert!(denied.contains("BARNRAISER_TICKET is no ticket of this box"), "{denied}");
    agent.wait_for("login denied: no ticket has this token");
    let audit = agent.path().join("state/audit.jsonl");
    let is_noted =
        || std::fs::read_to_string(&audit).is_ok_and(|text| text.contains("no ticket has this token"));
    common::until("the guess to be in the audit", is_noted);
    // Three guesses of one connection are looked at, however often a client is ready to try.
    let count = |agent: &Agent| agent.log_text().matches("no ticket has this token").count();
    assert_eq!(count(&agent), 4);
    // The box then refuses the address for a while.
    let mut held_off = false;
    for _ in 0..20 {
        held_off |= !guess(Way::Environment).status.success()
            && agent.log_text().contains("limits.per-source-penalties");
        if held_off {
            break;
        }
    }
    assert!(held_off, "{}", agent.log_text());
    assert!(!agent.log_text().contains(&token[20..]) && !agent.log_text().contains(&wrong[20..]));
}

#[test]
fn a_restart_keeps_tickets_and_a_revocation() {
    let mut agent = Agent::start(&["alice"], "");
    let create = ["ticket", "create", "--name", "friend", "--uses", "3", "--json"];
    let made: Value =
        serde_json::from_slice(&agent.ssh("alice").args(create).output().expect("ssh").stdout).expect("JSON");
    let token = made["token"].as_str().expect("a token").to_owned();
    for signal in ["-TERM", "-KILL"] {
        agent.signal(signal);
        agent.start_again();
        let mut ssh = with_token(agent.path(), agent.port, &token, Way::Environment);
        let who = said(&ssh.args(["127.0.0.1", "whoami"]).output().expect("ssh"));
        assert!(who.contains("friend (ticket of alice)") && who.contains("0 of 3"), "{who}");
    }
    assert!(agent.ssh("alice").args(["ticket", "revoke", "friend"]).output().expect("ssh").status.success());
    // The data of the holder is deleted at once, although there is none.
    agent.wait_for("claims of a former member are removed");
    agent.signal("-KILL");
    agent.start_again();
    let mut ssh = with_token(agent.path(), agent.port, &token, Way::Environment);
    let refused = told(&ssh.args(["127.0.0.1", "whoami"]).output().expect("ssh"));
    assert!(refused.contains("was revoked"), "{refused}");
}
