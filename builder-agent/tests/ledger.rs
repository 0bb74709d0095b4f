//! What members use is charged to them, and the limit of a month holds. Real OpenSSH, front door, protocol and scheduler; a
//! script plays the builders.

mod common;

use common::client::{wait_for_line, wait_for_start};
use common::scripted::{derivation, info_of, path};
use common::served::{Served, Session};
use common::{Agent, ssh, until};
use ledger::{Account, By, Ledger, Settings};
use nix::BuildStatus;
use serde_json::Value;
use wire::client::{End, encode_file_nar};
use wire::worker::Request;

/// Gives a member of the roster this role.
fn set_role(served: &Served, name: &str, role: &str) {
    served.scripted.edit_roster(|roster| {
        let members = roster["members"].as_array_mut().expect("members");
        members.iter_mut().find(|member| member["name"] == name).expect("a member")["role"] = role.into();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_charged_to_who_asked_first_and_to_nobody_who_joins_or_reuses_it() {
    let served = Served::open("").await;
    let (mut alice, mut bob) = (served.session("alice").await, served.session("bob").await);
    let drv = || derivation("t", "cpu:90 log:sawing gate write:x", &[]);
    alice.send(drv()).await;
    served.scripted.until_runs(1).await;
    bob.send(drv()).await;
    wait_for_line(&mut bob.client, "sawing").await;
    served.scripted.script.gate.cancel();
    alice.is(BuildStatus::Built).await;
    bob.is(BuildStatus::Built).await;
    bob.build(derivation("bad", "cpu:5 exit:1", &[]), BuildStatus::PermanentFailure).await;
    alice.build(derivation("bad", "cpu:5 exit:1", &[]), BuildStatus::CachedFailure).await;

    let (alices, bobs) = (served.used("alice").await, served.used("bob").await);
    let of = |used: &Value| {
        let number = |name: &str| used[name].as_u64();
        (used["cpu_seconds"].as_f64(), number("builds"), number("failed_builds"), number("log_bytes"))
    };
    assert_eq!(of(&alices), (Some(90.0), Some(1), Some(0), Some(7)), "{alices}");
    assert_eq!(of(&bobs), (Some(5.0), Some(1), Some(1), Some(0)), "{bobs}");
    let (wall, memory) = (alices["wall_seconds"].as_f64(), alices["memory_mib_seconds"].as_f64());
    assert!(wall.zip(memory).is_some_and(|(wall, memory)| (memory - 1024.0 * wall).abs() < 1.0), "{alices}");
    // The session and the command `usage`, each in a connection of its own.
    for used in [&alices, &bobs] {
        assert_eq!((used["connections"].as_u64(), used["sessions"].as_u64()), (Some(2), Some(2)), "{used}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_a_connection_are_charged_while_it_is_open() {
    let served = Served::open("").await;
    let (mut alice, _bob) = (served.session("alice").await, served.session("bob").await);
    let size = 3_000_000;
    let contents = "y".repeat(size);
    let add = derivation("t", "write:x", &[("padding", &contents)]);
    alice.build(add, BuildStatus::Built).await;
    let (alices, bobs) = (served.used("alice").await, served.used("bob").await);
    let up = |used: &Value| used["bytes_up"].as_u64().expect("a number");
    assert!((size as u64..size as u64 + 200_000).contains(&up(&alices)), "{alices}");
    assert!(up(&bobs) > 0 && up(&bobs) < 100_000, "{bobs}");
    assert!(bobs["bytes_down"].as_u64().is_some_and(|bytes| bytes > 0), "{bobs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_used_the_month_starts_no_build_and_others_do() {
    let served = Served::open("limits.max-cpu-hours-per-month = 1").await;
    let (mut alice, mut other, mut bob) =
        (served.session("alice").await, served.session("alice").await, served.session("bob").await);
    let running = || derivation("running", "cpu:1 gate write:x", &[]);
    other.send(running()).await;
    served.scripted.until_runs(1).await;
    alice.build(derivation("t", "cpu:3600 write:x", &[]), BuildStatus::Built).await;

    let message = alice.refused(derivation("u", "write:u", &[])).await;
    let month = served.scripted.agent.ledger.this_month();
    let until = month.next().first();
    let drv = path("u.drv").to_absolute_path();
    assert!(
        message.starts_with(&format!(
            "'{drv}' is not built: you have used 1.0 of 1 CPU hours in {month}, which is the limit \
             (the box's `limits.max-cpu-hours-per-month`); it ends on {until} (UTC)"
        )),
        "{message}"
    );
    assert!(message.contains("ask the operator of the box for more"), "{message}");

    // A build that ran before goes on, and a result of somebody else is not refused.
    served.scripted.script.gate.cancel();
    other.is(BuildStatus::Built).await;
    bob.build(derivation("u", "write:u", &[]), BuildStatus::Built).await;
    alice.build(derivation("u", "write:u", &[]), BuildStatus::Substituted).await;
    assert_eq!(served.scripted.runs(), 3);
    let text = served.output("alice", &["usage"]).await;
    let limit = format!("1.0 of 1 CPU hours used in {month} (max-cpu-hours-per-month, set by the box)");
    assert!(text.contains(&limit), "{text}");
    let limits = served.output("alice", &["whoami"]).await;
    assert!(limits.contains("max-cpu-hours-per-month  1 CPU hours, set by the box\n"), "{limits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waited_is_refused_at_its_turn_and_who_joined_it_builds_it() {
    let served = Served::open("limits.max-cpu-hours-per-month = 1\nlimits.max-jobs = 1").await;
    let (mut first, mut second, mut bob) =
        (served.session("alice").await, served.session("alice").await, served.session("bob").await);
    first.send(derivation("t", "cpu:3600 gate write:x", &[])).await;
    served.scripted.until_runs(1).await;
    let queued = || derivation("u", "cpu:2 write:u", &[]);
    second.send(queued()).await;
    wait_for_start(&mut second.client).await;
    bob.send(queued()).await;
    wait_for_start(&mut bob.client).await;
    served.scripted.script.gate.cancel();
    first.is(BuildStatus::Built).await;
    let message = second.is(BuildStatus::TransientFailure).await.message;
    assert!(message.contains("you have used 1.0 of 1 CPU hours"), "{message}");
    bob.is(BuildStatus::Built).await;
    assert_eq!(served.used("bob").await["cpu_seconds"].as_f64(), Some(2.0));
    assert_eq!(served.used("alice").await["builds"].as_u64(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_leaves_is_charged_for_the_time_in_which_the_build_was_theirs() {
    let served = Served::open("limits.max-jobs-per-member = 1").await;
    let (mut alice, mut bob) = (served.session("alice").await, served.session("bob").await);
    let drv = || derivation("t", "cpu:100 log:sawing gate write:x", &[]);
    alice.send(drv()).await;
    served.scripted.until_runs(1).await;
    bob.send(drv()).await;
    wait_for_line(&mut bob.client, "sawing").await;
    drop(alice);
    // She has one slot, so this build starts when the other one is bob's.
    let mut later = served.session("alice").await;
    later.build(derivation("u", "write:u", &[]), BuildStatus::Built).await;
    served.scripted.script.gate.cancel();
    bob.is(BuildStatus::Built).await;
    let (alices, bobs) = (served.used("alice").await, served.used("bob").await);
    let cpu = |used: &Value| used["cpu_seconds"].as_f64().expect("a number");
    assert!((cpu(&alices) + cpu(&bobs) - 100.0).abs() < 1e-6, "{alices} {bobs}");
    assert!(cpu(&alices) > 0.0 && cpu(&bobs) > 0.0, "{alices} {bobs}");
    assert_eq!((alices["builds"].as_u64(), bobs["builds"].as_u64()), (Some(2), Some(0)));
}

/// A session of the worker protocol over this client.
async fn session_over(mut ssh: std::process::Command) -> Session {
    ssh.args(["nix-daemon", "--stdio"]);
    Session::over(ssh).await
}

/// The lines of a report: the key, ticket or tag, and what was used.
async fn parts(served: &Served, member: &str, words: &[&str]) -> Vec<(String, Value)> {
    let words = [&["usage", "--json"], words].concat();
    let report: Value = serde_json::from_str(&served.output(member, &words).await).expect("JSON");
    let per = report["per"].as_str().expect("a word");
    let lines = report["usage"].as_array().expect("lines").iter();
    lines.map(|line| (line[per].as_str().expect("a name").to_owned(), line.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_with_each_key_and_for_each_tag_is_told_and_to_no_other_member() {
    let served = Served::open("").await;
    let tagged = async |member: &str, tags: &str| {
        let mut ssh = ssh(served.dir(), member, served.port);
        ssh.args(["-o", &format!("SetEnv=BARN_TAGS={tags}")]);
        session_over(ssh).await
    };
    let mut both = tagged("alice", "ci,nightly,ci").await;
    both.build(derivation("t", "cpu:7 log:sawing write:x", &[]), BuildStatus::Built).await;
    both.build(derivation("bad", "cpu:1 exit:1", &[]), BuildStatus::PermanentFailure).await;
    let mut one = tagged("alice", "ci").await;
    one.build(derivation("u", "cpu:20 write:u", &[]), BuildStatus::Built).await;
    // A result that exists is no build.
    one.build(derivation("t", "cpu:7 log:sawing write:x", &[]), BuildStatus::AlreadyValid).await;
    let mut bob = tagged("bob", "secret").await;
    bob.build(derivation("b", "write:b", &[]), BuildStatus::Built).await;

    let tags = parts(&served, "alice", &["--per", "tag"]).await;
    let of = |(name, line): &(String, Value)| {
        let number = |name: &str| line[name].as_u64();
        (
            name.clone(),
            line["cpu_seconds"].as_f64(),
            number("builds"),
            number("failed_builds"),
            number("log_bytes"),
        )
    };
    assert_eq!(
        tags.iter().map(of).collect::<Vec<_>>(),
        [
            ("ci".to_owned(), Some(28.0), Some(3), Some(1), Some(7)),
            ("nightly".to_owned(), Some(8.0), Some(2), Some(1), Some(7)),
        ]
    );
    let keys = parts(&served, "alice", &["--per", "key", "--by", "day"]).await;
    let listed = served.output("alice", &["keys", "list"]).await;
    let [(key, line)] = &keys[..] else { panic!("{keys:?}") };
    assert!(listed.contains(key.as_str()), "{key} {listed}");
    assert_eq!((line["builds"].as_u64(), line["cpu_seconds"].as_f64()), (Some(3), Some(28.0)));
    assert!(line["requests"].as_u64() >= Some(4) && line["bytes_up"].as_u64() > Some(1000), "{line}");
    let all = served.used("alice").await;
    assert_eq!((all["builds"].as_u64(), all["cpu_seconds"].as_f64()), (Some(3), Some(28.0)), "{all}");

    let refused = served.run("alice", &["usage", "--per", "tag", "--all"]).await;
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    set_role(&served, "alice", "maintainer");
    let csv = served.output("alice", &["usage", "--per", "tag", "--all", "--csv"]).await;
    let rows: Vec<&str> = csv.split("\r\n").map(|line| line.split(",20").next().expect("a part")).collect();
    assert_eq!(rows[1..4], ["alice,false,ci,", "alice,false,nightly,", "bob,false,secret,"], "{csv}");
    let text = served.output("alice", &["usage", "--per", "tag", "--member", "bob"]).await;
    assert!(text.contains("secret") && !text.contains("nightly"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_connections_sessions_and_requests_at_one_moment_are_told() {
    let served = Served::open("").await;
    let (mut one, mut two) = (served.session("alice").await, served.session("alice").await);
    one.send(derivation("t", "gate write:t", &[])).await;
    two.send(derivation("u", "gate write:u", &[])).await;
    served.scripted.until_runs(2).await;
    served.scripted.script.gate.cancel();
    one.is(BuildStatus::Built).await;
    two.is(BuildStatus::Built).await;
    drop((one, two));
    let used = served.used("alice").await;
    let number = |name: &str| used[name].as_u64().expect("a number");
    assert_eq!(number("requests_peak"), 2, "{used}");
    assert!(number("requests") >= 2 && number("connections") == 3 && number("sessions") == 3, "{used}");
    for peak in ["connections_peak", "sessions_peak"] {
        // The command `usage` may come before the box notices that the two are gone.
        assert!((2..=3).contains(&number(peak)), "{used}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_tags_the_rest_counts_together_and_the_member_has_all_of_them() {
    let served = Served::open("").await;
    for round in 0..6 {
        let tags: Vec<String> = (0..20).map(|n| format!("r{round}-{n}")).collect();
        let mut ssh = ssh(served.dir(), "alice", served.port);
        ssh.args(["-o", &format!("SetEnv=BARN_TAGS={}", tags.join(","))]);
        let mut session = session_over(ssh).await;
        let (name, script) = (format!("t{round}"), format!("cpu:1 write:x{round}"));
        session.build(derivation(&name, &script, &[]), BuildStatus::Built).await;
    }
    let tags = parts(&served, "alice", &["--per", "tag"]).await;
    assert_eq!(tags.len(), 101, "a hundred and the others");
    let other = tags.iter().find(|(name, _)| name == ledger::OTHER).expect("the others");
    assert_eq!(other.1["builds"], 20, "20 tags of one build: {other:?}");
    assert_eq!(served.used("alice").await["builds"], 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_maintainers_see_what_others_use() {
    let served = Served::open("").await;
    let mut bob = served.session("bob").await;
    bob.build(derivation("t", "cpu:7 write:x", &[]), BuildStatus::Built).await;
    for words in [["usage", "--all", "--json"], ["usage", "--member", "bob"]] {
        let refused = served.run("alice", &words).await;
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{words:?}");
        assert!(error.contains("error: only maintainers see what others use"), "{error}");
    }
    served.output("alice", &["usage", "--member", "alice"]).await;

    set_role(&served, "alice", "maintainer");
    let csv = served.output("alice", &["usage", "--all", "--by", "day", "--format", "csv"]).await;
    let lines: Vec<&str> = csv.split("\r\n").collect();
    assert_eq!(lines.len(), 4, "names, two members, and the end: {csv}");
    assert!(lines[1].starts_with("alice,false,20") && lines[2].starts_with("bob,false,20"), "{csv}");
    assert!(lines[2].contains(",7.000,"), "{csv}");
    let text = served.output("alice", &["usage", "--member", "bob"]).await;
    assert!(text.contains("7.0 s"), "{text}");
    let unknown = served.run("alice", &["usage", "--member", "carol"]).await;
    assert_eq!(unknown.status.code(), Some(1));

    // What somebody used who has left stays, under the identity.
    served.scripted.set_roster(&["alice"]);
    set_role(&served, "alice", "maintainer");
    let text = served.output("alice", &["usage", "--all"]).await;
    assert!(text.contains("bob (former)"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_start_finds_what_builds_have_used() {
    let served = Served::open("").await;
    let mut alice = served.session("alice").await;
    alice.build(derivation("t", "cpu:90 write:x", &[]), BuildStatus::Built).await;
    let ledger = &served.scripted.agent.ledger;
    ledger.close();
    let before = ledger.usage(None, None, By::Day, None);
    // A copy, as the file belongs to the agent that runs.
    let copy = served.dir().join("copy.sqlite");
    for ending in ["", "-wal"] {
        let from = served.dir().join(format!("ledger.sqlite{ending}"));
        if from.exists() {
            std::fs::copy(from, format!("{}{ending}", copy.display())).expect("copied");
        }
    }
    let again = Ledger::open(Settings::new(copy, false));
    let cpu = |sums: &std::collections::BTreeMap<(Account, ledger::Day), ledger::Amounts>| -> Vec<_> {
        sums.iter().map(|(key, sum)| (key.clone(), sum.get(ledger::Resource::CpuSeconds))).collect()
    };
    assert_eq!(cpu(&again.usage(None, None, By::Day, None)), cpu(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_has_in_the_store_is_on_their_account_from_the_start_on() {
    let mut agent = Agent::start(&["alice", "bob"], "");
    let nar = encode_file_nar(&vec![b'x'; 3 << 20], false);
    let mut alice = session_over(agent.ssh("alice")).await;
    let (repair, dont_check_sigs) = (false, true);
    let info = info_of(path("x"), &nar, &[]);
    alice.client.request(&Request::AddToStoreNar { info, repair, dont_check_sigs }).await.expect("sent");
    alice.client.framed(&nar).await.expect("sent");
    assert!(matches!(alice.client.log().await.expect("an answer").1, End::Last));
    drop(alice);
    agent.signal("-TERM");
    agent.start_again();
    let level = |who: &str| {
        let output = agent.ssh(who).args(["usage", "--json"]).output().expect("ssh");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let number = |name: &str| report["usage"][0][name].as_u64();
        (number("store_bytes_peak"), number("store_paths_peak"))
    };
    until("the first look at the store", || level("alice").1 == Some(1));
    assert!(level("alice").0.is_some_and(|bytes| bytes >= 3 << 20), "{:?}", level("alice"));
    assert_eq!(level("bob"), (Some(0), Some(0)));
}

#[test]
fn a_restart_keeps_the_ledger_and_kill_9_loses_seconds_only() {
    let mut agent = Agent::start(&["alice"], "");
    let connections = |agent: &Agent| {
        let output = agent.ssh("alice").args(["usage", "--json"]).output().expect("ssh");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["usage"][0]["connections"].as_u64()
    };
    assert_eq!((connections(&agent), connections(&agent)), (Some(1), Some(2)));
    agent.signal("-TERM");
    agent.start_again();
    assert_eq!(connections(&agent), Some(3));
    let log = agent.path().join("state/ledger.sqlite-wal");
    // The name of a resource is in the log of the database once something is written.
    let name = b"connections";
    let is_written =
        || std::fs::read(&log).is_ok_and(|bytes| bytes.windows(name.len()).any(|part| part == name));
    until("the ledger to be written", is_written);
    agent.signal("-KILL");
    agent.start_again();
    assert_eq!(connections(&agent), Some(4));
}

#[test]
fn a_damaged_ledger_does_not_stop_the_agent() {
    let mut agent = Agent::start(&["alice"], "");
    agent.signal("-TERM");
    agent.wait();
    let path = agent.path().join("state/ledger.sqlite");
    std::fs::write(&path, "no database ".repeat(1000)).expect("written");
    agent.start_again();
    let said = agent.wait_for("the ledger's file cannot be read; it is moved aside, and a new one is begun");
    assert_eq!(said["aside"].as_str(), path.with_extension("damaged").to_str());
    assert!(agent.ssh("alice").args(["usage"]).output().expect("ssh").status.success());
}
