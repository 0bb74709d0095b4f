//! One member's paths or logs have all the room that they may have, and the member goes on storing; another one is measured,
//! alone and beside that, and keeps what they have. Real OpenSSH, front door, protocols, store and scheduler; a script plays
//! the builders. Uploads that stall in the middle are in `tests/tests/attacks/stalls.rs`.

mod common;

use std::time::{Duration, Instant};

use common::beside::{Trying, bobs_work, is_close};
use common::client::is_valid;
use common::scripted::{derivation, path};
use common::served::{ServeSession, Served, Session};
use common::{PATIENCE, said};
use nix::{BuildMode, BuildStatus};
use nix_derivation::{ContentAddressMethod, DerivedPath, HashAlgorithm, SingleDerivedPath, StorePath};
use serde_json::json;
use wire::client::{End, encode_file_nar, encode_frames};
use wire::worker::Request;

/// A file that several fit of into the room of alice.
const FILE: usize = 256 << 10;

/// The ways in which a client uploads.
enum Uploading {
    Worker(Session),
    Serve(ServeSession),
}

/// Uploads files, which this session then needs, until one is refused. Returns the number and the refusal.
async fn fill(session: &mut Session, name: &str) -> (usize, String) {
    for number in 0..40 {
        if let Some(message) = session.add(&format!("{name}-{number}"), &vec![number as u8; FILE]).await {
            return (number, message);
        }
    }
    panic!("10 MiB fit into 4");
}

