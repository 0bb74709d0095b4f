//! A client may set a smaller log limit than the box's; reaching it ends that client's request only.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::PATIENCE;
use common::scripted::{Scripted, TestClient, derivation};
use nix::{BuildMode, BuildStatus};
use wire::types::ClientSettings;
use wire::worker::Request;

async fn client(scripted: &Scripted, name: &str, max_log: &str) -> TestClient {
    let mut client = scripted.session(name).await;
    let overrides = [("max-log-size".to_owned(), max_log.to_owned())].into();
    let settings = ClientSettings { overrides, ..ClientSettings::default() };
    client.call(&Request::SetOptions(settings)).await.expect("taken");
    client
}

async fn send(client: &mut TestClient, script: &str) {
    let (drv_path, derivation) = derivation("t", script, &[]);
    let mode = BuildMode::Normal;
    client.request(&Request::BuildDerivation { drv_path, derivation, mode }).await.expect("sent");
}

async fn status(client: &mut TestClient) -> u64 {
    client.done().await.expect("an answer");
    client.u64().await.expect("a status")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_the_log_limit_of_who_started_it() {
    let scripted = Scripted::open("");
    let mut alice = client(&scripted, "alice", "5").await;
    send(&mut alice, "log:planing write:x").await;
    assert_eq!(status(&mut alice).await, BuildStatus::LogLimitExceeded as u64);
    // Zero means no limit of his own.
    let mut bob = client(&scripted, "bob", "0").await;
    send(&mut bob, "log:planing write:x").await;
    assert_eq!(status(&mut bob).await, BuildStatus::Built as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_keeps_a_log_limit_of_their_own_and_the_run_goes_on() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (client(&scripted, "alice", "100").await, client(&scripted, "bob", "5").await);
    send(&mut alice, "log:planing gate write:x").await;
    let started = async {
        while scripted.script.runs.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, started).await.expect("the builder never ran");
    send(&mut bob, "log:planing gate write:x").await;
    assert_eq!(status(&mut bob).await, BuildStatus::LogLimitExceeded as u64);
    scripted.script.gate.cancel();
    assert_eq!(status(&mut alice).await, BuildStatus::Built as u64);
    assert_eq!(scripted.script.runs.load(Ordering::SeqCst), 1);
}
