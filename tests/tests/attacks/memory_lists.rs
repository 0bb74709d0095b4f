//! Memory by amplification, beyond the size of a request (see `memory`): derivations with very many parts,
//! builds that continue without their clients, caches that name very many paths. The memory counts against
//! the member who sent the request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::http::FileServer;
use e2e::place;
use e2e::shared_box::{SharedBox, WORKER, recipe};
use nix_derivation::{
    CAHash, DerivedPath, SingleDerivedPath, StorePath, nixbase32, store_path::build_ca_path,
};
use tempfile::TempDir;
use wire::client::{End, encode_request};
use wire::worker::{Protocol, Request};

use crate::memory::{BESIDE, BUDGET, anonymous, bounded, house_with, in_many_sessions};

fn encoded(request: &Request) -> Vec<u8> {
    encode_request(request, Protocol::plain(MINOR))
}

/// Alice builds something small.
async fn alice_builds(shared_box: &SharedBox) {
    let mut alice = shared_box.session("alice").await;
    let out = path("hers");
    let small = recipe(&path("hers.drv"), &[("out", &out)], &[], "echo hers > $out");
    assert_eq!(alice.build(small).await.status, 0);
    assert_eq!(alice.nar(&out).await, nar(&file(b"hers\n")));
    alice.leave().await;
}

/// A derivation with this many input derivations, none of which exists.
fn wide(inputs: u32) -> Vec<u8> {
    let mut text = format!(r#"Derive([("out","{}","","")],["#, path("wide").to_absolute_path());
    for n in 0..inputs {
        let comma = if n > 0 { "," } else { "" };
        write!(text, r#"{comma}("{}",["out"])"#, numbered(n, "i.drv").to_absolute_path()).expect("text");
    }
    text += r#"],[],"x86_64-linux","/bin/sh",["-c","exit 1"],[])"#;
    text.into_bytes()
}

/// A store path from a number, without hashing.
fn numbered(n: u32, name: &str) -> StorePath {
    let mut digest = [7; 20];
    digest[..4].copy_from_slice(&n.to_be_bytes());
    StorePath::from_parts(digest, name).expect("a path")
}

fn outputs_of(drv: &StorePath) -> DerivedPath {
    let drv_path = SingleDerivedPath::Opaque(drv.clone());
    DerivedPath::Built { drv_path, outputs: vec!["out".into()] }
}

#[tokio::test]
async fn derivations_of_very_many_parts_stay_within_one_budget() {
    let shared_box = house_with(Setup::default());
    let contents = nar(&file(&wide(150_000)));
    let info = info("wide.drv", &contents);
    let mut mallory = shared_box.session("mallory").await;
    mallory.upload(&info, &contents).await;
    mallory.leave().await;
    let targets = vec![outputs_of(&info.path)];
    bounded(in_many_sessions(&shared_box, encoded(&Request::QueryMissing { targets })).await);
    alice_builds(&shared_box).await;
}

#[tokio::test]
async fn builds_that_go_on_without_their_clients_stay_within_one_budget() {
    let setup = Setup::default()
        .setting("keep-builds-running = true")
        .setting("limits.max-jobs = 4")
        .setting("limits.max-jobs-per-member = 1");
    let shared_box = house_with(setup);
    let before = anonymous(&shared_box);
    let line = shared_box.line("mallory");
    let mut sent = 0;
    // The first build runs, the others wait for its slot.
    for n in 0..40 {
        let name = format!("long-{n}");
        let script = "while :; do sleep 1; done";
        let (drv, mut derivation) =
            recipe(&path(&format!("{name}.drv")), &[("out", &path(&name))], &[], script);
        // Passed as a file, so that the builder can be started at all.
        derivation.env.insert(b"ballast".to_vec(), vec![b'x'; 4 << 20]);
        derivation.env.insert(b"passAsFile".to_vec(), b"ballast".to_vec());
        let mut mallory = Session::over(line.ssh(WORKER), MINOR).await;
        let request = Request::BuildDerivation { drv_path: drv, derivation, mode: nix::BuildMode::Normal };
        mallory.send(&encoded(&request)).await;
        // The request is accepted, or waits for memory, of which the client gets no message.
        let accepted = shared_box.agent.count("build accepted");
        for _ in 0..10 {
            if shared_box.agent.count("build accepted") > accepted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        mallory.vanish().await;
        sent += 1;
    }
    let (accepted, grown) =
        (shared_box.agent.count("build accepted"), anonymous(&shared_box).saturating_sub(before));
    println!("{sent} builds: {accepted} accepted, {grown} MiB held");
    assert!(accepted > 1, "as many as she has memory for");
    assert!(grown < BUDGET + BESIDE, "{grown} MiB");
    alice_builds(&shared_box).await;
}

/// Paths of a cache, content-addressed so that they need no signature, each with the same references.
fn cache_of(count: u8, references: u32) -> (TempDir, FileServer, Vec<StorePath>) {
    let folder = place::scratch("cache");
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("room");
    write("nix-cache-info", "StoreDir: /nix/store\nWantMassQuery: 1\n".into());
    let references: BTreeSet<StorePath> = (0..references).map(|n| numbered(n, "r")).collect();
    let named: Vec<String> = references.iter().map(StorePath::to_basename).collect();
    let named = named.join(" ");
    let paths = (0..count).map(|n| {
        let hash = format!("sha256:{}", nixbase32::encode(&[n; 32]));
        let ca = CAHash::parse(&format!("fixed:r:{hash}")).expect("an address");
        let path = build_ca_path("top", &ca, &references, false).expect("a path");
        let full = path.to_absolute_path();
        let text = format!(
            "StorePath: {full}\nURL: nar\nCompression: none\nNarHash: {hash}\nNarSize: 200\nReferences: {named}\nCA: fixed:r:{hash}\n"
        );
        write(&format!("{}.narinfo", &path.to_basename()[..32]), text);
        path
    });
    let paths: Vec<StorePath> = paths.collect();
    let server = FileServer::start(folder.path());
    (folder, server, paths)
}

fn house_by(cache: &FileServer) -> SharedBox {
    let setup = Setup::default()
        .setting(&format!("substituters = [\"{}\"]", cache.url()))
        .setting("fetch.allow-private = true");
    house_with(setup)
}

#[tokio::test]
async fn what_a_cache_says_of_its_paths_stays_within_one_budget() {
    let (_folder, cache, paths) = cache_of(60, 20_000);
    let shared_box = house_by(&cache);
    let paths: BTreeMap<StorePath, Option<CAHash>> = paths.into_iter().map(|path| (path, None)).collect();
    bounded(in_many_sessions(&shared_box, encoded(&Request::QuerySubstitutablePathInfos { paths })).await);
    alice_builds(&shared_box).await;
}

#[tokio::test]
async fn closures_that_a_cache_tells_of_stay_within_one_budget() {
    let (_folder, cache, paths) = cache_of(60, 20_000);
    let shared_box = house_by(&cache);
    let targets = paths.into_iter().map(DerivedPath::Opaque).collect();
    bounded(in_many_sessions(&shared_box, encoded(&Request::QueryMissing { targets })).await);
    alice_builds(&shared_box).await;
}

#[tokio::test]
async fn slow_readers_of_one_path_share_what_is_known_of_its_files() {
    let shared_box = house_with(Setup::default());
    let names: Vec<String> = (0..150_000).map(|n| format!("{n:07}")).collect();
    let entries: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), file(b""))).collect();
    let contents = nar(&directory(&entries));
    let info = info("many-files", &contents);
    let mut mallory = shared_box.session("mallory").await;
    mallory.upload(&info, &contents).await;
    mallory.leave().await;
    let before = anonymous(&shared_box);
    let line = shared_box.line("mallory");
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut reader = Session::over(line.ssh(WORKER), MINOR).await;
        // The NAR begins, and she does not read the rest.
        let end = reader.try_call(&Request::NarFromPath { path: info.path.clone() }).await;
        assert!(matches!(end, End::Last), "all of them together are within her budget: {end:?}");
        readers.push(reader);
    }
    let grown = anonymous(&shared_box).saturating_sub(before);
    println!("{} readers: {grown} MiB held", readers.len());
    assert!(grown < BUDGET + BESIDE, "{grown} MiB");
    alice_builds(&shared_box).await;
}

