//! Settings on levels: what the box, the roster and the variables of a client say, and what comes of it. With the real
//! ssh client where variables travel, and with scripted builders where builds follow.

mod common;

use std::process::Output;

use common::Agent;
use common::client::{build, send, told, wait_for_line};
use common::scripted::{Scripted, derivation, from_client, path, until};
use daemon::SessionOptions;
use members::Member;
use nix::BuildStatus;
use serde_json::{Value, json};
use wire::worker::Request;

fn ssh(agent: &Agent, variables: &str, command: &str) -> Output {
    let mut ssh = agent.ssh("alice");
    if !variables.is_empty() {
        // The client accepts options after the host, too.
        ssh.args(["-o", &format!("SetEnv={variables}")]);
    }
    ssh.arg(command).output().expect("ssh")
}

fn text(output: &Output) -> (String, String, Option<i32>) {
    let of = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    (of(&output.stdout), of(&output.stderr), output.status.code())
}

fn explained(agent: &Agent, variables: &str, name: &str) -> Value {
    let (stdout, stderr, status) = text(&ssh(agent, variables, &format!("settings --explain {name} --json")));
    assert_eq!(status, Some(0), "{stderr}");
    serde_json::from_str(&stdout).expect("JSON")
}

fn set(agent: &Agent, settings: Value) {
    agent.edit_roster(|roster| roster["members"][0]["settings"] = settings);
}

#[test]
fn explain_says_which_level_won_and_why_the_others_did_not() {
    let agent = Agent::start(&["alice"], "keep-going = false");
    agent.edit_roster(|roster| {
        roster["schema"] = json!(2);
        roster["groups"] = json!([{ "name": "ci", "settings": { "keep-going": true, "timeout": 600 } }]);
        roster["members"][0]["groups"] = json!(["ci"]);
        roster["members"][0]["settings"] = json!({ "timeout": 1200 });
    });
    let told = explained(&agent, "NIXBUILDNET_KEEP_GOING=false LANG=C", "keep-going");
    assert_eq!((&told["value"], &told["level"]), (&json!(false), &json!("ssh")));
    let said = told["said"].as_array().expect("levels");
    let levels: Vec<(&str, bool)> =
        said.iter().map(|said| (said["level"].as_str().expect("a name"), said["counts"] == true)).collect();
    assert_eq!(levels, [("system", false), ("group", false), ("ssh", true)]);
    assert_eq!(
        (&said[1]["group"], &said[1]["why"]),
        (&json!("ci"), &json!("overridden by the ssh environment"))
    );

    let (stdout, ..) = text(&ssh(&agent, "BARN_TIMEOUT=900", "settings --explain timeout"));
    assert_eq!(
        stdout,
        "timeout is 600 seconds, by a group\n\
         longest time of a build; the limit `maxBuildSeconds` of the member counts too\n\n\
         system            14400 seconds  the smaller value of a group counts (`limits.max-build-seconds` in builder-agent.toml)\n\
         group ci          600 seconds   counts\n\
         member            1200 seconds  the smaller value of a group counts\n\
         ssh               900 seconds   the smaller value of a group counts\n\n\
         levels that may set it: system, group, member, key, ssh, derivation\n"
    );
    let (all, ..) = text(&ssh(&agent, "", "settings"));
    assert!(
        all.lines().any(|line| line.split_whitespace().eq(["timeout", "600", "seconds", "group"])),
        "{all}"
    );
    let (_, stderr, status) = text(&ssh(&agent, "", "settings --explain cache-build-failures"));
    assert!(stderr.contains("the setting `cache-build-failures` has no effect on this box"), "{stderr}");
    assert_eq!(status, Some(127));
}

