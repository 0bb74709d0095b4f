//! Builders that fail, or that try to exceed their limits, each in the namespace sandbox of a real agent. The
//! client gets the reason, once; no output becomes visible; no process remains; the next build works.

use std::sync::atomic::{AtomicU32, Ordering};

use e2e::hostile::*;
use nix::BuildStatus;
use wire::types::ClientSettings;
use wire::worker::Request;

/// Builds a bad derivation, then a good one; returns the answer for the bad one.
async fn bad_build(test_box: &TestBox, script: &str) -> Told {
    bad_build_with(test_box, ClientSettings::default(), script).await
}

async fn bad_build_with(test_box: &TestBox, settings: ClientSettings, script: &str) -> Told {
    let mut session = test_box.session().await;
    session.call(&Request::SetOptions(settings)).await;
    let told = session.build(derivation(test_box, "bad", script)).await;
    assert!(!session.is_valid(&path("bad")).await, "a failed build left an output");
    let agent = test_box.agent.pid();
    until("every process of the build to end", || family(agent) == [family(agent)[0]]).await;
    static BUILDS: AtomicU32 = AtomicU32::new(0);
    let name = format!("good-{}", BUILDS.fetch_add(1, Ordering::Relaxed));
    let good = session.build(derivation(test_box, &name, "echo fine; echo good > $out")).await;
    assert_eq!(good.status, BuildStatus::Built as u64, "{good:?}");
    session.leave().await;
    told
}

fn assert_told(told: &Told, status: BuildStatus, parts: &[&str]) {
    assert_eq!(told.status, status as u64, "{told:?}");
    for part in parts {
        assert!(told.message.contains(part), "{part:?} is not in {:?}", told.message);
    }
    assert!(told.message.contains(&path("bad.drv").to_absolute_path()), "which build? {:?}", told.message);
}