#[tokio::test]
async fn paths_that_many_sessions_hold_stay_within_one_budget() {
    let shared_box = house_with(Setup::default());
    let before = anonymous(&shared_box);
    let line = shared_box.line("mallory");
    let (mut sessions, mut refused) = (Vec::new(), 0);
    for session in 0..8 {
        let mut mallory = Session::over(line.ssh(WORKER), MINOR).await;
        let requests: Vec<u8> = (0..60_000)
            .flat_map(|n| encoded(&Request::AddTempRoot { path: numbered(n, "held-for-long") }))
            .collect();
        let last = encoded(&Request::IsValidPath { path: numbered(session, "x") });
        mallory.send(&requests).await;
        mallory.send(&last).await;
        loop {
            match within("an answer", mallory.client.log()).await {
                Ok((_, End::Last))
                    if within("an answer", mallory.client.u64()).await.expect("a number") == 0 =>
                {
                    break;
                }
                Ok((_, End::Last)) => {}
                Ok((_, End::Error(message))) => {
                    assert!(message.contains("limits.max-session-memory-per-member-mib"), "{message}");
                    refused += 1;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        sessions.push(mallory);
    }
    let grown = anonymous(&shared_box).saturating_sub(before);
    println!("{refused} of {} sessions refused, {grown} MiB held", sessions.len());
    assert!(refused > 0);
    assert!(grown < BUDGET + BESIDE, "{grown} MiB");
    alice_builds(&shared_box).await;
}

#[tokio::test]
async fn one_long_message_told_very_often_stays_within_one_budget() {
    let shared_box = house_with(Setup::default());
    // An impossible output name, which the error message quotes.
    let bad = "x".repeat(40_000);
    let contents = nar(&file(format!(r#"Derive([("out","{}","","")],[],[],"x","y",[],[])"#, bad).as_bytes()));
    let info = info("long.drv", &contents);
    let mut mallory = shared_box.session("mallory").await;
    mallory.upload(&info, &contents).await;
    mallory.leave().await;
    let paths = vec![outputs_of(&info.path); 40_000];
    let request = Request::BuildPathsWithResults { paths, mode: nix::BuildMode::Normal };
    let (refused, grown) = in_many_sessions(&shared_box, encoded(&request)).await;
    println!("{} refused, {grown} MiB: {:?}", refused.len(), refused.first().map(|m| &m[..m.len().min(200)]));
    assert!(grown < BUDGET + BESIDE, "{grown} MiB");
    alice_builds(&shared_box).await;
}