#[test]
fn a_wrong_variable_refuses_every_command_by_name_and_other_variables_are_nobodys_business() {
    let agent = Agent::start(&["alice"], "");
    for (variables, why) in [
        (
            "BARN_KEEP_GOIN=1",
            "the variable `BARN_KEEP_GOIN` is refused: there is no setting `keep-goin`; did you mean `keep-going`?",
        ),
        (
            "BARN_TIMEOUT=soon",
            "the variable `BARN_TIMEOUT` is refused: the setting `timeout` must be a whole number",
        ),
        (
            "NIXBUILDNET_CACHE_BUILD_FAILURES=1",
            "the variable `NIXBUILDNET_CACHE_BUILD_FAILURES` is refused: the setting `cache-build-failures` has no effect",
        ),
        ("BARN_ALLOW_SHELL=1", "cannot be set by the ssh environment"),
        ("BARNRAISER_REUSE_FAILURES=perhaps", "the variable `BARNRAISER_REUSE_FAILURES` is refused"),
    ] {
        for command in ["nix-daemon --stdio", "whoami"] {
            let (stdout, stderr, status) = text(&ssh(&agent, variables, command));
            assert!(stdout.is_empty() && stderr.contains(why) && stderr.contains("`SetEnv`"), "{stderr}");
            assert_eq!(status, Some(127));
        }
    }
    let (_, stderr, status) = text(&ssh(&agent, "LANG=C BARN=1 XBARN_TIMEOUT=soon", "whoami"));
    assert_eq!(status, Some(0), "{stderr}");
}

#[test]
fn what_the_roster_locks_or_switches_off_does_not_count_and_the_client_is_told() {
    let agent = Agent::start(&["alice"], "");
    set(&agent, json!({ "allow-override": false }));
    let locked = "warning: the setting `timeout` of your ssh environment does not count: locked: `allow-override` is `false`";
    let (stdout, stderr, _) = text(&ssh(&agent, "BARN_TIMEOUT=5", "settings --explain timeout"));
    assert!(stdout.starts_with("timeout is 14400 seconds, by the configuration of the box"), "{stdout}");
    assert!(stderr.contains(locked), "{stderr}");
    set(&agent, json!({ "settings-from-ssh-env": false }));
    let (_, stderr, status) = text(&ssh(&agent, "BARN_TIMEOUT=5 BARN_KEEP_GOIN=1", "whoami"));
    assert!(stderr.contains("does not count: `settings-from-ssh-env` is `false`"), "{stderr}");
    assert_eq!(status, Some(0), "what is switched off is not read: {stderr}");
    set(&agent, json!({}));
    assert_eq!(explained(&agent, "BARN_TIMEOUT=5", "timeout")["value"], 5);
}

#[test]
fn the_box_can_lock_everything() {
    let agent = Agent::start(&["alice"], "settings.allow-override = false");
    set(&agent, json!({ "timeout": 5, "allow-override": true }));
    let told = explained(&agent, "BARN_TIMEOUT=4", "timeout");
    assert_eq!((&told["value"], &told["level"]), (&json!(14400), &json!("system")));
}

#[test]
fn without_allow_shell_only_stores_and_tools_are_served() {
    let agent = Agent::start(&["alice", "bob"], "");
    set(&agent, json!({ "allow-shell": false }));
    let log = "log /nix/store/00000000000000000000000000000000-x.drv";
    for command in ["whoami", "status", "settings", "builds list", "help", "usage", log] {
        let (stdout, stderr, status) = text(&ssh(&agent, "", command));
        assert!(stdout.is_empty() && status == Some(127), "{command}: {stdout}");
        assert!(stderr.contains("`allow-shell` is `false` in the member's entry"), "{command}: {stderr}");
    }
    assert_eq!(text(&ssh(&agent, "", "uname -m")).2, Some(0));
    assert_eq!(agent.ssh("bob").arg("whoami").output().expect("ssh").status.code(), Some(0));
}

/// This many variables that are settings. OpenSSH sends each name once, but the case of its letters does not count, so one
/// setting has 256 names.
fn many_variables(count: usize) -> String {
    let cased = |number: usize, place: usize, letter: char| match number >> place & 1 {
        0 => letter,
        _ => letter.to_ascii_uppercase(),
    };
    let name = |number| -> String {
        let letters = "priority".chars().enumerate();
        letters.map(|(place, letter)| cased(number, place, letter)).collect()
    };
    (0..count).map(|number| format!("BARN_{}=1", name(number))).collect::<Vec<_>>().join(" ")
}

