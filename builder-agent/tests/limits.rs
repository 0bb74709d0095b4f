//! Every limit of a member or a group: it holds for that member, the others do not notice, and a higher one counts at once,
//! in sessions that are open. Real OpenSSH, front door, protocols and scheduler; a script plays the builders.

mod common;

use common::client::{wait_for_line, wait_for_reason};
use common::scripted::{Scripted, derivation, info_of, path};
use common::served::{Served, Session};
use common::{make_key, said};
use nix::BuildStatus;
use nix_derivation::{ContentAddressMethod, HashAlgorithm};
use serde_json::json;
use tokio::io::{AsyncReadExt, DuplexStream};
use wire::client::{End, encode_file_nar, encode_items};
use wire::serve::ImportedInfo;
use wire::serve_client::encode_export;
use wire::worker::Request;

const MEMBERS: &[&str] = &["alice", "bob", "carol"];

/// A box with three members.
async fn served(config: &str) -> Served {
    let served = Served::open(config).await;
    make_key(&served.dir().join("carol"));
    served.scripted.set_roster(MEMBERS);
    served
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_who_has_used_the_hours_of_the_roster_starts_no_build_until_they_are_raised() {
    let served = served("limits.max-cpu-hours-per-month = 5").await;
    served.scripted.limit("alice", json!({ "max-cpu-hours-per-month": 1 }));
    let (mut alice, mut bob) = (served.session("alice").await, served.session("bob").await);
    alice.build(derivation("t", "cpu:3600 write:x", &[]), BuildStatus::Built).await;
    let message = alice.refused(derivation("u", "write:u", &[])).await;
    said(
        &message,
        &[
            "you have used 1.0 of 1 CPU hours",
            "(your `max-cpu-hours-per-month` in the roster)",
            "ask a maintainer of the roster for more",
        ],
    );
    bob.build(derivation("b", "cpu:3600 write:b", &[]), BuildStatus::Built).await;
    bob.build(derivation("c", "write:c", &[]), BuildStatus::Built).await;
    // More than the box gives others.
    served.scripted.limit("alice", json!({ "max-cpu-hours-per-month": 9 }));
    alice.build(derivation("u", "cpu:25200 write:u", &[]), BuildStatus::Built).await;
    alice.build(derivation("v", "write:v", &[]), BuildStatus::Built).await;
    let text = served.output("alice", &["usage"]).await;
    said(&text, &["8.0 of 9 CPU hours used", "(max-cpu-hours-per-month, set by the roster)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_of_a_group_share_its_hours_and_others_have_their_own() {
    let served = served("").await;
    served.scripted.group(&["alice", "bob"], json!({ "max-cpu-hours-per-month": 1 }));
    let (mut alice, mut bob, mut carol) =
        (served.session("alice").await, served.session("bob").await, served.session("carol").await);
    alice.build(derivation("a", "cpu:1800 write:a", &[]), BuildStatus::Built).await;
    bob.build(derivation("b", "cpu:1800 write:b", &[]), BuildStatus::Built).await;
    let message = alice.refused(derivation("t", "write:t", &[])).await;
    said(
        &message,
        &[
            "the members of the group 'ci' have together used 1.0 of 1 CPU hours",
            "(the `max-cpu-hours-per-month` of the group 'ci' in the roster)",
            "ask a maintainer of the roster for more",
        ],
    );
    bob.refused(derivation("t", "write:t", &[])).await;
    carol.build(derivation("t", "cpu:3600 write:t", &[]), BuildStatus::Built).await;
    said(&served.output("bob", &["usage"]).await, &["1.0 of 1 CPU hours used", "set by the group ci"]);
    said(
        &served.output("bob", &["whoami"]).await,
        &["ci, max-cpu-hours-per-month 1 CPU hours for all its members together, set by the roster\n"],
    );

    // Who leaves the group takes the hours along.
    served.scripted.group(&["alice"], json!({ "max-cpu-hours-per-month": 1 }));
    alice.build(derivation("u", "write:u", &[]), BuildStatus::Built).await;
    served.scripted.group(&["alice", "bob"], json!({ "max-cpu-hours-per-month": 2 }));
    bob.build(derivation("v", "write:v", &[]), BuildStatus::Built).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_build_is_ended_at_its_members_limit_and_not_for_others() {
    let served = served("limits.max-silent-seconds = 60").await;
    served.scripted.limit("alice", json!({ "max-silent-seconds": 10 }));
    let (mut alice, mut bob) = (served.session("alice").await, served.session("bob").await);
    let drv = || derivation("t", "quiet:30 write:x", &[]);
    let message = alice.build(drv(), BuildStatus::TimedOut).await.message;
    said(
        &message,
        &[
            "timed out after 10 seconds of silence (your `max-silent-seconds` in the roster)",
            "ask a maintainer of the roster for more",
        ],
    );
    bob.build(drv(), BuildStatus::Built).await;
    served.scripted.limit("alice", json!({ "max-silent-seconds": 1000 }));
    let message = alice.build(derivation("u", "quiet:90 write:x", &[]), BuildStatus::TimedOut).await.message;
    said(&message, &["60 seconds of silence (the box's `limits.max-silent-seconds`)"]);
    alice.build(derivation("u", "quiet:50 write:x", &[]), BuildStatus::Built).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_have_their_members_limit_and_who_joined_the_build_has_another() {
    let served = served("").await;
    served.scripted.limit("alice", json!({ "max-output-mib": 1 }));
    let (mut alice, mut bob) = (served.session("alice").await, served.session("bob").await);
    let drv = || derivation("t", "log:sawing gate mib:2", &[]);
    alice.send(drv()).await;
    wait_for_line(&mut alice.client, "sawing").await;
    bob.send(drv()).await;
    wait_for_line(&mut bob.client, "sawing").await;
    served.scripted.script.gate.cancel();
    let message = alice.is(BuildStatus::OutputRejected).await.message;
    said(
        &message,
        &[
            "larger than 1048576 bytes (your `max-output-mib` in the roster)",
            "ask a maintainer of the roster for more",
        ],
    );
    // His build was hers. It is built again with his limits, and is nothing that is remembered as failed.
    bob.is(BuildStatus::Built).await;
    served.scripted.limit("alice", json!({ "max-output-mib": 3 }));
    alice.build(derivation("u", "mib:2", &[]), BuildStatus::Built).await;
}

/// How a client of the worker protocol sends a file.
#[derive(Clone, Copy, Debug)]
enum Way {
    Announced,
    Unannounced,
    Many,
}

impl Session {
    /// Uploads a file; the error message, if there is one.
    async fn upload(&mut self, way: Way, name: &str, contents: &[u8]) -> Option<String> {
        let nar = encode_file_nar(contents, false);
        let info = info_of(path(name), &nar, &[]);
        let (repair, dont_check_sigs) = (false, true);
        let (method, algorithm) = (ContentAddressMethod::Nar, HashAlgorithm::Sha256);
        let (request, body) = match way {
            Way::Announced => (Request::AddToStoreNar { info, repair, dont_check_sigs }, nar),
            Way::Unannounced => {
                let (name, references) = (name.to_owned(), Default::default());
                (Request::AddToStore { name, method, algorithm, references, repair }, nar)
            }
            Way::Many => {
                (Request::AddMultipleToStore { repair, dont_check_sigs }, encode_items(&[(info, nar)]))
            }
        };
        self.client.request(&request).await.expect("sent");
        self.client.framed(&body).await.expect("sent");
        match self.client.log().await.expect("an answer") {
            (_, End::Error(message)) => return Some(message),
            (_, end) => assert!(matches!(end, End::Last), "{end:?}"),
        }
        if matches!(way, Way::Unannounced) {
            self.client.path_info(None).await.expect("info");
        }
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upload_has_its_members_limit_whichever_way_it_comes() {
    let served = served("").await;
    served.scripted.limit("alice", json!({ "max-upload-mib": 1 }));
    let (mut alice, mut bob) = (served.session("alice").await, served.session("bob").await);
    let large = vec![b'l'; 3 << 20];
    for (number, way) in [Way::Announced, Way::Unannounced, Way::Many].into_iter().enumerate() {
        let name = format!("large-{number}");
        let message = alice.upload(way, &name, &large).await.expect("a refusal");
        said(
            &message,
            &[
                &name,
                "one upload may have 1048576 (your `max-upload-mib` in the roster)",
                "ask a maintainer of the roster for more",
            ],
        );
        // The session goes on, and smaller paths have room.
        let small = alice.upload(way, &format!("small-{number}"), &large[..1 << 19]).await;
        assert_eq!((small, bob.upload(way, &name, &large).await), (None, None), "{way:?}");
    }
    served.scripted.limit("alice", json!({ "max-upload-mib": 4 }));
    for (number, way) in [Way::Announced, Way::Unannounced, Way::Many].into_iter().enumerate() {
        assert_eq!(alice.upload(way, &format!("later-{number}"), &large).await, None, "{way:?}");
    }
}

/// The first line on a stream.
async fn line(stream: &mut DuplexStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\n") {
        bytes.push(stream.read_u8().await.expect("a line"));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upload_has_its_members_limit_in_the_serve_protocol_too() {
    use wire::serve::Request;
    let scripted = Scripted::open("");
    scripted.limit("alice", json!({ "max-upload-mib": 1 }));
    let (nar, small) = (encode_file_nar(&vec![b'l'; 3 << 20], false), encode_file_nar(b"small", false));
    let item = |name: &str, nar: &[u8]| {
        let imported = ImportedInfo { path: path(name), references: Default::default(), deriver: None };
        encode_export(&[(imported, nar.to_vec())])
    };
    let limit = "one upload may have 1048576 (your `max-upload-mib` in the roster)";
    for number in 0..2 {
        let (name, export) = (format!("t{number}"), number == 1);
        let (mut alice, mut shown) = scripted.serve_session("alice", true).await;
        let (mut bob, _shown) = scripted.serve_session("bob", true).await;
        let request = |nar: &[u8]| match export {
            true => (Request::ImportPaths, item(&name, nar)),
            false => (Request::AddToStoreNar { info: info_of(path(&name), nar, &[]) }, nar.to_vec()),
        };
        for (who, nar, answer) in [("alice", &nar, 0), ("bob", &nar, 1), ("alice", &small, 1)] {
            let client = if who == "bob" { &mut bob } else { &mut alice };
            let (request, body) = request(nar);
            client.request(&request).await.expect("sent");
            client.send(&body).await.expect("sent");
            assert_eq!(client.u64().await.expect("an answer"), answer, "{who} {name}");
        }
        said(&line(&mut shown).await, &[limit, "ask a maintainer of the roster for more"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_counted_over_all_connections_and_a_member_at_the_limit_is_told_which() {
    let served = served("limits.max-sessions-per-member = 3").await;
    served.scripted.limit("alice", json!({ "max-sessions": 2 }));
    let (first, _second) = (served.session("alice").await, served.session("alice").await);
    let refused = async |who: &str| {
        let refused = served.run(who, &["signing-key"]).await;
        assert_eq!(refused.status.code(), Some(127), "{refused:?}");
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    said(
        &refused("alice").await,
        &[
            "you have 2 sessions open already, which is the limit (your `max-sessions` in the roster)",
            "ask a maintainer of the roster for more",
        ],
    );
    let _bobs = [served.session("bob").await, served.session("bob").await, served.session("bob").await];
    said(
        &refused("bob").await,
        &[
            "3 sessions open already",
            "(the box's `limits.max-sessions-per-member`)",
            "ask the operator of the box",
        ],
    );
    served.scripted.limit("alice", json!({ "max-sessions": 1000 }));
    let third = served.session("alice").await;
    said(&refused("alice").await, &["3 sessions", "`limits.max-sessions-per-member`"]);
    // The place of a session that has ended can be used again.
    drop((first, third));
    served.scripted.limit("alice", json!({ "max-sessions": 2 }));
    until_success(&served, "alice").await;
}

/// Repeats a command until it succeeds: the box notices the end of other sessions a moment later.
async fn until_success(served: &Served, who: &str) {
    let trying = async {
        while !served.run(who, &["signing-key"]).await.status.success() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(common::PATIENCE, trying).await.expect("the place never became free");
}

/// Repeats a command, which must be refused each time, until the refusal has these parts: it counts commands that have
/// ended until the box notices.
async fn until_refused(served: &Served, who: &str, parts: &[&str]) {
    let mut message = String::new();
    let trying = async {
        while !parts.iter().all(|part| message.contains(part)) {
            let refused = served.run(who, &["signing-key"]).await;
            assert!(!refused.status.success(), "{who} is over the limit");
            message = String::from_utf8_lossy(&refused.stderr).into_owned();
        }
    };
    let in_time = tokio::time::timeout(common::PATIENCE, trying).await;
    assert!(in_time.is_ok(), "no {parts:?} in: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_the_limit_of_the_roster() {
    let served = served("").await;
    served.scripted.limit("alice", json!({ "max-connections": 1 }));
    let _open = served.session("alice").await;
    let refused = served.run("alice", &["signing-key"]).await;
    assert_eq!(refused.status.code(), Some(255), "{refused:?}");
    said(
        &String::from_utf8_lossy(&refused.stderr),
        &[
            "you have 1 connections open already, which is the limit (your `max-connections` in the roster)",
            "ask a maintainer of the roster for more",
        ],
    );
    served.output("bob", &["signing-key"]).await;
    served.scripted.limit("alice", json!({ "max-connections": 2 }));
    // Her Nix must not send more builds at once, as each needs a connection.
    let config = served.output("alice", &["client-config", "--format", "json"]).await;
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    assert!(config["max_jobs"].as_u64().is_some_and(|jobs| jobs <= 2), "{config}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_of_a_group_share_its_connections_and_sessions() {
    let served = served("").await;
    let (_alices, _bobs) = (served.session("alice").await, served.session("bob").await);
    // The sessions that are open count, and go on.
    for (limit, words) in [("max-connections", "2 connections"), ("max-sessions", "2 sessions")] {
        served.scripted.group(&["alice", "bob"], json!({ limit: 2 }));
        let set_by = format!("(the `{limit}` of the group 'ci' in the roster)");
        let who = format!("the members of the group 'ci' together have {words} open already");
        for member in ["alice", "bob"] {
            until_refused(&served, member, &[&who, &set_by, "ask a maintainer of the roster for more"]).await;
        }
        served.output("carol", &["signing-key"]).await;
        served.scripted.group(&["alice", "bob"], json!({ limit: 3 }));
        served.output("alice", &["signing-key"]).await;
        served.scripted.group(&["alice"], json!({ limit: 2 }));
        until_success(&served, "alice").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_builds_of_a_group_share_its_memory_and_others_do_not_wait() {
    let served = served("limits.max-jobs = 8").await;
    served.scripted.group(&["alice", "bob"], json!({ "max-memory-mib": 1500 }));
    let (mut alice, mut bob, mut carol) =
        (served.session("alice").await, served.session("bob").await, served.session("carol").await);
    alice.send(derivation("a", "gate write:a", &[])).await;
    served.scripted.until_runs(1).await;
    // Each build has 1024 MiB.
    bob.send(derivation("b", "gate write:b", &[])).await;
    let reason = wait_for_reason(&mut bob.client).await;
    said(&reason, &["builds of the group 'ci' run with all processors or memory that it may have"]);
    carol.build(derivation("c", "write:c", &[]), BuildStatus::Built).await;
    assert_eq!(served.scripted.runs(), 2);
    served.scripted.group(&["alice", "bob"], json!({ "max-memory-mib": 2048 }));
    served.scripted.until_runs(3).await;
    served.scripted.script.gate.cancel();
    alice.is(BuildStatus::Built).await;
    bob.is(BuildStatus::Built).await;

    // One build has no more than all of them together.
    served.scripted.group(&["alice", "bob"], json!({ "max-memory-mib": 700 }));
    alice.send(derivation("m", "memory", &[])).await;
    said(
        &alice.told().await.message,
        &[
            "the limit is 700 MiB (the `max-memory-mib` of the group 'ci' in the roster)",
            "ask a maintainer of the roster",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_of_a_group_share_its_room_in_the_store() {
    let served = served("").await;
    served.scripted.group(&["alice", "bob"], json!({ "max-store-mib": 1 }));
    let (mut bob, mut carol) = (served.session("bob").await, served.session("carol").await);
    // Almost all of the mebibyte, which a session of alice needs.
    let needed = served.scripted.agent.store.view(&store::Member::new("alice")).holding();
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    needed.add_ca("large", method, algorithm, &[].into(), &mut &[b'x'; 1_030_000][..]).expect("room for it");
    said(
        &bob.refused(derivation("b", "write:b", &[])).await,
        &[
            "all members of the group 'ci'",
            "of the 1 MiB",
            "`max-store-mib` of the group 'ci' in the roster",
            "a maintainer of the roster",
        ],
    );
    carol.build(derivation("c", "write:c", &[]), BuildStatus::Built).await;
    served.scripted.group(&["alice", "bob"], json!({ "max-store-mib": 2 }));
    bob.build(derivation("d", "write:d", &[]), BuildStatus::Built).await;
}
