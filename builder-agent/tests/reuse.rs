//! Equal requests share one build: they join it while it runs, and reuse its result when it has ended. A
//! request for something else never gets it. Real wire, store and scheduler; a script plays the builders.

mod common;

use common::client::{
    Drv, Told, build, build_request, is_valid, send, set_option, told, wait_for_line, wait_for_start,
};
use common::scripted::{Scripted, TestClient, derivation, from_client, path};
use nix::{BuildMode, BuildStatus};
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use wire::client::{End, Frame};
use wire::types::ClientSettings;
use wire::worker::Request;

async fn check(client: &mut TestClient, what: Drv) -> Told {
    client.request(&build_request(what, BuildMode::Check)).await.expect("sent");
    told(client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_build_of_another_member_is_not_run_again() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    build(&mut alice, derivation("t", "log:sawing write:x", &[])).await.is(BuildStatus::Built);
    assert!(!is_valid(&mut bob, &path("t")).await, "nothing is handed out unasked");
    build(&mut bob, derivation("t", "log:sawing write:x", &[])).await.is(BuildStatus::Substituted);
    assert_eq!(scripted.runs(), 1);
    assert!(is_valid(&mut bob, &path("t")).await);
    for client in [&mut alice, &mut bob] {
        client.call(&Request::NarFromPath { path: path("t") }).await.expect("an answer");
        assert_eq!(client.nar().await.expect("a nar"), wire::client::encode_file_nar(b"x", false));
    }
    // Both can read its log.
    for member in ["alice", "bob"] {
        let mut log = String::new();
        let mut file = scripted.agent.realiser.kept.find(member, &path("t.drv")).expect("a log");
        std::io::Read::read_to_string(&mut file, &mut log).expect("readable");
        assert_eq!(log, "sawing\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_when_an_end_has_been_told_finds_it_recorded() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    for round in 0..200 {
        let (good, bad) = (format!("good-{round}"), format!("bad-{round}"));
        build(&mut alice, derivation(&good, "write:x", &[])).await.is(BuildStatus::Built);
        build(&mut bob, derivation(&good, "write:x", &[])).await.is(BuildStatus::Substituted);
        build(&mut bob, derivation(&bad, "exit:1", &[])).await.is(BuildStatus::PermanentFailure);
        build(&mut alice, derivation(&bad, "exit:1", &[])).await.is(BuildStatus::CachedFailure);
    }
    assert_eq!(scripted.runs(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_something_else_gets_something_else() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    build(&mut alice, derivation("t", "write:x", &[])).await.is(BuildStatus::Built);
    // The same output path with another builder, and then with another variable.
    build(&mut bob, derivation("t", "write:y", &[])).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 2);
    build(&mut bob, derivation("u", "write:x", &[("a", "1")])).await.is(BuildStatus::Built);
    build(&mut alice, derivation("u", "write:x", &[("a", "2")])).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_builds_own_is_told_again_to_everybody_with_how_to_try_again() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    build(&mut alice, derivation("t", "log:no-oak exit:3", &[])).await.is(BuildStatus::PermanentFailure);
    let (alices_drv, recipe) = derivation("t", "log:no-oak exit:3", &[]);
    let bobs_drv = StorePath::from_parts([9; 20], "t.drv").expect("a path");
    let bobs = build(&mut bob, (bobs_drv.clone(), recipe.clone())).await;
    bobs.is(BuildStatus::CachedFailure);
    assert_eq!(scripted.runs(), 1);
    assert_eq!(bobs.log(), ["no-oak"], "the log is shown again");
    let message = &bobs.message;
    assert!(
        message.contains(&format!(
            "'{}' failed with exit code 3;\nlast 1 log lines:\n> no-oak",
            bobs_drv.to_absolute_path()
        )),
        "{message}"
    );
    assert!(
        !message.contains(&alices_drv.to_absolute_path()),
        "another member's derivation is not named: {message}"
    );
    assert!(message.contains("ago") || message.contains("a moment ago"), "{message}");
    for way in ["--rebuild", "BARNRAISER_REUSE_FAILURES=0"] {
        assert!(message.contains(way), "{message}");
    }
    // Every way of asking works.
    check(&mut bob, (bobs_drv.clone(), recipe.clone())).await.is(BuildStatus::PermanentFailure);
    assert_eq!(scripted.runs(), 2);
    let mut wishes = daemon::SessionOptions::default();
    assert!(wishes.set("BARNRAISER_REUSE_FAILURES", "0") && !wishes.set("PATH", "0"));
    let mut again = scripted.session_with("bob", wishes).await;
    build(&mut again, (bobs_drv.clone(), recipe)).await.is(BuildStatus::PermanentFailure);
    assert_eq!(scripted.runs(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_reuses_no_failures_builds_again() {
    let scripted = Scripted::open("reuse-failures = false");
    let mut alice = scripted.session("alice").await;
    for _ in 0..2 {
        build(&mut alice, derivation("t", "exit:3", &[])).await.is(BuildStatus::PermanentFailure);
    }
    assert_eq!(scripted.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_the_builds_own_fault_is_tried_again() {
    let scripted = Scripted::open("settings.max-build-restarts = 0");
    let mut alice = scripted.session("alice").await;
    for (name, script) in [("late", "timeout"), ("big", "memory"), ("box", "broken")] {
        let before = scripted.runs();
        for _ in 0..2 {
            let told = build(&mut alice, derivation(name, script, &[])).await;
            assert_ne!(told.status, BuildStatus::CachedFailure as u64, "{told:?}");
        }
        assert_eq!(scripted.runs(), before + 2, "{name}");
    }
}

/// What a client asks for who wants time-outs reused, with another setting.
fn reusing(name: &str, value: &str) -> daemon::SessionOptions {
    from_client(&[("BARN_REUSE_BUILD_TIMEOUTS", "true"), (name, value)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_is_told_again_to_who_wants_that_and_would_give_no_more_time() {
    let scripted = Scripted::open("limits.max-build-seconds = 600");
    let mut alice = scripted.session_with("alice", from_client(&[("BARN_TIMEOUT", "60")])).await;
    let late = || derivation("late", "log:sawing timeout", &[]);
    // Whoever does not ask for it has it built again.
    for runs in [1, 2] {
        build(&mut alice, late()).await.is(BuildStatus::TimedOut);
        assert_eq!(scripted.runs(), runs);
    }
    let bobs_drv = StorePath::from_parts([9; 20], "late.drv").expect("a path");
    let bobs = || (bobs_drv.clone(), late().1);
    let mut bob = scripted.session_with("bob", reusing("BARN_TIMEOUT", "45")).await;
    let told = build(&mut bob, bobs()).await;
    told.is(BuildStatus::TimedOut);
    assert_eq!((scripted.runs(), told.log()), (2, vec!["sawing".to_owned()]), "the log is shown again");
    for part in [
        &format!(
            "building of '{}' timed out after 60 seconds: an earlier build",
            bobs_drv.to_absolute_path()
        ),
        "a moment ago",
        "`reuse-build-timeouts` is `true` in the ssh environment",
        "the limit of this request is 45 seconds (the client's `timeout`, or that of `ssh box settings`)",
        "give it more than 60 seconds (set a higher one)",
        "NIX_SSHOPTS='-o SetEnv=BARN_REUSE_BUILD_TIMEOUTS=false'",
    ] {
        assert!(told.message.contains(part), "no {part:?} in: {}", told.message);
    }
    assert!(!told.message.contains(&late().0.to_absolute_path()), "{}", told.message);

    // More time might be enough; and then it is the longer limit that is remembered, whoever tries a shorter one.
    let mut patient = scripted.session_with("bob", reusing("BARN_TIMEOUT", "61")).await;
    let told = build(&mut patient, bobs()).await;
    assert!(told.message.contains("timed out after 61 seconds, which is the limit"), "{}", told.message);
    build(&mut patient, bobs()).await.is(BuildStatus::TimedOut);
    assert_eq!(scripted.runs(), 3);
    build(&mut alice, late()).await.is(BuildStatus::TimedOut);
    assert_eq!(scripted.runs(), 4);
    assert!(
        build(&mut patient, bobs()).await.message.contains("timed out after 61 seconds: an earlier build")
    );
    assert_eq!(scripted.runs(), 4);
    // A client can try again, with a check or with the setting.
    check(&mut patient, bobs()).await.is(BuildStatus::TimedOut);
    assert_eq!(scripted.runs(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_by_silence_says_nothing_about_the_whole_time_and_the_reverse() {
    let scripted = Scripted::open("");
    let quiet = || derivation("quiet", "quiet:30 write:x", &[]);
    let mut bob = scripted.session_with("bob", reusing("BARN_MAX_SILENT_TIME", "10")).await;
    build(&mut bob, quiet()).await.is(BuildStatus::TimedOut);
    let told = build(&mut bob, quiet()).await;
    told.is(BuildStatus::TimedOut);
    assert!(
        told.message.contains("timed out after 10 seconds of silence: an earlier build"),
        "{}",
        told.message
    );
    assert_eq!(scripted.runs(), 1);
    // The whole time is not what ended it.
    let mut alice = scripted.session_with("alice", reusing("BARN_TIMEOUT", "5")).await;
    build(&mut alice, quiet()).await.is(BuildStatus::Built);
    // A result is the answer to everybody.
    build(&mut bob, quiet()).await.is(BuildStatus::Substituted);
    let late = || derivation("late", "timeout", &[]);
    build(&mut alice, late()).await.is(BuildStatus::TimedOut);
    build(&mut bob, late()).await.is(BuildStatus::TimedOut);
    assert_eq!(scripted.runs(), 4, "five seconds of the whole are no answer to who has hours");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_level_can_have_time_outs_reused_and_is_named_with_the_answer() {
    let scripted =
        Scripted::open("settings.reuse-build-timeouts = true\nsettings.settings-from-drv-env = true");
    let mut alice = scripted.session("alice").await;
    let again = async |client: &mut TestClient, name: &str, env: &[(&str, &str)]| {
        build(client, derivation(name, "timeout", env)).await.is(BuildStatus::TimedOut);
        build(client, derivation(name, "timeout", env)).await.message
    };
    let told = again(&mut alice, "box", &[]).await;
    assert!(
        told.contains("`reuse-build-timeouts = false` in the configuration of the box, or BARN_"),
        "{told}"
    );
    assert!(told.contains("is 14400 seconds (the box's `limits.max-build-seconds`)"), "{told}");
    let told = again(&mut alice, "drv", &[("BARN_REUSE_BUILD_TIMEOUTS", "1")]).await;
    // A variable of ssh would not override the derivation.
    assert!(told.contains("`reuse-build-timeouts = false` in the derivation, or wait"), "{told}");
    assert_eq!(scripted.runs(), 2);
    let told = again(&mut alice, "off", &[("BARN_REUSE_BUILD_TIMEOUTS", "0")]).await;
    assert!(!told.contains("an earlier build") && scripted.runs() == 4, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_in_another_way_than_at_a_time_limit_is_not_remembered_as_that() {
    let scripted = Scripted::open(
        "settings.max-build-restarts = 0\nsettings.reuse-build-timeouts = true\nlimits.max-log-mib = 1",
    );
    let mut alice = scripted.session("alice").await;
    let loud = format!("log:{}", "x".repeat(2 << 20));
    for (name, script) in [("big", "memory"), ("box", "broken"), ("loud", loud.as_str())] {
        let before = scripted.runs();
        for _ in 0..2 {
            build(&mut alice, derivation(name, script, &[])).await;
        }
        assert_eq!(scripted.runs(), before + 2, "{name}");
    }
    // Its builder may have waited for a server.
    let (drv, mut fetch) = derivation("fetch", "timeout", &[]);
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    let ca = nix_derivation::CAHash::from_parts(method, algorithm, &[1; 32]).expect("an address");
    fetch.outputs.insert("out".into(), nix_derivation::Output::Fixed { ca });
    let before = scripted.runs();
    for _ in 0..2 {
        build(&mut alice, (drv.clone(), fetch.clone())).await.is(BuildStatus::TimedOut);
    }
    assert_eq!(scripted.runs(), before + 2);
    // Nobody waits for it any more.
    let before = scripted.runs();
    let mut leaving = scripted.session("alice").await;
    send(&mut leaving, derivation("wait", "wait", &[])).await;
    scripted.until_runs(before + 1).await;
    drop(leaving);
    scripted.until_cancelled(1).await;
    send(&mut alice, derivation("wait", "wait", &[])).await;
    scripted.until_runs(before + 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_is_remembered_as_long_as_a_failure() {
    let scripted = Scripted::open("settings.reuse-build-timeouts = true\nreuse-failures-seconds = 2");
    let mut alice = scripted.session("alice").await;
    let late = || derivation("late", "timeout", &[]);
    build(&mut alice, late()).await.is(BuildStatus::TimedOut);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let told = build(&mut alice, late()).await;
    assert!(!told.message.contains("an earlier build") && scripted.runs() == 2, "{}", told.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_joins_a_running_build_and_gets_its_log_from_the_start() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    send(&mut alice, derivation("t", "log:early gate log:late write:x", &[])).await;
    scripted.until_runs(1).await;
    send(&mut bob, derivation("t", "log:early gate log:late write:x", &[])).await;
    // Once his log begins, bob waits for the run, too.
    wait_for_line(&mut bob, "early").await;
    scripted.script.gate.cancel();
    let (alices, bobs) = (told(&mut alice).await, told(&mut bob).await);
    alices.is(BuildStatus::Built);
    bobs.is(BuildStatus::Built);
    assert_eq!((alices.log(), bobs.log()), (vec!["early".into(), "late".into()], vec!["late".into()]));
    assert_eq!(scripted.runs(), 1);
    assert!(is_valid(&mut alice, &path("t")).await && is_valid(&mut bob, &path("t")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_for_who_still_waits_when_the_first_one_hangs_up() {
    let scripted = Scripted::open("limits.max-jobs-per-member = 1");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    let drv = || derivation("t", "log:early gate write:x", &[]);
    send(&mut alice, drv()).await;
    scripted.until_runs(1).await;
    send(&mut bob, drv()).await;
    wait_for_line(&mut bob, "early").await;
    drop(alice);
    // Alice has her slot back, and her session has ended.
    let mut later = scripted.session("alice").await;
    build(&mut later, derivation("u", "write:u", &[])).await.is(BuildStatus::Built);
    assert_eq!(scripted.cancelled(), 0);
    scripted.script.gate.cancel();
    told(&mut bob).await.is(BuildStatus::Built);
    assert!(is_valid(&mut bob, &path("t")).await);
    assert!(!is_valid(&mut later, &path("t")).await, "it was bob's in the end");
    assert_eq!(scripted.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_for_who_still_waits_when_the_first_one_is_removed() {
    let scripted = Scripted::open("limits.max-jobs = 2");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    let drv = || derivation("t", "log:early gate write:x", &[]);
    send(&mut alice, drv()).await;
    scripted.until_runs(1).await;
    send(&mut bob, drv()).await;
    wait_for_line(&mut bob, "early").await;
    // Only alice waits for this one: its end shows that the agent follows the roster.
    let mut alices = scripted.session("alice").await;
    send(&mut alices, derivation("hers", "log:early wait", &[])).await;
    wait_for_line(&mut alices, "early").await;
    scripted.set_roster(&["bob"]);
    scripted.until_cancelled(1).await;
    scripted.script.gate.cancel();
    told(&mut bob).await.is(BuildStatus::Built);
    assert_eq!(scripted.cancelled(), 1, "only the one that was alice's alone");
    assert!(is_valid(&mut bob, &path("t")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_have_left_the_build_ends() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    for client in [&mut alice, &mut bob] {
        send(client, derivation("t", "log:early wait", &[])).await;
        wait_for_line(client, "early").await;
    }
    drop(alice);
    drop(bob);
    scripted.until_cancelled(1).await;
    assert_eq!(scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_more_time_is_not_held_to_the_first_ones_limit() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    set_option(&mut alice, "timeout", "1").await;
    let drv = || derivation("t", "log:early limit write:x", &[]);
    send(&mut alice, drv()).await;
    wait_for_line(&mut alice, "early").await;
    send(&mut bob, drv()).await;
    wait_for_line(&mut bob, "early").await;
    scripted.script.gate.cancel();
    told(&mut alice).await.is(BuildStatus::TimedOut);
    // The script lets the second run through.
    let bobs = told(&mut bob).await;
    bobs.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asked_for_less_time_stops_waiting_alone() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    set_option(&mut bob, "timeout", "1").await;
    let drv = || derivation("t", "log:early gate write:x", &[]);
    send(&mut alice, drv()).await;
    wait_for_line(&mut alice, "early").await;
    let bobs = build(&mut bob, drv()).await;
    bobs.is(BuildStatus::TimedOut);
    assert!(bobs.message.contains("timed out after 1 seconds"), "{}", bobs.message);
    scripted.script.gate.cancel();
    told(&mut alice).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_builds_again_and_keeps_what_was_valid() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let same = || derivation("same", "write:x", &[]);
    let nothing = check(&mut alice, same()).await;
    assert!(nothing.message.contains("not valid, so checking is not possible"), "{}", nothing.message);
    build(&mut alice, same()).await.is(BuildStatus::Built);
    check(&mut alice, same()).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 2);

    let other = || derivation("other", "count", &[]);
    build(&mut alice, other()).await.is(BuildStatus::Built);
    let before = nar(&mut alice, "other").await;
    let told = check(&mut alice, other()).await;
    told.is(BuildStatus::NotDeterministic);
    let (drv, out) = (path("other.drv").to_absolute_path(), path("other").to_absolute_path());
    assert_eq!(told.message, format!("derivation '{drv}' may not be deterministic: output '{out}' differs"));
    assert_eq!(nar(&mut alice, "other").await, before);
    // Other members never get the result of a check.
    let mut bob = scripted.session("bob").await;
    build(&mut bob, other()).await.is(BuildStatus::Substituted);
    assert_eq!(nar(&mut bob, "other").await, before);
}

async fn nar(client: &mut TestClient, name: &str) -> Vec<u8> {
    client.call(&Request::NarFromPath { path: path(name) }).await.expect("an answer");
    client.nar().await.expect("a nar")
}

#[tokio::test(flavor = "multi_thread")]
async fn repairing_is_refused_by_name() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let request = build_request(derivation("t", "write:x", &[]), BuildMode::Repair);
    alice.request(&request).await.expect("sent");
    let (_, end) = alice.log().await.expect("an answer");
    assert!(matches!(&end, End::Error(message) if message.contains("--repair is refused")), "{end:?}");
    assert_eq!(scripted.runs(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keeping_a_failed_build_is_refused_with_a_reason_and_the_build_goes_on() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let settings = ClientSettings { keep_failed: true, ..ClientSettings::default() };
    alice.call(&Request::SetOptions(settings)).await.expect("taken");
    let told = build(&mut alice, derivation("t", "exit:1", &[])).await;
    told.is(BuildStatus::PermanentFailure);
    let said = told.frames.iter().any(|frame| match frame {
        Frame::Message(text) => String::from_utf8_lossy(text).contains("'--keep-failed' is refused"),
        _ => false,
    });
    assert!(said, "{:?}", told.frames);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_output_of_a_bare_recipe_names_no_derivation_to_others() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    let (drv, mut recipe) = derivation("t", "write:x", &[]);
    let hash = <sha2::Sha256 as sha2::Digest>::digest(b"x");
    let ca = nix_derivation::CAHash::from_parts(
        nix_derivation::ContentAddressMethod::Flat,
        nix_derivation::HashAlgorithm::Sha256,
        &hash,
    );
    let output = nix_derivation::Output::Fixed { ca: ca.expect("an address") };
    let out = output.path("t", "out").expect("a path").expect("known");
    recipe.outputs.insert("out".into(), output);
    build(&mut alice, (drv, recipe)).await.is(BuildStatus::Built);
    bob.call(&Request::QueryPathInfo { path: out.clone() }).await.expect("an answer");
    assert_eq!(bob.u64().await.expect("valid"), 1);
    let info = bob.path_info(Some(out)).await.expect("info");
    assert_eq!(info.deriver, None);
}

/// The owner of a run has no room for its outputs, which is nothing to those who joined it.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_room_in_the_store_is_told_so_and_whoever_joined_is_served() {
    let scripted = Scripted::open("");
    scripted.edit_roster(|roster| roster["members"][0]["limits"] = serde_json::json!({ "max-store-mib": 1 }));
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    // Almost all of the mebibyte, which another session of alice needs.
    let needed = scripted.agent.store.view(&store::Member::new("alice")).holding();
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    needed.add_ca("large", method, algorithm, &[].into(), &mut &[b'x'; 1_030_000][..]).expect("room for it");

    let drv = || derivation("t", "gate write:x", &[]);
    send(&mut alice, drv()).await;
    scripted.until_runs(1).await;
    send(&mut bob, drv()).await;
    wait_for_start(&mut bob).await;
    scripted.script.gate.cancel();
    let refused = told(&mut alice).await;
    refused.is(BuildStatus::TransientFailure);
    for part in ["cannot register the outputs of", "of the 1 MiB", "your `max-store-mib` in the roster"] {
        assert!(refused.message.contains(part), "{part}: {refused:?}");
    }
    told(&mut bob).await.is(BuildStatus::Built);
    assert_eq!(scripted.runs(), 2, "bob owns the second run");
    // The result that there is now does not fit either, and is not built again for that.
    assert!(build(&mut alice, drv()).await.message.contains("your `max-store-mib` in the roster"));
    assert_eq!(scripted.runs(), 2);
    drop(needed);
    build(&mut alice, drv()).await.is(BuildStatus::Substituted);
}
