//! A member is removed from the roster while they log in and start builds, as fast as they can. The box
//! continues builds for which no client waits; but not those of members who were removed.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::shared_box::{SharedBox, WORKER, recipe};
use nix::BuildMode;
use serde_json::Value;
use wire::client::Client;
use wire::worker::Request;

/// Number of times that Bob is removed.
const ROUNDS: usize = 3;

/// Logs in, requests a build that never ends, and disconnects.
async fn bob_hammers(shared_box: &SharedBox, name: &str) {
    let (mut ssh, reader, writer) = piped(shared_box.ssh("bob", WORKER));
    let greeted =
        tokio::time::timeout(Duration::from_secs(60), Client::connect(reader, writer, MINOR, &[])).await;
    if let Ok(Ok(mut client)) = greeted {
        let out = path(name);
        let (drv_path, derivation) =
            recipe(&path(&format!("{name}.drv")), &[("out", &out)], &[], "sleep 900");
        let request = Request::BuildDerivation { drv_path, derivation, mode: BuildMode::Normal };
        let _ = client.request(&request).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let _ = ssh.kill().await;
}

/// The numbers in `field` of all events with one of these messages, optionally of this member only.
fn numbers(shared_box: &SharedBox, messages: &[&str], field: &str, member: Option<&str>) -> BTreeSet<u64> {
    let fits = |event: &Value| {
        messages.contains(&event["message"].as_str().unwrap_or_default())
            && member.is_none_or(|member| event["member"] == member)
    };
    shared_box
        .agent
        .events()
        .iter()
        .filter(|event| fits(event))
        .filter_map(|event| event[field].as_u64())
        .collect()
}

fn bobs_builds(shared_box: &SharedBox) -> BTreeSet<u64> {
    let begun = numbers(shared_box, &["build accepted"], "build", Some("bob"));
    let ended = numbers(shared_box, &["build finished", "build cancelled before it started"], "build", None);
    &begun - &ended
}

fn bobs_connections(shared_box: &SharedBox) -> BTreeSet<u64> {
    let begun = numbers(shared_box, &["logged in"], "connection", Some("bob"));
    let ended = numbers(shared_box, &["disconnected", "closing the connection"], "connection", None);
    &begun - &ended
}

/// Waits until the agent uses this roster.
async fn follow(shared_box: &SharedBox, members: &[&str]) {
    let before = shared_box.agent.count("roster loaded");
    shared_box.keep_only(members);
    until("the roster to be loaded", || shared_box.agent.count("roster loaded") > before).await;
}

#[tokio::test]
async fn no_build_or_connection_outlives_a_removal_however_logins_and_removals_meet() {
    let setup = Setup::default().setting("keep-builds-running = true").setting("limits.max-jobs = 256");
    let shared_box = SharedBox::with(&["alice", "bob"], setup);
    let mut alice = shared_box.session("alice").await;
    let out = path("alices");
    alice.start_build(recipe(&path("alices.drv"), &[("out", &out)], &[], "sleep 900")).await;
    shared_box.agent.wait_for("build started");

    let (done, count) = (Cell::new(false), Cell::new(0));
    let hammer = async || {
        while !done.get() {
            count.set(count.get() + 1);
            bob_hammers(&shared_box, &format!("bobs-{}", count.get())).await;
        }
    };
    let remove = async {
        for _ in 0..ROUNDS {
            let before = bobs_builds(&shared_box).len();
            until("builds of bob's", || bobs_builds(&shared_box).len() > before + 2).await;
            // He continues to log in and to request builds all the time.
            follow(&shared_box, &["alice"]).await;
            until("bob's builds to end", || bobs_builds(&shared_box).is_empty()).await;
            follow(&shared_box, &["alice", "bob"]).await;
        }
        follow(&shared_box, &["alice"]).await;
        done.set(true);
    };
    tokio::join!(remove, hammer(), hammer(), hammer(), hammer());

    until("bob's builds to end", || bobs_builds(&shared_box).is_empty()).await;
    until("bob's connections to end", || bobs_connections(&shared_box).is_empty()).await;
    println!(
        "{} logins of bob's, {} builds",
        count.get(),
        numbers(&shared_box, &["build accepted"], "build", Some("bob")).len()
    );
    assert_eq!(
        shared_box.agent.count("build finished"),
        numbers(&shared_box, &["build finished"], "build", Some("bob")).len(),
        "alice's build ended"
    );
    shared_box.session("alice").await.leave().await;
}