/// Where alice's limit comes from.
#[derive(Debug, Clone, Copy)]
enum SetBy {
    Box,
    Roster,
    Group,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_paths_fill_their_room_and_who_keeps_uploading_does_not_delay_others() {
    for (set_by, origin, whom) in [
        (SetBy::Box, "the box's `limits.max-store-mib-per-member`", "the operator of the box"),
        (SetBy::Roster, "your `max-store-mib` in the roster", "a maintainer of the roster"),
        (SetBy::Group, "`max-store-mib` of the group 'ci' in the roster", "a maintainer of the roster"),
    ] {
        let served = match set_by {
            SetBy::Box => Served::open("limits.max-store-mib-per-member = 4").await,
            SetBy::Roster | SetBy::Group => Served::open("").await,
        };
        match set_by {
            SetBy::Box => {}
            SetBy::Roster => served.scripted.limit("alice", json!({ "max-store-mib": 4 })),
            SetBy::Group => served.scripted.group(&["alice"], json!({ "max-store-mib": 4 })),
        }
        // No session needs this any more, so it could be removed.
        let mut bob = served.session("bob").await;
        assert_eq!(bob.add("bobs", b"bob was here").await, None);
        drop(bob);
        let alone = bobs_work(&served, "alone").await;

        let mut holds = served.session("alice").await;
        let (held, message) = fill(&mut holds, "held").await;
        assert!(held >= 10, "{held} files took 4 MiB");
        said(&message, &["4 of the 4 MiB", origin, "Remove roots that you do not need any more", whom]);
        let uploading = vec![
            Uploading::Worker(served.session("alice").await),
            Uploading::Serve(served.serve_session("alice").await),
            Uploading::Worker(served.session("alice").await),
            Uploading::Serve(served.serve_session("alice").await),
        ];
        let mut trying = Trying::start(uploading, move |mut uploading, number| async move {
            let (name, contents) = (format!("more-{number}"), vec![number as u8; FILE]);
            let message = match &mut uploading {
                Uploading::Worker(alice) => alice.add(&name, &contents).await.expect("a refusal"),
                Uploading::Serve(alice) => alice.refused(&name, &contents, origin).await,
            };
            said(&message, &["of the 4 MiB", origin, whom]);
            uploading
        });
        trying.until(8).await;
        let beside = bobs_work(&served, "beside").await;
        trying.end().await;
        assert!(is_close(beside, alone), "{set_by:?}: {beside:?}, alone {alone:?}");

        // Neither bob's path nor what alice's session needs made room for the rest.
        let mut bob = served.session("bob").await;
        bob.client.call(&Request::NarFromPath { path: path("bobs") }).await.expect("an answer");
        assert_eq!(bob.client.nar().await.expect("a nar"), encode_file_nar(b"bob was here", false));
        for number in 0..held {
            assert!(is_valid(&mut holds.client, &path(&format!("held-{number}"))).await, "{number}");
        }
        // As the message says: the end of the session that needs the old paths makes room for new ones.
        drop(holds);
        let mut alice = served.session("alice").await;
        let began = Instant::now();
        while alice.add("later", &[7; FILE]).await.is_some() {
            assert!(began.elapsed() < PATIENCE, "{set_by:?}: no room after the session's end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Uploads a derivation of which everybody may see the log.
async fn add_open_drv(session: &mut Session, name: &str, script: &str) -> StorePath {
    let aterm = format!(
        r#"Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",["{script}"],[("name","{name}")])"#
    );
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    let (name, references) = (format!("{name}.drv"), Default::default());
    let request = Request::AddToStore { name, method, algorithm, references, repair: false };
    session.client.request(&request).await.expect("sent");
    session.client.framed(aterm.as_bytes()).await.expect("sent");
    session.client.done().await.expect("taken");
    session.client.path_info(None).await.expect("info").path
}

/// Builds such a derivation.
async fn build_open(session: &mut Session, name: &str, script: &str) -> StorePath {
    let drv = add_open_drv(session, name, script).await;
    let drv_path = SingleDerivedPath::Opaque(drv.clone());
    let paths = vec![DerivedPath::Built { drv_path, outputs: vec!["out".into()] }];
    let request = Request::BuildPaths { paths, mode: BuildMode::Normal };
    session.client.call(&request).await.expect("built");
    assert_eq!(session.client.u64().await.expect("a result"), 1);
    drv
}

async fn log(served: &Served, member: &str, drv: &StorePath) -> Result<String, String> {
    let output = served.run(member, &["log", &drv.to_absolute_path()]).await;
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_logs_fill_their_room_takes_no_log_of_others_away() {
    let served = Served::open("limits.max-kept-logs-mib = 1").await;
    let mut bob = served.session("bob").await;
    bob.build(derivation("bobs", "log:planing write:bobs", &[]), BuildStatus::Built).await;
    let failing = || derivation("bad", "log:cracked exit:1", &[]);
    bob.build(failing(), BuildStatus::PermanentFailure).await;
    let open = build_open(&mut bob, "open", "log:gathered write:open").await;
    let logs =
        [(path("bobs.drv"), "planing\n"), (path("bad.drv"), "cracked\n"), (open.clone(), "gathered\n")];
    // The middle one of three times.
    let reads = async || {
        let mut times = Vec::new();
        for _ in 0..3 {
            let began = Instant::now();
            for (drv, text) in &logs {
                assert_eq!(log(&served, "bob", drv).await.as_deref(), Ok(*text));
            }
            times.push(began.elapsed());
        }
        times.sort();
        times[1]
    };
    let (read_alone, alone) = (reads().await, bobs_work(&served, "alone").await);

    // Each of alice's builders writes a fifth of the room: some for her alone, some for everybody, some and then fail.
    let mut alice = served.session("alice").await;
    let line = |number: usize| format!("log:{}-{}", number, "x".repeat(200 << 10));
    let first = (
        derivation("first", &format!("{} write:first", line(0)), &[]),
        build_open(&mut alice, "first-open", &format!("{} write:first", line(0))).await,
    );
    alice.build(first.0.clone(), BuildStatus::Built).await;
    assert!(log(&served, "alice", &first.0.0).await.is_ok() && log(&served, "bob", &first.1).await.is_ok());
    let tasks = vec![alice, served.session("alice").await];
    let mut trying = Trying::start(tasks, move |mut alice, number| async move {
        let (name, line) = (format!("more-{number}"), line(number));
        match number % 3 {
            0 => {
                build_open(&mut alice, &name, &format!("{line} write:{name}")).await;
            }
            1 => {
                let drv = derivation(&name, &format!("{line} write:{name}"), &[]);
                alice.build(drv, BuildStatus::Built).await;
            }
            _ => {
                let drv = derivation(&name, &format!("{line} exit:1"), &[]);
                alice.build(drv, BuildStatus::PermanentFailure).await;
            }
        }
        alice
    });
    // Several times of what fits.
    trying.until(45).await;
    let (read_beside, beside) = (reads().await, bobs_work(&served, "beside").await);
    trying.end().await;
    assert!(is_close(read_beside, read_alone), "{read_beside:?}, alone {read_alone:?}");
    assert!(is_close(beside, alone), "{beside:?}, alone {alone:?}");

    for drv in [&first.0.0, &first.1] {
        let message = log(&served, "alice", drv).await.expect_err("an old log of alice");
        said(&message, &["more than 1 MiB (the box's `limits.max-kept-logs-mib`)", "`--rebuild`"]);
    }
    // Others still read what bob shows to everybody, and his failure is told again with its log.
    assert_eq!(log(&served, "alice", &open).await.as_deref(), Ok("gathered\n"));
    let again = bob.build(failing(), BuildStatus::CachedFailure).await;
    assert_eq!(again.log(), ["cracked"]);
}

/// Sends a log, which need not be all of it. Returns why it is refused, if it is and was all of it.
async fn send_log(session: &mut Session, name: &str, bytes: &[u8], is_all: bool) -> Option<String> {
    let drv_path = path(&format!("{name}.drv"));
    session.client.request(&Request::AddBuildLog { drv_path }).await.expect("sent");
    let frames = encode_frames(bytes, 32 << 10);
    // The end is an empty frame.
    let sent = if is_all { &frames[..] } else { &frames[..frames.len() - 8] };
    session.client.send(sent).await.expect("sent");
    if !is_all {
        return None;
    }
    match session.client.log().await.expect("an answer").1 {
        End::Last => assert_eq!(session.client.u64().await.expect("an answer"), 1),
        End::Error(message) => return Some(message),
        end => panic!("{end:?}"),
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_that_stall_on_their_way_have_no_more_room_than_kept_ones_and_delay_nobody() {
    let served = Served::open("limits.max-kept-logs-mib = 1\nlimits.max-log-mib = 1").await;
    let alone = bobs_work(&served, "alone").await;
    // More than half of the room.
    let most = vec![b'l'; 700 << 10];
    let mut stalled = served.session("alice").await;
    send_log(&mut stalled, "stalled", &most, false).await;
    let mut alice = served.session("alice").await;
    let began = Instant::now();
    for number in 0.. {
        if send_log(&mut alice, &format!("early-{number}"), &most, true).await.is_some() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the log that stalls takes no room");
    }
    let tasks = vec![alice, served.session("alice").await];
    let text = most.clone();
    let mut trying = Trying::start(tasks, move |mut alice, number| {
        let text = text.clone();
        async move {
            let message = send_log(&mut alice, &format!("more-{number}"), &text, true).await;
            let parts =
                ["more than 1 MiB together (the box's `limits.max-kept-logs-mib`)", "send fewer at a time"];
            said(&message.expect("a refusal"), &parts);
            alice
        }
    });
    trying.until(8).await;
    let beside = bobs_work(&served, "beside").await;
    let mut bob = served.session("bob").await;
    assert_eq!(send_log(&mut bob, "bobs", &most, true).await, None);
    trying.end().await;
    assert!(is_close(beside, alone), "{beside:?}, alone {alone:?}");
    assert_eq!(log(&served, "bob", &path("bobs.drv")).await.map(|text| text.len()), Ok(most.len()));

    drop(stalled);
    let (mut alice, began) = (served.session("alice").await, Instant::now());
    while send_log(&mut alice, "later", &most, true).await.is_some() {
        assert!(began.elapsed() < PATIENCE, "no room after the session's end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