#[tokio::test]
async fn a_builder_that_fails_is_reported_with_its_exit_code_and_last_lines() {
    let test_box = TestBox::open(&[]).await;
    let told =
        bad_build(&test_box, "echo checking for gcc; echo no luck >&2; echo half > $out; exit 42").await;
    assert_told(
        &told,
        BuildStatus::PermanentFailure,
        &["failed with exit code 42", "> checking for gcc\n> no luck"],
    );
    assert_eq!(told.log[1..], ["checking for gcc", "no luck"]);
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_killed_by_a_signal_is_reported_with_the_signal() {
    let test_box = TestBox::open(&[]).await;
    // As PID 1 the shell ignores signals that it sends itself; the kernel's limit on CPU time still kills it.
    let told = bad_build(&test_box, "ulimit -t 1; while :; do :; done").await;
    assert_told(&told, BuildStatus::PermanentFailure, &["failed due to signal 9 (Killed)"]);
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_never_ends_meets_the_limit_of_the_box() {
    let test_box = TestBox::open(&["limits.max-build-seconds = 2"]).await;
    let told = bad_build(&test_box, "while :; do echo on and on; $bb sleep 0.1; done").await;
    assert_told(&told, BuildStatus::TimedOut, &["timed out after 2 seconds", "`limits.max-build-seconds`"]);
    assert!(told.log.contains(&"on and on".to_owned()));
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_never_ends_meets_the_timeout_of_the_client() {
    let test_box = TestBox::open(&[]).await;
    let overrides = [("timeout".to_owned(), "1".to_owned())].into();
    let settings = ClientSettings { overrides, ..ClientSettings::default() };
    let told = bad_build_with(&test_box, settings, "while :; do echo on and on; $bb sleep 0.1; done").await;
    assert_told(&told, BuildStatus::TimedOut, &["timed out after 1 seconds", "the client's `timeout`"]);
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_never_ends_meets_the_limit_of_its_member() {
    let test_box = TestBox::open_with(&[], serde_json::json!({ "max-build-seconds": 1 })).await;
    let told = bad_build(&test_box, "while :; do echo on and on; $bb sleep 0.1; done").await;
    assert_told(
        &told,
        BuildStatus::TimedOut,
        &["timed out after 1 seconds", "your `max-build-seconds` in the roster"],
    );
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_says_nothing_for_too_long_is_ended() {
    let test_box = TestBox::open(&["limits.max-silent-seconds = 1"]).await;
    let told = bad_build(&test_box, "echo first; $bb sleep 1000").await;
    assert_told(&told, BuildStatus::TimedOut, &["1 seconds of silence", "`limits.max-silent-seconds`"]);
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_fills_memory_is_ended_and_the_limit_named() {
    let test_box = TestBox::open(&["limits.max-memory-mib = 64"]).await;
    for script in [
        "$bb tail -c 400m /dev/zero",
        "for d in /build /tmp; do $bb dd if=/dev/zero of=$d/big bs=1M count=31; done; $bb tail -c 400m /dev/zero",
    ] {
        let told = bad_build(&test_box, script).await;
        assert_told(
            &told,
            BuildStatus::PermanentFailure,
            &["ran out of memory: the limit is 64 MiB", "`limits.max-memory-mib`"],
        );
    }
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_forks_without_end_is_ended_and_the_limit_named() {
    let test_box = TestBox::open(&["limits.max-processes = 100"]).await;
    // The children stay: the namespace sandbox counts many times a second, and may miss processes that end in
    // between.
    let told = bad_build(&test_box, "$bb sleep 1000 & (while :; do $bb sleep 1000 & done) || wait").await;
    assert_told(&told, BuildStatus::PermanentFailure, &["more than 100 processes", "`limits.max-processes`"]);
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_prints_without_end_is_ended_and_the_limit_named() {
    let test_box = TestBox::open(&["limits.max-log-mib = 1"]).await;
    let told =
        bad_build(&test_box, "exec $bb yes and on and on and on and on and on and on and on and on and on")
            .await;
    assert_told(
        &told,
        BuildStatus::LogLimitExceeded,
        &["more than 1048576 bytes of log output", "`limits.max-log-mib`"],
    );
    let shown: usize = told.log.iter().map(|line| line.len()).sum();
    assert!(shown <= 1 << 20, "the client was sent {shown} bytes");
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_prints_one_endless_line_is_ended_too() {
    let test_box = TestBox::open(&["limits.max-log-mib = 1"]).await;
    let told = bad_build(&test_box, "exec $bb cat /dev/zero").await;
    assert_told(&told, BuildStatus::LogLimitExceeded, &["more than 1048576 bytes of log output"]);
    test_box.close().await;
}

#[tokio::test]
async fn an_output_over_the_limit_is_refused_and_the_limit_named() {
    let test_box = TestBox::open(&["limits.max-output-mib = 1"]).await;
    let told = bad_build(&test_box, "$bb dd if=/dev/zero of=$out bs=1M count=3 2>/dev/null").await;
    assert_told(
        &told,
        BuildStatus::OutputRejected,
        &["larger than 1048576 bytes", "`limits.max-output-mib`"],
    );
    test_box.close().await;
}

#[tokio::test]
async fn a_silent_builder_and_a_large_output_meet_the_limits_of_their_member() {
    let limits = serde_json::json!({ "max-silent-seconds": 1, "max-output-mib": 1 });
    let test_box = TestBox::open_with(&[], limits).await;
    let told = bad_build(&test_box, "echo first; $bb sleep 1000").await;
    assert_told(
        &told,
        BuildStatus::TimedOut,
        &["1 seconds of silence (your `max-silent-seconds` in the roster)"],
    );
    let told = bad_build(&test_box, "$bb dd if=/dev/zero of=$out bs=1M count=3 2>/dev/null").await;
    assert_told(
        &told,
        BuildStatus::OutputRejected,
        &["larger than 1048576 bytes (your `max-output-mib` in the roster)"],
    );
    test_box.close().await;
}

#[tokio::test]
async fn a_missing_output_is_named_with_its_path() {
    let test_box = TestBox::open(&[]).await;
    let told = bad_build(&test_box, "echo forgot").await;
    let place = path("bad").to_absolute_path();
    assert_told(
        &told,
        BuildStatus::OutputRejected,
        &["failed to produce output path for output 'out'", &place],
    );
    test_box.close().await;
}

#[tokio::test]
async fn an_output_that_cannot_be_a_store_path_is_the_builders_fault_and_quoted() {
    let test_box = TestBox::open(&[]).await;
    let inside = format!("{}/d/pipe is a fifo", path("bad").to_absolute_path());
    let whole = format!("{} is a fifo", path("bad").to_absolute_path());
    for (script, part) in
        [("$bb mkdir $out; $bb mkdir $out/d; $bb mkfifo $out/d/pipe", &inside), ("$bb mkfifo $out", &whole)]
    {
        let told = bad_build(&test_box, script).await;
        assert_told(
            &told,
            BuildStatus::OutputRejected,
            &["output 'out'", part, "only regular files, directories and symlinks"],
        );
        assert!(!told.message.contains("not an error of the builder"), "{told:?}");
    }
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_that_cannot_be_started_is_named() {
    let test_box = TestBox::open(&[]).await;
    let mut session = test_box.session().await;
    let (drv, mut derivation) = derivation(&test_box, "bad", "");
    derivation.builder = "/does/not/exist".into();
    let told = session.build((drv, derivation)).await;
    assert_told(
        &told,
        BuildStatus::PermanentFailure,
        &["executing '/does/not/exist': No such file or directory"],
    );
    assert!(!told.message.contains("not an error of the builder"), "{told:?}");
    session.leave().await;
    test_box.close().await;
}

#[tokio::test]
async fn what_a_builder_leaves_running_ends_with_it_and_cannot_change_its_output() {
    let test_box = TestBox::open(&[]).await;
    let script = "echo first > $out; ($bb setsid /bin/sh -c \"$bb sleep 0.2; echo late > $out; $bb sleep 1000\" &); exit 0";
    let mut session = test_box.session().await;
    let told = session.build(derivation(&test_box, "left", script)).await;
    assert_eq!(told.status, BuildStatus::Built as u64, "{told:?}");
    let agent = test_box.agent.pid();
    until("every process of the build to end", || family(agent) == [family(agent)[0]]).await;
    session.call(&Request::NarFromPath { path: path("left") }).await;
    assert_eq!(session.client.nar().await.expect("a NAR"), nar(&file(b"first\n")));
    session.leave().await;
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_finds_no_network_but_its_own_loopback() {
    let test_box = TestBox::open(&[]).await;
    // The agent itself listens on the host's loopback: a builder must not be able to connect to it.
    let script = format!(
        "$bb tail -n +3 /proc/net/dev | $bb cut -d: -f1; \
         for to in '127.0.0.1 {port}' '192.0.2.1 80' '8.8.8.8 53'; do \
           if $bb nc -w 2 $to </dev/null; then echo reached $to; fi; \
         done; \
         if $bb nslookup example.org 127.0.0.1; then echo resolved; fi; \
         echo done; exit 3",
        port = test_box.agent.port()
    );
    let told = bad_build(&test_box, &script).await;
    assert_told(&told, BuildStatus::PermanentFailure, &["failed with exit code 3"]);
    assert!(told.log[0].ends_with("network devices: lo"), "{:?}", told.log);
    assert_eq!(told.log[1].trim(), "lo", "{:?}", told.log);
    assert!(told.log.contains(&"done".to_owned()), "{:?}", told.log);
    let got_out = |line: &String| {
        line.starts_with("reached") || line.starts_with("resolved") || line.contains("SSH-2.0")
    };
    assert!(!told.log.iter().any(got_out), "{:?}", told.log);
    test_box.close().await;
}

#[tokio::test]
async fn a_builder_cannot_change_its_inputs() {
    let test_box = TestBox::open(&[]).await;
    let script = "for in in $bb ${bb%/*}; do \
           if ( echo evil > $in ) 2>/dev/null; then echo wrote $in; fi; \
           if ( echo evil > $in/new ) 2>/dev/null; then echo wrote in $in; fi; \
           if $bb chmod 777 $in 2>/dev/null; then echo changed $in; fi; \
           if $bb rm -rf $in 2>/dev/null; then echo removed $in; fi; \
           if $bb mv $in $out 2>/dev/null; then echo moved $in; fi; \
           if $bb mount -o remount,rw $in 2>/dev/null; then echo remounted $in; fi; \
         done; \
         $bb sha256sum $bb; echo done; exit 3";
    let told = bad_build(&test_box, script).await;
    assert_told(&told, BuildStatus::PermanentFailure, &["failed with exit code 3"]);
    let sum = &told.log[1];
    let host =
        std::process::Command::new("sha256sum").arg(e2e::place::busybox()).output().expect("sha256sum");
    let host = String::from_utf8(host.stdout).expect("text");
    assert_eq!(sum.split(' ').next(), host.split(' ').next(), "{:?}", told.log);
    assert_eq!(told.log[2..], ["done"], "{:?}", told.log);
    test_box.close().await;
}

/// More inputs than would fit on bubblewrap's command line, if each were named there.
const MANY: usize = 4_000;

#[tokio::test]
async fn a_build_of_four_thousand_inputs_sees_them_all() {
    let test_box = TestBox::open(&[]).await;
    let mut session = test_box.session().await;
    let inputs: Vec<_> = (0..MANY)
        .map(|number| {
            let nar = nar(&file(number.to_string().as_bytes()));
            (info(&format!("input-{number}"), &nar), nar)
        })
        .collect();
    session.request(&Request::AddMultipleToStore { repair: false, dont_check_sigs: true }).await;
    session.client.framed(&items(MANY as u64, &inputs)).await.expect("the box reads");
    within("an answer", session.client.done()).await.expect("added");
    let script = "$bb ls /nix/store | $bb grep -c -- -input-; $bb cat /nix/store/*-input-3999; echo > $out";
    let (drv, mut derivation) = derivation(&test_box, "many", script);
    derivation.input_sources.extend(inputs.into_iter().map(|(info, _)| info.path));
    let told = session.build((drv, derivation)).await;
    assert_eq!(told.status, BuildStatus::Built as u64, "{told:?}");
    assert_eq!(told.log[1..], [MANY.to_string(), "3999".to_owned()]);
    session.leave().await;
    test_box.close().await;
}
