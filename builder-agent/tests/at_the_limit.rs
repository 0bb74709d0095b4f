//! One member is at a limit of connections, sessions, requests or tickets and keeps trying; another one is measured, alone
//! and beside that. Real OpenSSH, front door, protocols and scheduler; a script plays the builders. The same for what a
//! member stores is in `at_the_limit_storing`, for builds in `at_the_limit_building`, and for downloads in `substituting`.

mod common;

use common::beside::{Trying, bobs_work, is_close};
use common::client::{is_valid, wait_for_start};
use common::scripted::{derivation, path};
use common::served::{Served, Session};
use common::{said, ssh};
use nix::BuildStatus;
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_all_connections_or_sessions_who_keeps_trying_does_not_delay_others() {
    for (config, text) in [
        ("limits.max-connections-per-member = 4", "`limits.max-connections-per-member`"),
        ("limits.max-sessions-per-member = 4", "`limits.max-sessions-per-member`"),
    ] {
        let served = Served::open(config).await;
        let alone = bobs_work(&served, "alone").await;
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(served.session("alice").await);
        }
        let tasks = vec![(served.dir().to_owned(), served.port); 4];
        let trying = Trying::start(tasks, move |(dir, port), _| async move {
            let mut ssh = ssh(&dir, "alice", port);
            ssh.arg("signing-key");
            let output = Command::from(ssh).output().await.expect("ssh");
            assert!(!output.status.success());
            said(&String::from_utf8_lossy(&output.stderr), &[text]);
            (dir, port)
        });
        let beside = bobs_work(&served, "beside").await;
        assert!(trying.end().await > 0, "alice was refused nothing");
        assert!(is_close(beside, alone), "{beside:?}, alone {alone:?}");
        // The four that are open go on.
        for alice in &mut open {
            assert!(!is_valid(&mut alice.client, &path("x")).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_many_requests_in_flight_does_not_delay_those_of_others() {
    let served = Served::open("limits.max-jobs = 2\nlimits.max-jobs-per-member = 1").await;
    let alone = bobs_work(&served, "alone").await;
    let before = served.scripted.runs();
    // Requests that wait: one runs, and the others wait for the only slot of their member.
    let mut waiting = Vec::new();
    for n in 0..16 {
        let mut alice = served.session("alice").await;
        alice.send(derivation(&format!("a{n}"), "gate write:a", &[])).await;
        if n == 0 {
            served.scripted.until_runs(before + 1).await;
        } else {
            wait_for_start(&mut alice.client).await;
        }
        waiting.push(alice);
    }
    // And requests that are answered at once, without an end.
    let asking = vec![served.session("alice").await, served.session("alice").await];
    let asking = Trying::start(asking, |mut alice: Session, _| async move {
        assert!(!is_valid(&mut alice.client, &path("x")).await);
        alice
    });
    let beside = bobs_work(&served, "beside").await;
    let answered = asking.end().await as u64;
    assert!(is_close(beside, alone), "{beside:?}, alone {alone:?}");
    assert_eq!(served.scripted.runs(), before + 4, "one of alice, and three of bob");
    let used = served.used("alice").await;
    assert!(used["requests_peak"].as_u64() >= Some(16), "{used}");
    assert!(used["requests"].as_u64() >= Some(16 + answered), "{answered} {used}");
    served.scripted.script.gate.cancel();
    for mut alice in waiting {
        alice.is(BuildStatus::Built).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_all_tickets_or_too_many_tags_is_told_the_limit_and_others_have_theirs() {
    let served = Served::open_with_tickets("limits.max-tickets-per-member = 3").await;
    let create = async |who: &str, name: &str| served.run(who, &["ticket", "create", "--name", name]).await;
    for name in ["a", "b", "c"] {
        assert!(create("alice", name).await.status.success());
    }
    for name in ["d", "e"] {
        let refused = create("alice", name).await;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("3 is the limit (limits.max-tickets-per-member); revoke one"), "{told}");
    }
    assert!(create("bob", "a").await.status.success());

    let tags: Vec<String> = (0..21).map(|n| format!("t{n}")).collect();
    let tagged = async |who: &str, tags: &[String]| {
        let mut ssh = ssh(served.dir(), who, served.port);
        ssh.args(["-o", &format!("SetEnv=BARN_TAGS={}", tags.join(",")), "nix-daemon", "--stdio"]);
        Command::from(ssh).output().await.expect("ssh")
    };
    let refused = tagged("alice", &tags).await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(127), "{told}");
    assert!(told.contains("`tags`") && told.contains("20"), "{told}");
    let mut bob = served.session("bob").await;
    bob.build(derivation("b", "write:b", &[]), BuildStatus::Built).await;
}
