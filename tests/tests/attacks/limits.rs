//! Mallory drives everything that her entry in the roster limits to the limit, at once and again and again. Alice logs in,
//! uploads and builds as if nobody else were there.

use e2e::hostile::*;
use e2e::process;
use e2e::shared_box::{SharedBox, WORKER, recipe};
use nix::BuildStatus;
use serde_json::json;

/// The work of a member, from the login on.
async fn works(shared_box: &SharedBox, who: &str, name: &str) {
    let mut session = shared_box.session(who).await;
    let (input, out, drv) = (path(&format!("{name}-in")), path(name), path(&format!("{name}.drv")));
    let contents = nar(&file(&vec![b'a'; 3 << 20]));
    session.upload(&info(&format!("{name}-in"), &contents), &contents).await;
    let built =
        session.build(recipe(&drv, &[("out", &out)], &[&input], "echo $NIX_BUILD_CORES > $out")).await;
    assert_eq!(built.status, BuildStatus::Built as u64, "{}", built.message);
    session.leave().await;
}

#[tokio::test]
async fn a_member_at_every_limit_of_the_roster_gets_no_more_and_nobody_else_notices() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let limits = json!({ "max-connections": 2, "max-sessions": 3, "max-upload-mib": 1, "max-output-mib": 1, "max-silent-seconds": 1 });
    shared_box.limit("mallory", limits).await;
    let line = shared_box.line("mallory");
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(Session::over(line.ssh(WORKER), MINOR).await);
    }
    works(&shared_box, "alice", "first").await;

    // Sessions, on this connection and on another one.
    for mut ssh in [line.ssh(WORKER), shared_box.ssh("mallory", WORKER)] {
        for _ in 0..10 {
            process::run(&mut ssh)
                .failed()
                .says(&["3 sessions open already", "your `max-sessions` in the roster"]);
        }
    }
    // Connections.
    let second = open.pop().expect("a session");
    second.leave().await;
    let second = shared_box.session("mallory").await;
    for _ in 0..10 {
        process::run(&mut shared_box.ssh("mallory", WORKER))
            .failed()
            .says(&["2 connections open already", "your `max-connections` in the roster"]);
    }
    works(&shared_box, "alice", "second").await;
    second.leave().await;

    // Uploads and outputs, of which nothing stays, and builds that say nothing.
    let large = nar(&file(&vec![b'm'; 3 << 20]));
    let mut mallory = open.pop().expect("a session");
    for number in 0..5 {
        let name = format!("large-{number}");
        mallory.add_nar(&info(&name, &large), &large).await;
        mallory.refused(&[&name, "your `max-upload-mib` in the roster"]).await;
        assert!(!mallory.is_valid(&path(&name)).await);
    }
    for (name, script, limit) in [
        ("big", "yes big | head -c 3000000 > $out", "your `max-output-mib` in the roster"),
        ("mute", "sleep 1000", "your `max-silent-seconds` in the roster"),
    ] {
        let (out, drv) = (path(name), path(&format!("{name}.drv")));
        let told = mallory.build(recipe(&drv, &[("out", &out)], &[], script)).await;
        assert!(told.message.contains(limit), "{}", told.message);
        // The same build is another one under alice's limits, which are the box's.
        if name == "big" {
            let mut alice = shared_box.session("alice").await;
            assert_eq!(alice.build(recipe(&drv, &[("out", &out)], &[], script)).await.status, 0);
            alice.leave().await;
        }
    }
    works(&shared_box, "alice", "third").await;
}