/// Many, long, and bytes that are no text: each ends that session at most, and the box goes on.
#[test]
fn a_hostile_environment_costs_only_its_own_session() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let agent = Agent::start(&["alice", "bob"], "");
    let (_, stderr, status) = text(&ssh(&agent, &many_variables(200), "whoami"));
    assert_eq!(status, Some(0), "{stderr}");
    let (_, stderr, status) = text(&ssh(&agent, &many_variables(201), "whoami"));
    assert!(status == Some(127) && stderr.contains("more than 200 variables are settings"), "{stderr}");
    let named = (0..300).map(|n| format!("BARN_X{n}={n}")).collect::<Vec<_>>().join(" ");
    let (_, stderr, _) = text(&ssh(&agent, &named, "whoami"));
    assert!(stderr.contains("the variable `BARN_X0` is refused"), "the first one only: {stderr}");
    let long = format!("BARN_NEVER_SUBSTITUTE={}", "a".repeat(60_000));
    let (_, stderr, _) = text(&ssh(&agent, &long, "whoami"));
    assert!(stderr.contains("at most 8192 are accepted") && stderr.len() < 1000, "{stderr}");
    let mut bytes = OsString::from("SetEnv=BARN_TIMEOUT=").into_vec();
    bytes.extend([0xff, 0xfe]);
    let said =
        agent.ssh("alice").arg("-o").arg(OsString::from_vec(bytes)).arg("whoami").output().expect("ssh");
    assert!(!said.status.success(), "{said:?}");
    assert_eq!(agent.ssh("bob").arg("whoami").output().expect("ssh").status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_without_clients_if_the_last_one_says_so() {
    let scripted = Scripted::open("[limits]\nmax-jobs = 4");
    let keeps = || from_client(&[("NIXBUILDNET_KEEP_BUILDS_RUNNING", "true")]);
    let mut alice = scripted.session_with("alice", keeps()).await;
    send(&mut alice, derivation("kept", "log:early gate write:x", &[])).await;
    wait_for_line(&mut alice, "early").await;
    drop(alice);
    // Bob's own build, without that setting, ends with him; alice's wish is not his.
    let mut bob = scripted.session("bob").await;
    send(&mut bob, derivation("left", "log:early wait", &[])).await;
    wait_for_line(&mut bob, "early").await;
    drop(bob);
    scripted.until_cancelled(1).await;
    // The other way round: whoever leaves first decides nothing.
    let (mut first, mut last) =
        (scripted.session_with("alice", keeps()).await, scripted.session("bob").await);
    send(&mut first, derivation("shared", "log:early wait", &[])).await;
    wait_for_line(&mut first, "early").await;
    send(&mut last, derivation("shared", "log:early wait", &[])).await;
    wait_for_line(&mut last, "early").await;
    drop(first);
    let waiting = |name: &str| {
        let runs = scripted.agent.realiser.scheduler.list(&|member| &*member.name == name);
        runs.iter().filter(|run| run.drv.to_absolute_path().contains("shared")).count()
    };
    until("alice to leave", || waiting("alice") == 0).await;
    assert_eq!(waiting("bob"), 1);
    drop(last);
    scripted.until_cancelled(2).await;
    scripted.script.gate.cancel();
    let mut again = scripted.session("alice").await;
    let answer = build(&mut again, derivation("kept", "log:early gate write:x", &[])).await;
    let given = [BuildStatus::Built, BuildStatus::AlreadyValid, BuildStatus::Substituted];
    assert!(given.iter().any(|status| answer.status == *status as u64), "{answer:?}");
    assert_eq!(scripted.runs(), 3, "the kept run was the only one of its build");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_of_the_environment_ends_the_wait_of_its_member_alone() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let mut bob = scripted.session_with("bob", from_client(&[("BARN_TIMEOUT", "1")])).await;
    let drv = || derivation("t", "log:early gate write:x", &[]);
    send(&mut alice, drv()).await;
    wait_for_line(&mut alice, "early").await;
    build(&mut bob, drv()).await.is(BuildStatus::TimedOut);
    scripted.script.gate.cancel();
    told(&mut alice).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_roster_entry_forbids_builds_gets_results_and_no_runs() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    scripted.edit_roster(|roster| roster["members"][1]["settings"] = json!({ "allow-builds": false }));
    let refused = build(&mut bob, derivation("t", "write:x", &[])).await;
    assert!(refused.message.contains("`allow-builds` is `false` in the member's entry"), "{refused:?}");
    assert_eq!(scripted.runs(), 0);
    build(&mut alice, derivation("t", "write:x", &[])).await.is(BuildStatus::Built);
    build(&mut bob, derivation("t", "write:x", &[])).await.is(BuildStatus::Substituted);
    assert_eq!(scripted.runs(), 1);
    // A variable does not lift it, and the open session follows the roster.
    assert!({
        let mut options = SessionOptions::default();
        options.set("BARN_ALLOW_BUILDS", "true") && options.wrong().is_some()
    });
    scripted.edit_roster(|roster| roster["members"][1]["settings"] = json!({}));
    build(&mut bob, derivation("u", "write:x", &[])).await.is(BuildStatus::Built);
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_failures_are_reused_is_each_members_own_choice_unless_it_is_locked() {
    let scripted = Scripted::open("");
    let again = || from_client(&[("BARN_REUSE_BUILD_FAILURES", "false")]);
    let drv = || derivation("t", "exit:3", &[]);
    let mut alice = scripted.session_with("alice", again()).await;
    let mut bob = scripted.session("bob").await;
    build(&mut alice, drv()).await.is(BuildStatus::PermanentFailure);
    build(&mut alice, drv()).await.is(BuildStatus::PermanentFailure);
    build(&mut bob, drv()).await.is(BuildStatus::CachedFailure);
    assert_eq!(scripted.runs(), 2);
    scripted.edit_roster(|roster| roster["members"][0]["settings"] = json!({ "allow-override": false }));
    build(&mut alice, drv()).await.is(BuildStatus::CachedFailure);
    // The box's default can be the other one, for each member to change.
    let off = Scripted::open("reuse-failures = false");
    let mut bob = off.session_with("bob", from_client(&[("BARN_REUSE_BUILD_FAILURES", "1")])).await;
    build(&mut bob, drv()).await.is(BuildStatus::PermanentFailure);
    build(&mut bob, drv()).await.is(BuildStatus::CachedFailure);
    let mut alice = off.session("alice").await;
    build(&mut alice, drv()).await.is(BuildStatus::PermanentFailure);
    assert_eq!(off.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_derivation_sets_what_its_session_lets_it_set() {
    let scripted = Scripted::open("");
    let drv = |name| {
        derivation(
            name,
            "exit:3",
            &[("BARN_REUSE_BUILD_FAILURES", ""), ("NIXBUILDNET_CACHE_BUILD_FAILURES", "1")],
        )
    };
    let mut plain = scripted.session("alice").await;
    build(&mut plain, drv("t")).await.is(BuildStatus::PermanentFailure);
    build(&mut plain, drv("t")).await.is(BuildStatus::CachedFailure);
    let mut alice = scripted.session_with("alice", from_client(&[("BARN_SETTINGS_FROM_DRV_ENV", "1")])).await;
    let refused = build(&mut alice, drv("t")).await;
    assert!(
        refused.message.contains("the variable `NIXBUILDNET_CACHE_BUILD_FAILURES` is refused"),
        "{refused:?}"
    );
    let drv = || derivation("u", "exit:3", &[("BARN_REUSE_BUILD_FAILURES", "")]);
    build(&mut alice, drv()).await.is(BuildStatus::PermanentFailure);
    build(&mut alice, drv()).await.is(BuildStatus::PermanentFailure);
    build(&mut plain, drv()).await.is(BuildStatus::CachedFailure);
    assert_eq!(scripted.runs(), 3);
}

/// Whether a build with the box's own share has the same key, and for whom its result is.
#[tokio::test(flavor = "multi_thread")]
async fn fewer_processors_or_less_memory_make_a_build_of_ones_own() {
    let scripted = Scripted::open("");
    let drv = || derivation("t", "write:x", &[]);
    let mut small = scripted.session_with("alice", from_client(&[("NIXBUILDNET_MAX_MEM", "512")])).await;
    build(&mut small, drv()).await.is(BuildStatus::Built);
    let mut bob = scripted.session("bob").await;
    build(&mut bob, drv()).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 2, "bob's build is not that of the smaller envelope");
    // More than the box gives is what the box gives.
    let more = from_client(&[("NIXBUILDNET_MAX_MEM", "65536"), ("NIXBUILDNET_MAX_CPU", "64")]);
    let mut large = scripted.session_with("alice", more).await;
    let fails = || derivation("f", "exit:3", &[]);
    build(&mut bob, fails()).await.is(BuildStatus::PermanentFailure);
    build(&mut large, fails()).await.is(BuildStatus::CachedFailure);
    build(&mut small, fails()).await.is(BuildStatus::PermanentFailure);
    assert_eq!(scripted.runs(), 4);
}

/// Two builds wait behind a third. The one that came later goes first, for its priority.
#[tokio::test(flavor = "multi_thread")]
async fn a_priority_orders_the_builds_of_its_member() {
    let scripted = Scripted::open("[limits]\nmax-jobs = 1");
    let waiting = || scripted.agent.realiser.scheduler.list(&|_| true).len();
    let mut first = scripted.session("alice").await;
    send(&mut first, derivation("first", "log:early gate write:x", &[])).await;
    wait_for_line(&mut first, "early").await;
    let mut last = scripted.session_with("alice", from_client(&[("BARN_PRIORITY", "-1")])).await;
    send(&mut last, derivation("last", "count", &[])).await;
    until("the second build to wait", || waiting() == 2).await;
    let mut next = scripted.session_with("alice", from_client(&[("BARN_PRIORITY", "1")])).await;
    send(&mut next, derivation("next", "count", &[])).await;
    until("the third build to wait", || waiting() == 3).await;
    scripted.script.gate.cancel();
    for client in [&mut first, &mut next, &mut last] {
        told(client).await.is(BuildStatus::Built);
    }
    for (name, count) in [("next", "1"), ("last", "2")] {
        first.call(&Request::NarFromPath { path: path(name) }).await.expect("an answer");
        let nar = first.nar().await.expect("a nar");
        assert_eq!(nar, wire::client::encode_file_nar(count.as_bytes(), false), "{name}");
    }
}

#[test]
fn a_key_has_settings_of_its_own_and_the_other_keys_of_its_member_do_not() {
    let agent = Agent::start(&["alice", "bob"], "");
    let (own, other) = (agent.path().join("alice.pub"), agent.path().join("bob.pub"));
    let ci = common::fingerprint(&own);
    agent.edit_roster(|roster| {
        let key = std::fs::read_to_string(&other).expect("a key");
        roster["members"][0]["keys"].as_array_mut().expect("keys").push(json!(key.trim()));
        roster["members"].as_array_mut().expect("members").truncate(1);
        roster["members"][0]["settings"] = json!({ "timeout": 600 });
        roster["members"][0]["key-settings"] =
            json!({ ci: { "allow-shell": false, "allow-override": false } });
    });
    let said = ssh(&agent, "", "whoami");
    let (_, stderr, status) = text(&said);
    assert!(status == Some(127) && stderr.contains("in the settings of the key in the roster"), "{stderr}");
    let with_other = agent.ssh("bob").arg("settings --explain timeout").output().expect("ssh");
    let (stdout, stderr, status) = text(&with_other);
    assert!(
        status == Some(0) && stdout.starts_with("timeout is 600 seconds, by the member"),
        "{stdout}{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_goes_on_without_clients_is_its_members_to_see_and_to_end() {
    let scripted = Scripted::open("");
    let keeps = from_client(&[("BARN_KEEP_BUILDS_RUNNING", "1")]);
    let mut alice = scripted.session_with("alice", keeps).await;
    send(&mut alice, derivation("kept", "log:early wait", &[])).await;
    wait_for_line(&mut alice, "early").await;
    drop(alice);
    let scheduler = &scripted.agent.realiser.scheduler;
    let (of_alice, of_bob) =
        (|member: &Member| &*member.name == "alice", |member: &Member| &*member.name == "bob");
    until("alice to leave", || scheduler.list(&of_alice).iter().any(|run| run.requests == 0)).await;
    let id = scheduler.list(&of_alice)[0].id;
    assert!(scheduler.list(&of_bob).is_empty());
    assert_eq!((scheduler.cancel(id, &of_bob), scheduler.cancel(id, &of_alice)), (0, 1));
    scripted.until_cancelled(1).await;
    assert!(scheduler.list(&of_alice).is_empty());
}
