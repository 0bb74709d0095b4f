//! Processors and memory of builds as the settings ask for them, and builds that are started again. A script plays the
//! builders.

mod common;

use common::client::{Told, build, build_request, send, told, wait_for_reason};
use common::scripted::{Scripted, TestClient, derivation, from_client, path, until};
use common::served::Served;
use nix::{BuildMode, BuildStatus};
use serde_json::json;
use wire::client::Frame;
use wire::worker::Request;

/// Builds have 1 processor and 1024 MiB, and at most 8 and 4096.
const CONFIG: &str = "[limits]\nmax-cpus = 8\nmax-memory-mib = 4096\nmax-jobs = 8";

/// What the builder of `name` wrote.
async fn contents(client: &mut TestClient, name: &str) -> String {
    client.call(&Request::NarFromPath { path: path(name) }).await.expect("an answer");
    let nar = client.nar().await.expect("a nar");
    // Magic, `(`, `type`, `regular`, `contents`: then the length and the text.
    let at = nar.windows(8).position(|word| word == b"contents").expect("a file") + 8;
    let length = u64::from_le_bytes(nar[at..at + 8].try_into().expect("eight")) as usize;
    String::from_utf8_lossy(&nar[at + 8..at + 8 + length]).into_owned()
}

/// The notes among what a client is told.
fn notes(told: &Told) -> Vec<String> {
    let note = |frame: &Frame| match frame {
        Frame::Message(text) if text.starts_with(b"note: ") => {
            Some(String::from_utf8_lossy(text.trim_ascii_end()).into_owned())
        }
        _ => None,
    };
    told.frames.iter().filter_map(note).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_level_can_choose_processors_and_memory_up_to_the_limits() {
    let scripted = Scripted::open(CONFIG);
    scripted.edit_roster(|roster| {
        roster["members"][0]["settings"] = json!({ "default-cpu": 4, "default-mem-per-cpu": 600 });
    });
    let mut alice = scripted.session("alice").await;
    build(&mut alice, derivation("member", "size", &[])).await.is(BuildStatus::Built);
    assert_eq!(contents(&mut alice, "member").await, "4x2400");
    let variables = from_client(&[
        ("NIXBUILDNET_MIN_CPU", "6"),
        ("BARN_DEFAULT_MEM_PER_CPU", "0"),
        ("BARN_SETTINGS_FROM_DRV_ENV", "1"),
    ]);
    let mut ssh = scripted.session_with("alice", variables).await;
    build(&mut ssh, derivation("ssh", "size", &[])).await.is(BuildStatus::Built);
    assert_eq!(contents(&mut ssh, "ssh").await, "6x1024");
    let own = [("BARN_DEFAULT_CPU", "1"), ("BARN_MIN_CPU", "0"), ("BARN_MIN_MEM", "3000")];
    build(&mut ssh, derivation("derivation", "size", &own)).await.is(BuildStatus::Built);
    assert_eq!(contents(&mut ssh, "derivation").await, "1x3000");
    let much = from_client(&[("BARN_DEFAULT_CPU", "255"), ("BARN_DEFAULT_MEM_PER_CPU", "999999")]);
    let mut greedy = scripted.session_with("bob", much).await;
    build(&mut greedy, derivation("greedy", "size", &[])).await.is(BuildStatus::Built);
    assert_eq!(contents(&mut greedy, "greedy").await, "8x4096");
    // A key of another envelope: nobody else gets such a result.
    let mut bob = scripted.session("bob").await;
    build(&mut bob, derivation("member", "size", &[])).await.is(BuildStatus::Built);
    assert_eq!(contents(&mut bob, "member").await, "1x1024");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_least_value_above_a_limit_refuses_the_build_by_name() {
    let scripted = Scripted::open(CONFIG);
    for (variable, why) in [
        ("BARN_MIN_CPU", "`min-cpu` is 200 by the ssh environment, and `max-cpu` is 8 by the configuration"),
        (
            "BARN_MIN_MEM",
            "`min-mem` is 9000 by the ssh environment, and `max-mem` is 4096 by the configuration",
        ),
    ] {
        let value = if variable == "BARN_MIN_CPU" { "200" } else { "9000" };
        let mut alice = scripted.session_with("alice", from_client(&[(variable, value)])).await;
        let refused = build(&mut alice, derivation("t", "size", &[])).await;
        assert!(refused.is(BuildStatus::InputRejected).message.contains(why), "{refused:?}");
    }
    scripted.limit("alice", json!({ "max-cpus": 3 }));
    let mut alice = scripted.session_with("alice", from_client(&[("BARN_MIN_CPU", "4")])).await;
    let refused = build(&mut alice, derivation("t", "size", &[])).await;
    assert!(
        refused
            .message
            .contains("`min-cpu` is 4, and a build may have 3 at most (your `max-cpus` in the roster)"),
        "{refused:?}"
    );
    assert_eq!(scripted.runs(), 0);
}

/// Four slots of 1024 MiB: a build of 4096 MiB takes the room of all of them.
#[tokio::test(flavor = "multi_thread")]
async fn large_builds_never_take_more_than_all_slots_together() {
    let scripted = Scripted::open("[limits]\nmax-memory-mib = 4096\nmax-jobs = 4");
    let mut alice = scripted.session("alice").await;
    send(&mut alice, derivation("small", "gate write:x", &[])).await;
    scripted.until_runs(1).await;
    let mut bob = scripted.session_with("bob", from_client(&[("BARN_MIN_MEM", "4096")])).await;
    send(&mut bob, derivation("large", "size", &[])).await;
    let why = wait_for_reason(&mut bob).await;
    assert!(why.contains("leave too few processors or too little memory"), "{why}");
    // What fits goes first, and what does not waits without a slot.
    let mut other = scripted.session("alice").await;
    build(&mut other, derivation("fits", "write:x", &[])).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 2);
    scripted.script.gate.cancel();
    told(&mut alice).await.is(BuildStatus::Built);
    told(&mut bob).await.is(BuildStatus::Built);
    build(&mut other, derivation("after", "write:x", &[])).await.is(BuildStatus::Built);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_builds_of_a_member_have_no_more_together_than_as_many_slots_as_the_member_may_have() {
    let scripted = Scripted::open(
        "[limits]\nmax-cpus = 8\nmax-memory-mib = 8192\nmax-jobs = 4\nmax-jobs-per-member = 2",
    );
    let with = |memory: &str| from_client(&[("BARN_MIN_MEM", memory)]);
    let mut greedy = scripted.session_with("alice", with("4096")).await;
    let refused = build(&mut greedy, derivation("t", "size", &[])).await;
    let why = "`min-mem` is 4096, and a build may have 2048 at most (the box's `limits.max-jobs-per-member`)";
    assert!(refused.is(BuildStatus::InputRejected).message.contains(why), "{refused:?}");
    let mut large = scripted.session_with("alice", with("2048")).await;
    send(&mut large, derivation("large", "gate write:x", &[])).await;
    scripted.until_runs(1).await;
    let mut small = scripted.session("alice").await;
    send(&mut small, derivation("small", "write:x", &[])).await;
    let why = wait_for_reason(&mut small).await;
    assert!(why.contains("`limits.max-jobs-per-member`, which is 2"), "{why}");
    let mut bob = scripted.session("bob").await;
    build(&mut bob, derivation("other", "write:x", &[])).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 2);
    scripted.script.gate.cancel();
    told(&mut large).await.is(BuildStatus::Built);
    told(&mut small).await.is(BuildStatus::Built);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_runs_out_of_memory_starts_again_with_twice_as_much() {
    let served = Served::open_with_tickets(CONFIG).await;
    let scripted = &served.scripted;
    let mut alice = scripted.session("alice").await;
    let drv = || derivation("hungry", "cpu:10 needs:3000 size", &[]);
    let built = build(&mut alice, drv()).await;
    built.is(BuildStatus::Built);
    let drv_path = path("hungry.drv").to_absolute_path();
    assert_eq!(
        notes(&built),
        [
            format!("note: '{drv_path}' ran out of 1024 MiB of memory; it starts again with 2048 MiB"),
            format!("note: '{drv_path}' ran out of 2048 MiB of memory; it starts again with 4096 MiB"),
        ]
    );
    assert_eq!(contents(&mut alice, "hungry").await, "1x4096");
    // Every start is charged.
    let used = served.used("alice").await;
    assert_eq!((used["cpu_seconds"].as_f64(), used["builds"].as_u64()), (Some(30.0), Some(3)), "{used}");
    // That memory ran out is not remembered; what came of it in the end is, under the key of its memory.
    let mut bob = scripted.session("bob").await;
    let reused = build(&mut bob, drv()).await;
    reused.is(BuildStatus::Substituted);
    assert_eq!((notes(&reused).len(), scripted.runs()), (2, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_grows_up_to_max_mem_and_as_often_as_the_setting_says_and_what_ended_it_is_named() {
    let scripted = Scripted::open(CONFIG);
    for (variables, runs, limit, why) in [
        (&[][..], 3, "the limit is 4096 MiB", "`max-build-restarts` is 2"),
        (
            &[("BARN_MAX_BUILD_RESTARTS", "10")],
            3,
            "the limit is 4096 MiB",
            "(the box's `limits.max-memory-mib`)",
        ),
        (&[("BARN_MAX_BUILD_RESTARTS", "1")], 2, "the limit is 2048 MiB", "it was started 2 times"),
        (
            &[("NIXBUILDNET_MAX_BUILD_RESTARTS", "0")],
            1,
            "the limit is 1024 MiB",
            "(the client's `max-build-restarts`, or",
        ),
        (&[], 3, "the limit is 4096 MiB", "(the box's `limits.max-memory-mib`)"),
        (
            &[("BARN_MAX_BUILD_RESTARTS", "1")],
            2,
            "the limit is 2048 MiB",
            "(the client's `max-build-restarts`, or",
        ),
        (&[("BARN_MAX_MEM", "2048")], 2, "the limit is 2048 MiB", "(the client's `max-mem`, or"),
        (
            &[("BARN_MIN_MEM", "1500"), ("BARN_MAX_BUILD_RESTARTS", "0")],
            1,
            "the limit is 1500 MiB",
            "(the client's `min-mem`, or",
        ),
        (&[("BARN_MAX_MEM", "1500")], 2, "the limit is 1500 MiB", "started 2 times"),
        (&[("BARN_MAX_MEM", "512")], 1, "the limit is 512 MiB", "`max-mem`"),
    ] {
        let before = scripted.runs();
        let mut alice = scripted.session_with("alice", from_client(variables)).await;
        let failed = build(&mut alice, derivation("t", "memory", &[])).await;
        failed.is(BuildStatus::PermanentFailure);
        assert!(failed.message.contains(limit) && failed.message.contains(why), "{failed:?}");
        assert_eq!(scripted.runs() - before, runs, "{variables:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joined_a_build_that_ran_out_of_memory_joins_the_next_one_too() {
    let scripted = Scripted::open(CONFIG);
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    let drv = || derivation("t", "log:early gate needs:2000 count", &[]);
    send(&mut alice, drv()).await;
    scripted.until_runs(1).await;
    send(&mut bob, drv()).await;
    let waits =
        || scripted.agent.realiser.scheduler.list(&|_| true).iter().map(|run| run.requests).sum::<usize>();
    until("bob to join", || waits() == 2).await;
    scripted.script.gate.cancel();
    for client in [&mut alice, &mut bob] {
        let given = told(client).await;
        assert_eq!((given.status, notes(&given).len()), (BuildStatus::Built as u64, 1), "{given:?}");
    }
    assert_eq!(scripted.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sandbox_is_started_again_as_it_was_and_no_more_often_than_the_setting_says() {
    let scripted = Scripted::open(CONFIG);
    let mut alice = scripted.session("alice").await;
    let began = std::time::Instant::now();
    let built = build(&mut alice, derivation("t", "breaks:2 size", &[])).await;
    assert!(began.elapsed().as_secs() >= 3, "a pause of one second, and one of two");
    built.is(BuildStatus::Built);
    assert_eq!((notes(&built).len(), contents(&mut alice, "t").await.as_str()), (2, "1x1024"));
    let failed = build(&mut alice, derivation("u", "broken", &[])).await;
    failed.is(BuildStatus::TransientFailure);
    assert!(failed.message.contains("it was started 3 times; `max-build-restarts` is 2"), "{failed:?}");
    assert_eq!(scripted.runs(), 6);
    let mut once = scripted.session_with("alice", from_client(&[("BARN_MAX_BUILD_RESTARTS", "0")])).await;
    build(&mut once, derivation("u", "broken", &[])).await.is(BuildStatus::TransientFailure);
    assert_eq!(scripted.runs(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_order_of_directories_is_a_build_of_ones_own_and_shows_what_depends_on_it() {
    let scripted = Scripted::open("");
    let drv = || derivation("t", "order", &[]);
    let mut bob = scripted.session("bob").await;
    build(&mut bob, drv()).await.is(BuildStatus::Built);
    assert_eq!(contents(&mut bob, "t").await, "plain");
    let random = || from_client(&[("NIXBUILDNET_INJECT_FS_RANDOMNESS", "true")]);
    let mut alice = scripted.session_with("alice", random()).await;
    // The result of the box's own envelope is no answer, and hers is none for others.
    build(&mut alice, drv()).await.is(BuildStatus::Built);
    assert_eq!(contents(&mut alice, "t").await, "random");
    build(&mut alice, derivation("u", "order", &[])).await.is(BuildStatus::Built);
    build(&mut bob, derivation("u", "order", &[])).await.is(BuildStatus::Built);
    assert_eq!((contents(&mut bob, "u").await.as_str(), scripted.runs()), ("plain", 4));
    // A check with the setting compares a result without it.
    let mut bob = scripted.session_with("bob", random()).await;
    let check = |drv| build_request(drv, BuildMode::Check);
    bob.request(&check(drv())).await.expect("sent");
    told(&mut bob).await.is(BuildStatus::NotDeterministic);
    let steady = || derivation("steady", "write:x", &[]);
    build(&mut bob, steady()).await.is(BuildStatus::Built);
    bob.request(&check(steady())).await.expect("sent");
    told(&mut bob).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 7);
}
