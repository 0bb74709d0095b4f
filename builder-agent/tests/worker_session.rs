//! Sessions and builds: real wire, real store, real scheduler; a script plays the builders.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::client::{Drv, build, is_valid, lines, send, told, wait_for_reason};
use common::scripted::{Scripted, TestClient, derivation, path, until};
use nix::derivation::BasicDerivation;
use nix::{BuildMode, BuildStatus};
use nix_derivation::{
    CAHash, ContentAddressMethod, DerivedPath, HashAlgorithm, NixHash, Output, SingleDerivedPath, StorePath,
};
use sandbox::Inputs;
use sha2::{Digest, Sha256};
use wire::client::{End, Frame};
use wire::worker::Request;

/// Adds a text file, as `builtins.toFile` does, and returns its path.
async fn add_text(
    client: &mut TestClient,
    name: &str,
    text: &str,
    references: BTreeSet<StorePath>,
) -> StorePath {
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    let request = Request::AddToStore { name: name.into(), method, algorithm, references, repair: false };
    client.request(&request).await.expect("sent");
    client.framed(text.as_bytes()).await.expect("sent");
    client.done().await.expect("taken");
    client.path_info(None).await.expect("info").path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_shows_its_log_and_its_outputs_become_valid() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    assert_eq!(alice.trusted, Some(1));
    let told = build(&mut alice, derivation("t", "log:one log:two write:x", &[])).await;
    assert_eq!((told.status, told.log()), (BuildStatus::Built as u64, vec!["one".into(), "two".into()]));
    assert!(is_valid(&mut alice, &path("t")).await);
    let again = build(&mut alice, derivation("t", "log:one log:two write:x", &[])).await;
    assert_eq!(again.status, BuildStatus::AlreadyValid as u64);
    assert_eq!(scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_built_path_is_its_members_own_and_says_nothing_to_others() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    build(&mut alice, derivation("t", "write:x", &[])).await;
    assert!(is_valid(&mut alice, &path("t")).await && !is_valid(&mut bob, &path("t")).await);
    // Bob's build of the same derivation runs separately, and may have another result.
    let told = build(&mut bob, derivation("t", "write:y", &[])).await;
    assert_eq!(told.status, BuildStatus::Built as u64);
    for (client, contents) in [(&mut alice, "x"), (&mut bob, "y")] {
        client.call(&Request::NarFromPath { path: path("t") }).await.expect("an answer");
        let nar = client.nar().await.expect("a nar");
        assert_eq!(nar, wire::client::encode_file_nar(contents.as_bytes(), false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_builder_is_reported_in_nixs_words_and_leaves_nothing() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let told = build(&mut alice, derivation("t", "log:oops exit:3", &[])).await;
    assert_eq!(told.status, BuildStatus::PermanentFailure as u64);
    let drv = path("t.drv").to_absolute_path();
    assert_eq!(
        told.message,
        format!("builder for '{drv}' failed with exit code 3;\nlast 1 log lines:\n> oops")
    );
    assert!(!is_valid(&mut alice, &path("t")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_joins_the_running_build_and_gets_its_log_from_the_start() {
    let scripted = Scripted::open("");
    let (mut first, mut second) = (scripted.session("alice").await, scripted.session("alice").await);
    send(&mut first, derivation("t", "log:early gate log:late write:x", &[])).await;
    scripted.until_runs(1).await;
    send(&mut second, derivation("t", "log:early gate log:late write:x", &[])).await;
    // Once its log arrives, the request has joined the run.
    let mut start = [0; 8];
    tokio::io::AsyncReadExt::read_exact(&mut second.reader, &mut start).await.expect("a log frame");
    scripted.script.gate.cancel();
    assert_eq!(told(&mut first).await.log(), ["early", "late"]);
    // The frame whose kind was just read is the start of the activity.
    assert_eq!(u64::from_le_bytes(start), 0x5354_5254);
    for _ in 0..3 {
        second.u64().await.expect("id, level, kind");
    }
    second.string().await.expect("text");
    let count = second.u64().await.expect("fields");
    for _ in 0..count {
        match second.u64().await.expect("field kind") {
            0 => drop(second.u64().await.expect("number")),
            _ => drop(second.string().await.expect("text")),
        }
    }
    second.u64().await.expect("parent");
    let told = told(&mut second).await;
    assert_eq!((told.log(), told.status), (vec!["early".into(), "late".into()], BuildStatus::Built as u64));
    assert_eq!(scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_nobody_waits_for_is_cancelled() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    send(&mut alice, derivation("t", "wait", &[])).await;
    scripted.until_runs(1).await;
    drop(alice);
    scripted.until_cancelled(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keep_builds_running_it_goes_on() {
    let scripted = Scripted::open("keep-builds-running = true");
    let mut alice = scripted.session("alice").await;
    send(&mut alice, derivation("t", "gate write:x", &[])).await;
    scripted.until_runs(1).await;
    drop(alice);
    scripted.script.gate.cancel();
    let mut alice = scripted.session("alice").await;
    let told = build(&mut alice, derivation("t", "gate write:x", &[])).await;
    let reused = [BuildStatus::Built, BuildStatus::AlreadyValid, BuildStatus::Substituted].map(|s| s as u64);
    assert!(reused.contains(&told.status), "{told:?}");
    assert_eq!(scripted.cancelled(), 0);
    assert_eq!(scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_keeps_no_running_build() {
    let scripted = Scripted::open("keep-builds-running = true");
    let mut alice = scripted.session("alice").await;
    send(&mut alice, derivation("t", "wait", &[])).await;
    scripted.until_runs(1).await;
    scripted.set_roster(&["bob"]);
    let told = told(&mut alice).await;
    assert_eq!(told.status, BuildStatus::MiscFailure as u64);
    assert!(told.message.contains("was cancelled"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_cannot_take_all_slots_and_a_waiting_build_can_be_left() {
    let scripted = Scripted::open("[limits]\nmax-jobs = 2\nmax-jobs-per-member = 1");
    let (mut one, mut two) = (scripted.session("alice").await, scripted.session("alice").await);
    send(&mut one, derivation("a", "gate write:x", &[])).await;
    scripted.until_runs(1).await;
    let alices = || scripted.agent.realiser.scheduler.list(&|member| &*member.name == "alice").len();
    send(&mut two, derivation("b", "write:x", &[])).await;
    until("the second build to wait", || alices() == 2).await;
    let mut bob = scripted.session("bob").await;
    assert_eq!(build(&mut bob, derivation("c", "write:x", &[])).await.status, BuildStatus::Built as u64);
    assert_eq!(scripted.runs(), 2, "alice's second build must wait");
    drop(two);
    until("the second build to be left", || alices() == 1).await;
    scripted.script.gate.cancel();
    assert_eq!(told(&mut one).await.status, BuildStatus::Built as u64);
    assert_eq!(build(&mut one, derivation("d", "write:x", &[])).await.status, BuildStatus::Built as u64);
    assert_eq!(scripted.runs(), 3, "the build that was left must not run");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waits_says_for_what() {
    let scripted = Scripted::open("[limits]\nmax-jobs = 4\nmax-jobs-per-member = 2");
    let names = ["alice", "bob", "carol", "dora"];
    names[2..].iter().for_each(|name| common::make_key(&scripted.dir.path().join(name)));
    scripted.set_roster(&names);
    scripted.edit_roster(|roster| {
        roster["schema"] = 2.into();
        roster["groups"] = serde_json::json!([{ "name": "ci", "limits": { "max-jobs": 1 } }]);
        roster["members"][1]["limits"]["max-jobs"] = 1.into();
        roster["members"][2]["groups"] = serde_json::json!(["ci"]);
    });
    let mut clients = Vec::new();
    // Each line: a member, and why the build of this member's next request waits.
    let (ending, full) =
        ("' run, as many as it may have (its `maxJobs` in the roster)", "builds run in all 4 slots");
    for (number, (name, reason)) in [
        ("bob", None),
        ("bob", Some("1 of your builds run, as many as you may have (your `maxJobs` in the roster)".to_owned())),
        ("carol", None),
        ("carol", Some(format!("1 builds of the group 'ci{ending}"))),
        ("alice", None),
        ("alice", None),
        ("alice", Some("2 of your builds run, as many as one member may have (the box's `limits.max-jobs-per-member`)".to_owned())),
        ("dora", Some(format!("{full} of the box (its `limits.max-jobs`)"))),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut client, before) = (scripted.session(name).await, scripted.runs());
        let drv = derivation(&format!("t{number}"), "gate write:x", &[]);
        let named = drv.0.to_absolute_path();
        send(&mut client, drv).await;
        match reason {
            Some(reason) => {
                let told = wait_for_reason(&mut client).await;
                assert_eq!(told, format!("waiting for a slot to build '{named}': {reason}"), "{name}");
                assert_eq!(scripted.runs(), before);
            }
            None => scripted.until_runs(before + 1).await,
        }
        clients.push(client);
    }
    scripted.script.gate.cancel();
    for client in &mut clients {
        assert_eq!(told(client).await.status, BuildStatus::Built as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_group_share_its_slots_delay_nobody_else_and_get_new_ones_at_once() {
    let scripted = Scripted::open("[limits]\nmax-jobs = 4");
    common::make_key(&scripted.dir.path().join("carol"));
    scripted.set_roster(&["alice", "bob", "carol"]);
    scripted.edit_roster(|roster| {
        roster["schema"] = 2.into();
        roster["groups"] = serde_json::json!([{ "name": "ci", "limits": { "max-jobs": 1 } }]);
        (0..2).for_each(|n| roster["members"][n]["groups"] = serde_json::json!(["ci"]));
    });
    let mut alice = scripted.session("alice").await;
    send(&mut alice, derivation("a", "gate write:x", &[])).await;
    scripted.until_runs(1).await;
    let mut bob = scripted.session("bob").await;
    send(&mut bob, derivation("b", "gate write:x", &[])).await;
    let bobs = || scripted.agent.realiser.scheduler.list(&|member| &*member.name == "bob");
    until("bob's build to wait", || bobs().len() == 1).await;
    let mut carol = scripted.session("carol").await;
    for (n, name) in ["c", "d", "e"].into_iter().enumerate() {
        let told = build(&mut carol, derivation(name, "write:x", &[])).await;
        assert_eq!(
            (told.status, scripted.runs()),
            (BuildStatus::Built as u64, n + 2),
            "bob's build must wait"
        );
    }
    scripted.edit_roster(|roster| roster["groups"][0]["limits"]["max-jobs"] = 2.into());
    scripted.until_runs(5).await;
    scripted.script.gate.cancel();
    for client in [&mut alice, &mut bob] {
        assert_eq!(told(client).await.status, BuildStatus::Built as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_built_here_is_refused_by_name_and_the_session_goes_on() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let with = |change: &dyn Fn(&mut BasicDerivation)| {
        let (drv, mut derivation) = derivation("t", "write:x", &[]);
        change(&mut derivation);
        (drv, derivation)
    };
    for (what, part) in [
        (
            with(&|d| d.system = "riscv64-linux".into()),
            "a 'riscv64-linux' with features {} is required to build",
        ),
        (
            with(&|d| drop(d.env.insert("requiredSystemFeatures".into(), b"kvm".to_vec()))),
            "a 'x86_64-linux' with features {kvm} is required to build",
        ),
        (with(&|d| d.builder = "builtin:spell".into()), "unsupported builtin builder 'spell'"),
        (with(&|d| drop(d.env.insert("__noChroot".into(), b"1".to_vec()))), "has '__noChroot' set"),
        (
            with(&|d| assert!(d.input_sources.insert(path("absent")))),
            "does not exist here; upload it, or let the box fetch it",
        ),
        (
            with(&|d| {
                let (method, hash_algorithm) = (ContentAddressMethod::Nar, HashAlgorithm::Sha256);
                d.outputs.insert("out".into(), Output::Impure { method, hash_algorithm });
            }),
            "it is an impure derivation (__impure)",
        ),
        (
            with(&|d| {
                drop(d.outputs.insert("out".into(), Output::InputAddressed { path: path("someone-elses") }))
            }),
            "whose name should be 't'",
        ),
    ] {
        let told = build(&mut alice, what).await;
        assert_eq!(told.status, BuildStatus::InputRejected as u64, "{told:?}");
        assert!(told.message.contains(part), "{told:?}");
    }
    assert_eq!(scripted.runs(), 0);
    for request in [Request::OptimiseStore, Request::VerifyStore { check_contents: true, repair: false }] {
        alice.request(&request).await.expect("sent");
        assert!(matches!(alice.log().await.expect("an answer").1, End::Error(_)));
    }
    assert_eq!(build(&mut alice, derivation("t", "write:x", &[])).await.status, BuildStatus::Built as u64);
}

fn fixed(name: &str, script: &str, hash: NixHash) -> Drv {
    let (drv, mut derivation) = derivation(name, script, &[]);
    derivation.outputs = BTreeMap::from([("out".to_owned(), Output::Fixed { ca: CAHash::Flat(hash) })]);
    (drv, derivation)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_output_is_checked_and_the_right_one_is_there_for_everyone() {
    let scripted = Scripted::open("");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    let right = NixHash::Sha256(Sha256::digest(b"x").into());
    let wrong = NixHash::Sha256(Sha256::digest(b"y").into());
    let told = build(&mut alice, fixed("f", "write:x", wrong.clone())).await;
    assert_eq!(told.status, BuildStatus::OutputRejected as u64);
    assert_eq!(
        told.message,
        format!(
            "hash mismatch in fixed-output derivation '{}':\n  specified: {}\n     got:    {}",
            path("f.drv").to_absolute_path(),
            wrong.to_sri_string(),
            right.to_sri_string()
        )
    );
    let ca = CAHash::Flat(right.clone());
    let out = nix_derivation::store_path::build_ca_path("f", &ca, [], false).expect("a path");
    assert!(!is_valid(&mut alice, &out).await);
    let told = build(&mut alice, fixed("f", "write:x", right)).await;
    assert_eq!(told.status, BuildStatus::Built as u64, "{told:?}");
    assert!(is_valid(&mut bob, &out).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn references_are_found_in_outputs_and_held_against_the_derivations_demands() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let input = add_text(&mut alice, "input", "text", BTreeSet::new()).await;
    let full = input.to_absolute_path();
    let referring = |name: &str, demands: &[(&str, &str)]| {
        let env: Vec<_> = [("inputs", full.as_str())].into_iter().chain(demands.iter().copied()).collect();
        let (drv, mut derivation) = derivation(name, "refer", &env);
        derivation.input_sources.insert(input.clone());
        (drv, derivation)
    };
    assert_eq!(build(&mut alice, referring("a", &[])).await.status, BuildStatus::Built as u64);
    alice.call(&Request::QueryReferences { path: path("a") }).await.expect("an answer");
    assert_eq!(alice.paths().await.expect("paths"), std::slice::from_ref(&input));
    let told = build(&mut alice, referring("b", &[("allowedReferences", "out")])).await;
    assert_eq!(told.status, BuildStatus::OutputRejected as u64);
    assert!(
        told.message.ends_with(&format!("is not allowed to refer to the following paths:\n  {full}")),
        "{told:?}"
    );
    assert!(!is_valid(&mut alice, &path("b")).await);
    let told = build(&mut alice, referring("c", &[("disallowedRequisites", full.as_str())])).await;
    assert_eq!(told.status, BuildStatus::OutputRejected as u64);
    let told = build(&mut alice, referring("d", &[("allowedRequisites", full.as_str())])).await;
    assert_eq!(told.status, BuildStatus::Built as u64, "{told:?}");
}

/// Uploads a derivation with these inputs; its output is `path(name)`.
async fn add_drv(client: &mut TestClient, name: &str, script: &str, inputs: &[&StorePath]) -> StorePath {
    let listed: Vec<String> =
        inputs.iter().map(|input| format!("(\"{}\",[\"out\"])", input.to_absolute_path())).collect();
    let aterm = format!(
        "Derive([(\"out\",\"{}\",\"\",\"\")],[{}],[],\"x86_64-linux\",\"/bin/sh\",[\"{script}\"],[])",
        path(name).to_absolute_path(),
        listed.join(",")
    );
    add_text(client, &format!("{name}.drv"), &aterm, inputs.iter().map(|path| (*path).clone()).collect())
        .await
}

fn target(drv: &StorePath) -> DerivedPath {
    DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv.clone()), outputs: vec!["out".into()] }
}

#[tokio::test(flavor = "multi_thread")]
async fn dependencies_are_built_first_and_only_what_is_missing() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let bottom = add_drv(&mut alice, "bottom", "log:bottom write:x", &[]).await;
    let left = add_drv(&mut alice, "left", "log:left write:x", &[&bottom]).await;
    let right = add_drv(&mut alice, "right", "log:right write:x", &[&bottom]).await;
    let top = add_drv(&mut alice, "top", "log:top write:x", &[&left, &right]).await;
    alice.call(&Request::QueryMissing { targets: vec![target(&top)] }).await.expect("an answer");
    assert_eq!(alice.paths().await.expect("will build").len(), 4);
    alice.paths().await.expect("will substitute");
    assert!(alice.paths().await.expect("unknown").is_empty());
    for _ in 0..2 {
        alice.u64().await.expect("sizes");
    }
    let request = Request::BuildPaths { paths: vec![target(&top)], mode: BuildMode::Normal };
    let log = lines(&alice.call(&request).await.expect("built"));
    assert_eq!(alice.u64().await.expect("a result"), 1);
    assert_eq!(log.len(), 4, "{log:?}");
    assert_eq!((log[0].as_str(), log[3].as_str()), ("bottom", "top"));
    alice.call(&request).await.expect("built already");
    assert_eq!(alice.u64().await.expect("a result"), 1);
    assert_eq!(scripted.runs(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_dependency_is_shown_and_fails_what_needs_it() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    let bottom = add_drv(&mut alice, "bottom", "exit:1", &[]).await;
    let top = add_drv(&mut alice, "top", "write:x", &[&bottom]).await;
    alice
        .request(&Request::BuildPaths { paths: vec![target(&top)], mode: BuildMode::Normal })
        .await
        .expect("sent");
    let (frames, end) = alice.log().await.expect("an answer");
    assert_eq!(
        end,
        End::Error(format!("1 dependencies of derivation '{}' failed to build", top.to_absolute_path()))
    );
    let shown = format!("error: builder for '{}' failed with exit code 1\n", bottom.to_absolute_path());
    assert!(frames.contains(&Frame::Message(shown.into_bytes())), "{frames:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_targets_are_named() {
    let scripted = Scripted::open("");
    let mut alice = scripted.session("alice").await;
    for target in [DerivedPath::Opaque(path("absent")), target(&path("absent.drv"))] {
        alice
            .request(&Request::BuildPaths { paths: vec![target], mode: BuildMode::Normal })
            .await
            .expect("sent");
        let (_, End::Error(message)) = alice.log().await.expect("an answer") else { panic!("must fail") };
        assert!(message.contains("is not valid here and cannot be fetched"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sandbox_gets_the_closure_in_its_own_form_and_nothing_else() {
    for backend in ["kvm", "namespace"] {
        let scripted = Scripted::open_for(backend, "");
        let mut alice = scripted.session("alice").await;
        let deep = add_text(&mut alice, "deep", "text", BTreeSet::new()).await;
        let text = deep.to_absolute_path();
        let input = add_text(&mut alice, "input", &text, BTreeSet::from([deep.clone()])).await;
        add_text(&mut alice, "stranger", "text", BTreeSet::new()).await;
        let (drv, mut derivation) = derivation("t", "write:x", &[]);
        derivation.input_sources.insert(input.clone());
        assert_eq!(build(&mut alice, (drv, derivation)).await.status, BuildStatus::Built as u64);
        let inputs = scripted.script.inputs.lock().expect("inputs").take().expect("a build ran");
        match inputs {
            Inputs::Trees(trees) => {
                assert_eq!(backend, "namespace");
                let paths: BTreeSet<_> = trees.iter().map(|(path, _)| path.clone()).collect();
                assert_eq!(paths, BTreeSet::from([text, input.to_absolute_path()]));
                assert!(trees.iter().all(|(_, tree)| tree.exists()));
            }
            Inputs::Image(image) => {
                assert_eq!(backend, "kvm");
                // The EROFS magic, 1024 bytes into the first segment.
                let mut magic = [0; 4];
                let first = &image.segments[0];
                std::os::unix::fs::FileExt::read_exact_at(&*first.file, &mut magic, first.offset + 1024)
                    .expect("read");
                assert_eq!(u32::from_le_bytes(magic), 0xe0f5_e1e2);
                assert!(image.segments.iter().all(|s| s.offset % 4096 == 0 && s.len % 4096 == 0));
            }
        }
    }
}
