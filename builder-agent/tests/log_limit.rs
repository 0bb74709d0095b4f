//! A client may set a smaller log limit than the box's; reaching it ends that client's request only.

mod common;

use common::client::{build, send, set_option, told};
use common::scripted::{Scripted, TestClient, derivation};
use nix::BuildStatus;

async fn client(scripted: &Scripted, name: &str, max_log: &str) -> TestClient {
    let mut client = scripted.session(name).await;
    set_option(&mut client, "max-log-size", max_log).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_the_log_limit_of_who_started_it() {
    let scripted = Scripted::open("");
    let mut alice = client(&scripted, "alice", "5").await;
    build(&mut alice, derivation("t", "log:planing write:x", &[])).await.is(BuildStatus::LogLimitExceeded);
    // Zero means no limit of his own.
    let mut bob = client(&scripted, "bob", "0").await;
    build(&mut bob, derivation("t", "log:planing write:x", &[])).await.is(BuildStatus::Built);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_keeps_a_log_limit_of_their_own_and_the_run_goes_on() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (client(&scripted, "alice", "100").await, client(&scripted, "bob", "5").await);
    send(&mut alice, derivation("t", "log:planing gate write:x", &[])).await;
    scripted.until_runs(1).await;
    build(&mut bob, derivation("t", "log:planing gate write:x", &[])).await.is(BuildStatus::LogLimitExceeded);
    scripted.script.gate.cancel();
    told(&mut alice).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 1);
}
